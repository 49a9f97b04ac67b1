"""What policies see of attentions, against softmax attention written out, one instance and one head at a time."""

from dataclasses import replace

import pytest
import torch

from smarttrim_mm.layers.evidence import GUIDE_ROW, KEYS, RECEIVED, looking_multiply_adds
from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision, TokenStream
from smarttrim_mm.testing import count_multiply_adds

IDS = torch.arange(3)
VALID = torch.arange(6) < torch.tensor([[6], [3], [5]])
KEEP = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
SIZES = torch.tensor([[2.0, 1, 3, 1, 1, 1], [1, 1, 4, 1, 1, 1], [5, 1, 1, 1, 1, 1]])
ALL = frozenset({KEYS, GUIDE_ROW, RECEIVED})


class Looks(Policy):
    """Drops what it is told, and hands on what it sees of one attention."""

    def __init__(self, attention, keep, heads=None, run=None):
        super().__init__(steps=[])
        self.attention, self.keep, self.heads, self.run, self.seen = attention, keep, heads or {}, run or {}, None

    def before_layer(self, step, streams, guides):
        keep = {name: streams[name].layout.from_grid(grid) for name, grid in self.keep.items()}
        return Decision(keep=keep, heads=self.heads, run=self.run)

    def looks(self, step):
        return {self.attention: ALL}

    def reduces(self, step):
        return frozenset({"words"})

    def after_attention(self, step, streams, evidence, guides):
        self.seen = evidence[self.attention]
        return Decision()


def written_out(module, asking, read, sizes):
    """Keys and weights of one instance: [M, d] and [N, M], means over four heads of width 4."""
    weight, bias = module.in_proj_weight, module.in_proj_bias
    q, k = asking @ weight[:16].T + bias[:16], read @ weight[16:32].T + bias[16:32]
    weights = []
    for head in range(4):
        own = slice(4 * head, 4 * head + 4)
        scores = torch.exp(q[:, own] @ k[:, own].T / 2) * sizes  # a key of size s counts as s keys
        weights.append(scores / scores.sum(1, keepdim=True))
    return k.view(-1, 4, 4).mean(1), torch.stack(weights).mean(0)


def streams_of(tokens, sizes, packed, guide_index, **memories):
    """Streams, the tokens of the asked with sizes; without a guide token the first token is protected all the same."""
    first = torch.zeros(VALID.shape, dtype=torch.bool)
    first[:, 0] = True
    streams = {"words": TokenStream.start(tokens, ids=IDS, valid=VALID, special=first, guide_index=guide_index)}
    streams |= {name: TokenStream.start(x, ids=IDS) for name, x in memories.items()}
    read = next(iter(memories), "words")
    streams[read] = replace(streams[read], layout=replace(streams[read].layout, sizes=sizes))
    return {name: stream.pack() if packed else stream for name, stream in streams.items()}


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["", "sizes"])
@pytest.mark.parametrize("guide_index", [0, None])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_self_attention(encoder_layer, tokens, packed, guide_index, sizes):
    host, step = encoder_layer(False)
    policy = Looks("words.self", {"words": KEEP})
    step = replace(step, guideless=frozenset({"words"} if guide_index is None else ()))
    out, _ = run_layer(step, streams_of(tokens, sizes, packed, guide_index), policy)
    layout = out["words"].layout
    for b in range(3):
        x, own = tokens[b, KEEP[b]], (SIZES if sizes is not None else torch.ones(3, 6))[b, KEEP[b]]
        keys, weights = written_out(host.self_attn, x, x, own)
        row = weights[0] if guide_index == 0 else weights.mean(0)
        at = layout.instance == b if packed else (torch.arange(3)[:, None] == b) & KEEP
        for seen, expected in ((policy.seen.keys, keys), (policy.seen.guide_row, row), (policy.seen.received, weights.mean(0))):
            torch.testing.assert_close(seen[at], expected)
    if not packed:  # nothing is received by what is not there
        assert (policy.seen.received[~KEEP] == 0).all() and (policy.seen.guide_row[~KEEP] == 0).all()


@pytest.mark.parametrize("sizes", [None, SIZES[:, :4]], ids=["", "sizes"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_cross_attention_tells_of_what_is_read(decoder_layer, tokens, packed, sizes):
    host, step = decoder_layer(False)
    layer = step.layers["words"]
    step = replace(step, layers={"words": replace(layer, attentions=layer.attentions[1:])})  # so that words ask as they are
    image, keep = torch.randn(3, 4, 16), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1]]).bool()
    policy = Looks("words.cross", {"words": KEEP, "image": keep})
    out, _ = run_layer(step, streams_of(tokens, sizes, packed, 0, image=image), policy)
    for b in range(3):
        own = (torch.ones(3, 4) if sizes is None else sizes)[b, keep[b]]
        keys, weights = written_out(host.multihead_attn, tokens[b, KEEP[b]], image[b, keep[b]], own)
        at = out["image"].layout.instance == b if packed else (torch.arange(3)[:, None] == b) & keep
        torch.testing.assert_close(policy.seen.keys[at], keys)
        torch.testing.assert_close(policy.seen.guide_row[at], weights[0])
        torch.testing.assert_close(policy.seen.received[at], weights.mean(0))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_attentions_that_do_not_run_whole_cannot_be_looked_at(encoder_layer, tokens, packed):
    _, step = encoder_layer(True)
    streams = streams_of(tokens, None, packed, 0)
    for partial in (
        {"heads": {"words.self": torch.tensor([[True, False, True, True]] * 3)}},
        {"run": {"words.attention": torch.tensor([1.0, 0, 1])}},
    ):
        with pytest.raises(ValueError, match=r"text.0: the policy looks at \['words.self'\] and leaves out heads or instances"):
            run_layer(step, streams, Looks("words.self", {}, **partial))
    run_layer(step, streams, Looks("words.self", {}, run={"words.mlp": torch.tensor([1.0, 0, 1])}))


def test_weights_of_all_pairs_are_not_kept_for_the_backward_pass(encoder_layer, tokens):
    _, step = encoder_layer(True)
    policy, kept = Looks("words.self", {}), []
    x = tokens.clone().requires_grad_()

    def note(tensor):
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run_layer(step, streams_of(x, None, False, 0), policy)
    assert kept and (3, 4, 6, 6) not in kept and (12, 6, 6) not in kept
    policy.seen.received.square().sum().backward()
    found, x.grad = x.grad, None
    layer = step.layers["words"]
    q, k, _ = torch.nn.functional.linear(layer.attentions[0].norm(x), layer.owner.self_attn.in_proj_weight).add(
        layer.owner.self_attn.in_proj_bias
    ).view(3, 6, 3, 4, 4).permute(2, 0, 3, 1, 4)  # fmt: skip
    weights = (q @ k.transpose(2, 3) / 2).masked_fill(~VALID[:, None, None], -torch.inf).softmax(-1)
    received = (weights * VALID[:, None, :, None]).sum(2).mean(1) / VALID.sum(1, keepdim=True)
    received.square().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_a_step_says_which_streams_have_no_guide_token(encoder_layer, tokens):
    _, step = encoder_layer(True)
    without = replace(step, guideless=frozenset({"words"}))
    policy = Looks("words.self", {})
    with pytest.raises(
        ValueError, match=r"row of words.self, whose stream starts with guide_index=None, and guideless .* \[\]"
    ):
        run_layer(step, streams_of(tokens, None, False, None), policy)
    with pytest.raises(ValueError, match=r"guide_index=0, and guideless of the step is \['words'\]"):
        run_layer(without, streams_of(tokens, None, False, 0), policy)


@pytest.mark.parametrize("guide_index", [0, None])
@pytest.mark.parametrize("wanted", [{GUIDE_ROW}, {RECEIVED}, ALL], ids=["row", "received", "all"])
def test_what_looking_costs_is_what_torch_counts(encoder_layer, tokens, guide_index, wanted):
    _, step = encoder_layer(True)
    step = replace(step, guideless=frozenset({"words"} if guide_index is None else ()))

    def counted(looks):
        policy = Looks("words.self", {})
        policy.looks = lambda step: {"words.self": frozenset(looks)}
        return count_multiply_adds(lambda: run_layer(step, streams_of(tokens, None, False, guide_index), policy))[1]

    counts = {"words": torch.full((3,), 6.0)}  # padded ones are computed too
    added = looking_multiply_adds(step, {"words.self": frozenset(wanted)}, counts).sum()
    assert added == counted(wanted) - counted({KEYS}) > 0


def test_what_looking_costs(decoder_layer):
    _, step = decoder_layer(True)
    counts = {"words": torch.tensor([6.0, 3]), "image": torch.tensor([4.0, 2])}
    assert looking_multiply_adds(step, {"words.self": frozenset({KEYS})}, counts) == 0
    row = looking_multiply_adds(step, {"words.cross": frozenset({KEYS, GUIDE_ROW})}, counts)
    assert row.tolist() == [4 * 16, 2 * 16]
    both = looking_multiply_adds(step, {"words.self": frozenset({RECEIVED}), "words.cross": frozenset({RECEIVED})}, counts)
    assert both.tolist() == [(6 * 6 + 6 * 4) * 16, (3 * 3 + 3 * 2) * 16]
