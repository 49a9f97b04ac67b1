"""What is decided between attention and MLP, parts that instances skip, and notes that are carried on."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from smarttrim_mm.layers.projections import weigh_by_size
from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision, Merge, TokenStream

IDS = torch.arange(3)
VALID = torch.arange(6) < torch.tensor([[6], [3], [5]])
# 2 and 3 into 1; 2 into the protected 0; nothing
INTO = torch.tensor([[0, 1, 1, 1, 4, 5], [0, 1, 0, 3, 4, 5], [0, 1, 2, 3, 4, 5]])
WEIGHT = torch.tensor([[1.0, 2, 1, 1, 1, 1], [3, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
DROP = torch.tensor([[1, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1]]).bool()
LEFT = [[0, 1, 5], [0, 1], [0, 2, 3, 4]]


class Decides(Policy):
    """Two decisions, the second as functions of the layout."""

    def __init__(self, before=None, after=None):
        super().__init__(steps=[])
        self.before, self.after = before or Decision(), after

    def before_layer(self, step, streams, guides):
        return self.before

    def reduces(self, step):
        return frozenset() if self.after is None else frozenset({"words"})

    def after_attention(self, step, streams, evidence, guides):
        return self.after(streams["words"].layout)


def merging(sized):
    def decide(layout):
        merge = Merge(layout.from_grid(INTO), layout.from_grid(WEIGHT), sized)
        return Decision(merge={"words": merge}, keep={"words": layout.from_grid(DROP)}, carry={"words": {"seen": IDS + 5}})

    return decide


def parts(host, x, valid):
    """A pre-norm layer of torch's, behind its attention, and what its MLP adds."""
    y = host.norm1(x)
    return x + host.self_attn(y, y, y, key_padding_mask=~valid, need_weights=False)[0]


def mlp(host, x):
    return x + host.linear2(torch.nn.functional.gelu(host.linear1(host.norm2(x))))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_tokens_merge_between_attention_and_mlp(encoder_layer, tokens, packed):
    host, step = encoder_layer(True)
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID)
    out, record = run_layer(step, {"words": stream.pack() if packed else stream}, Decides(after=merging(True)))
    behind = parts(host, tokens, VALID)
    merged = behind.clone()
    merged[0, 1] = (2 * behind[0, 1] + behind[0, 2] + behind[0, 3]) / 4
    merged[1, 0] = (3 * behind[1, 0] + behind[1, 2]) / 4
    expected = torch.cat([mlp(host, merged[b, left]) for b, left in enumerate(LEFT)])
    after = out["words"].pack()
    torch.testing.assert_close(after.x, expected)
    assert after.layout.source.tolist() == [place for left in LEFT for place in left]
    assert after.layout.sizes.tolist() == [1, 3, 1, 2, 1, 1, 1, 1, 1]
    assert out["words"].carried["seen"].tolist() == [5, 6, 7]
    assert record.tokens["words"].counts().tolist() == [6, 3, 5]
    assert record.after["words"].counts().tolist() == [3, 2, 4]
    n, m = torch.tensor([6.0, 3, 5]), torch.tensor([3.0, 2, 4])
    torch.testing.assert_close(record.decided(), 4 * n * 256 + 2 * n * n * 16 + m * 2 * 16 * 24)
    if packed:
        assert record.executed == sum(4 * n * 256 + 2 * n * n * 16 + m * 2 * 16 * 24 for n, m in ((6, 3), (3, 2), (5, 4)))
    merges = record.merged["words"]
    assert merges.into.tolist() == INTO.tolist() and merges.sized
    assert torch.equal(merges.weight * VALID, WEIGHT * VALID)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_later_attention_weighs_merged_tokens_by_their_size(encoder_layer, tokens, packed):
    """A token that stands for three is read as three equal tokens would be."""
    host, step = encoder_layer(True)
    sizes = torch.tensor([[1.0, 3, 1, 1, 2, 1]])
    x = tokens[:1]
    stream = TokenStream.start(x, ids=IDS[:1])
    sized = replace(stream, layout=replace(stream.layout, sizes=sizes))
    out, record = run_layer(step, {"words": sized.pack() if packed else sized}, Decides())
    several = x.repeat_interleave(sizes[0].long(), 1)
    expected = mlp(host, parts(host, several, torch.ones(1, 9).bool()))[0, [0, 1, 4, 5, 6, 8]]
    torch.testing.assert_close(out["words"].pack().x, expected)
    # a channel more for each head's scores and sums
    assert record.decided().tolist() == [6 * 4 * 256 + 2 * 6 * 6 * (16 + 4) + 6 * 2 * 16 * 24]


def test_gradients_are_finite_where_merged_tokens_are_gone(encoder_layer, tokens):
    """Their size is zero, whose logarithm is not; their gate carries a gradient or does not."""
    _, step = encoder_layer(True)
    for gate in (torch.ones(3, 6), torch.ones(3, 6, requires_grad=True)):
        x = tokens.clone().requires_grad_()
        streams, _ = run_layer(step, {"words": TokenStream.start(x, ids=IDS, valid=VALID)}, Decides(after=merging(True)))
        out, _ = run_layer(step, streams, Decides(Decision(keep={"words": gate})))
        out["words"].x[VALID].square().sum().backward()
        assert x.grad.isfinite().all() and x.grad[VALID].abs().sum() > 0
        assert gate.grad is None or gate.grad.isfinite().all()


@pytest.mark.parametrize("gate", [[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_instances_skip_a_part(encoder_layer, tokens, packed, part, gate):
    host, step = encoder_layer(True)
    gate = torch.tensor(gate)
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID)
    policy = Decides(Decision(run={f"words.{part}": gate}))
    out, record = run_layer(step, {"words": stream.pack() if packed else stream}, policy)
    on = gate.bool()[:, None, None]
    if part == "attention":
        expected = mlp(host, torch.where(on, parts(host, tokens, VALID), tokens))
    else:
        behind = parts(host, tokens, VALID)
        expected = torch.where(on, mlp(host, behind), behind)
    torch.testing.assert_close(out["words"].pack().x, expected[VALID])
    n = torch.tensor([6.0, 3, 5])
    attention, feed_forward = 4 * n * 256 + 2 * n * n * 16, n * 2 * 16 * 24
    cost = gate * attention + feed_forward if part == "attention" else attention + gate * feed_forward
    torch.testing.assert_close(record.decided(), cost)
    if packed:
        assert record.executed == cost.sum()
    assert torch.equal(record.run[f"words.{part}"], gate)


def test_who_skips_both_parts_stays_what_it_was(encoder_layer, tokens):
    _, step = encoder_layer(False)
    gate = torch.tensor([1.0, 0, 1])
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID)
    policy = Decides(Decision(run={"words.attention": gate, "words.mlp": gate}))
    for start in (stream, stream.pack()):
        out, _ = run_layer(step, {"words": start}, policy)
        x = out["words"].x[out["words"].layout.instance == 1] if start is not stream else out["words"].x[1, VALID[1]]
        assert torch.equal(x, tokens[1, VALID[1]])


def test_some_instances_read_memories_by_some_heads(decoder_layer, tokens):
    """Skipped, with heads off, and with a memory of another length: padded and packed agree."""
    _, step = decoder_layer(True)
    image, keep = torch.randn(3, 4, 16), torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1]]).bool()
    heads = {"words.cross": torch.tensor([[True, False, True, True], [True] * 4, [False, True, False, False]])}
    run = {"words.attention": torch.tensor([1.0, 0, 1])}
    streams = {
        "words": TokenStream.start(tokens, ids=IDS, valid=VALID),
        "image": TokenStream.start(image, ids=IDS).select(keep),
    }
    found = []
    for packed in (False, True):
        start = {name: stream.pack() if packed else stream for name, stream in streams.items()}
        out, record = run_layer(step, start, Decides(Decision(run=run, heads=heads)))
        found.append((out["words"].pack().x, record.decided()))
    torch.testing.assert_close(found[0], found[1])


def test_gates_carry_gradients(encoder_layer, tokens):
    _, step = encoder_layer(True)
    gates = {f"words.{part}": torch.tensor([1.0, 0, 1], requires_grad=True) for part in ("attention", "mlp")}
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID)
    out, record = run_layer(step, {"words": stream}, Decides(Decision(run=gates)))
    (out["words"].x[VALID].square().sum() + record.decided().sum()).backward()
    assert all((gate.grad != 0).all() for gate in gates.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_in_a_channel_are_a_bias(dtype):
    q, k, v = (torch.randn(2, 3, 5, 8).to(dtype) for _ in range(3))
    sizes = torch.randint(1, 9, (2, 5)).float()
    wider = weigh_by_size(q, k, v, sizes.log()[:, None])
    assert [t.shape[-1] for t in wider] == [9, 9, 9]
    out = scaled_dot_product_attention(*wider)
    assert (out[..., 8] == 0).all()
    expected = scaled_dot_product_attention(*(t.float() for t in (q, k, v)), attn_mask=sizes.log()[:, None, None])
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(out[..., :8].float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision(merge={"words": Merge(INTO, WEIGHT)}), r"text.0: before_layer merges tokens of \['words'\]; expected merges"),
        (Decision(keep={"sounds": DROP}), r"keep of a decision names \['sounds'\]; this step has \['words'\]"),
        (Decision(heads={"words.cross": DROP}), r"heads of .* names \['words.cross'\]; this step has \['words.self'\]"),
        (
            Decision(run={"words.mpl": WEIGHT[:, 0]}),
            r"run of .* \['words.mpl'\]; this step has \['words.attention', 'words.mlp'\]",
        ),
        (Decision(carry={"sounds": {}}), r"carry of .* names \['sounds'\]"),
    ],
)
def test_what_would_be_ignored_is_refused_before_a_layer(encoder_layer, tokens, decision, message):
    _, step = encoder_layer(True)
    with pytest.raises(ValueError, match=message):
        run_layer(step, {"words": TokenStream.start(tokens, ids=IDS, valid=VALID)}, Decides(decision))


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision(heads={"words.self": DROP}), r"text.0: after_attention decides on \['words.self'\]; expected tokens alone"),
        (Decision(run={"words.mlp": WEIGHT[:, 0]}), r"after_attention decides on \['words.mlp'\]"),
        (Decision(keep={"sounds": DROP}), r"cuts or merges \['sounds'\], and reduces\(\) says \['words'\]"),
        (Decision(carry={"sounds": {}}), r"carry of .* names \['sounds'\]"),
    ],
)
def test_what_would_be_ignored_is_refused_behind_the_attentions(encoder_layer, tokens, decision, message):
    _, step = encoder_layer(True)
    with pytest.raises(ValueError, match=message):
        run_layer(step, {"words": TokenStream.start(tokens, ids=IDS, valid=VALID)}, Decides(after=lambda layout: decision))
