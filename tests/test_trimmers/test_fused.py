"""The fused pass gives what the trimmers give one by one, whatever happened to their weights before."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm
from torch.utils._python_dispatch import TorchDispatchMode

from smarttrim_mm.policies.observed import Observed
from smarttrim_mm.registry import MODELS, TRIMMERS
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import backbone_cases, count_multiply_adds, excite, random_inputs
from smarttrim_mm.trimmers.fused import FusedStep, FusedTrimmers, is_fusible, similarities, zero_multiply_adds
from smarttrim_mm.trimmers.head_trimmer import HeadTrimmer
from smarttrim_mm.trimmers.token_trimmer import TokenTrimmer

WIDTHS = {"text": 16, "image": 24, "audio": 8}
BACKBONES = backbone_cases()


def trimmers(scores=("local", "self", "cross")):
    """Those of a step with two streams and the guide of a third."""
    tokens = {
        "image": TokenTrimmer(width=24, own="image", guides=WIDTHS, scores=scores, hidden=6, rank=4),
        "text": TokenTrimmer(width=16, own="text", guides={"text": 16, "image": 24}, scores=scores),
    }
    heads = {
        "text.self": HeadTrimmer(heads=2, guides={"text": 16}),
        "image.cross": HeadTrimmer(heads=4, guides={"image": 24, "text": 16}, hidden=5),
    }
    for number, trimmer in enumerate([*tokens.values(), *heads.values()]):
        excite(trimmer, number)
    return tokens, heads


def given(batch=3, packed=True, dtype=torch.float32):
    """Streams of the step and the third one's guide; the image's guide is the mean of its tokens."""
    ids = torch.arange(batch)
    protected = torch.zeros(batch, 5, dtype=torch.bool)
    protected[:, 0] = True
    streams = {
        "image": TokenStream.start(3 * torch.randn(batch, 5, 24) + 1, ids=ids, special=protected, guide_index=None),
        "text": TokenStream.start(torch.randn(batch, 4, 16), ids=ids, valid=torch.arange(4) < 1 + torch.arange(batch)[:, None]),
    }
    streams = {name: stream.map(lambda x: x.to(dtype)) for name, stream in streams.items()}
    return {name: stream.pack() if packed else stream for name, stream in streams.items()}, {
        "audio": torch.randn(batch, 8).to(dtype)
    }


def one_by_one(tokens, heads, streams, guides):
    at_hand = {**guides, **{name: stream.guide() for name, stream in streams.items()}}
    return (
        {name: trimmer(streams[name], at_hand) for name, trimmer in tokens.items()},
        {name: trimmer(at_hand) for name, trimmer in heads.items()},
    )


@torch.no_grad()
def assert_same(tokens, heads, streams, guides, atol=1e-5, dtype=torch.float32):
    step = FusedStep(tokens, heads, dtype)
    keep, stacked = step(streams, guides)
    expected_keep, expected_heads = one_by_one(tokens, heads, streams, guides)
    found = {} if stacked is None else step.by_attention(stacked)
    assert found.keys() == expected_heads.keys()
    for name, logits in [*expected_keep.items(), *expected_heads.items()]:
        other = keep[name] if name in keep else found[name]
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, logits, atol=atol, rtol=atol)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 40])
@pytest.mark.parametrize("scores", [["local"], ["self"], ["cross"], ["local", "self", "cross"]])
def test_it_scores_as_the_trimmers_do(scores, batch, packed):
    assert_same(*trimmers(scores), *given(batch, packed))


def test_either_kind_alone():
    tokens, heads = trimmers()
    assert_same(tokens, {}, *given())
    assert_same({}, heads, *given())
    assert_same({"text": tokens["text"]}, {"image.cross": heads["image.cross"]}, *given())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tokens, heads = trimmers()
    for trimmer in (*tokens.values(), *heads.values()):
        trimmer.to(dtype)
    assert_same(tokens, heads, *given(dtype=dtype), atol=0.1, dtype=dtype)


def test_similarities_by_hand():
    x, direction = torch.randn(7, 48), torch.randn(3, 48)
    layout = TokenStream.start(
        torch.zeros(3, 4, 48), ids=torch.arange(3), valid=torch.arange(4) < torch.tensor([[4], [1], [2]])
    )
    layout = layout.pack().layout
    expected = (x * direction[torch.tensor([0, 0, 0, 0, 1, 2, 2])]).sum(1) + 2
    torch.testing.assert_close(similarities(x, layout, direction, torch.tensor([2.0])).squeeze(1), expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_zeros_are_counted(batch):
    tokens, heads = trimmers()
    streams, guides = given(batch, packed=False)
    step = FusedStep(tokens, heads, torch.float32)
    with torch.no_grad():
        _, counted = count_multiply_adds(lambda: step(streams, guides))
    counts = {"image": torch.full((batch,), 5.0), "text": torch.full((batch,), 4.0)}
    own = sum(float(trimmer.multiply_adds(counts[name]).sum()) for name, trimmer in tokens.items())
    own += batch * sum(trimmer.multiply_adds() for trimmer in heads.values())
    zeros = zero_multiply_adds(tokens.values(), heads.values())
    # columns: 16 of text, 24 of image, 8 of audio; rows: two heads' hidden ones, two queries; then two heads' outputs
    assert zeros == 16 * (24 + 8) + 5 * 8 + 4 * 0 + 16 * 8 + (16 * 4 + 5 * 2)
    assert counted == own + batch * zeros


def smarttrim(backbone, **changes):
    policy = {"type": "SmartTrim", "stable_init": False, **changes}
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy}).eval()
    excite(model)
    return model


def separately(policy, *arguments):
    """The scores of the policy's trimmers, one by one."""
    with torch.enable_grad():
        return policy.scores(*arguments)


@pytest.mark.parametrize("kind", ["packed", "masked"])
@pytest.mark.parametrize("backbone", list(BACKBONES.values()), ids=list(BACKBONES))
def test_every_step_of_every_backbone(backbone, kind):
    model = smarttrim(backbone)
    asked = []

    class Both(Observed):
        def before_layer(self, step, streams, guides):
            asked.append((step, streams, guides))
            return self.policy.before_layer(step, streams, guides)

    inputs = random_inputs(model.backbone.input_format, [9, 4, 2, 7, 9, 3], [0, 0, 1, 1, 1, 2])
    with torch.no_grad():
        model.trace(inputs, kind, Both(model.policy))
        assert asked
        for arguments in asked:
            fused, separate = model.policy.scores(*arguments), separately(model.policy, *arguments)
            assert fused.keep.keys() == separate.keep.keys() and fused.heads.keys() == separate.heads.keys()
            for name, scores in separate.keep.items():
                torch.testing.assert_close(fused.keep[name], scores, atol=1e-5, rtol=1e-5)
            for name, scores in separate.heads.items():
                torch.testing.assert_close(fused.heads[name], scores, atol=1e-5, rtol=1e-5)


class Asked:
    """A policy on one step of a small METER's fusion, and what is asked of it."""

    def __init__(self, make_model, **changes):
        self.policy = make_model({"type": "SmartTrim", "stable_init": False, **changes}).policy
        self.step = make_model("Dense").backbone.steps["fusion"][0]
        ids = torch.arange(2)
        self.streams = {n: TokenStream.start(torch.randn(2, 5, 64), ids=ids).pack() for n in ("text", "image")}

    @torch.no_grad()
    def assert_same(self, atol=1e-5):
        fused = self.policy.scores(self.step, self.streams, {})
        separate = separately(self.policy, self.step, self.streams, {})
        for name, scores in {**separate.keep, **separate.heads}.items():
            torch.testing.assert_close({**fused.keep, **fused.heads}[name], scores, atol=atol, rtol=0)
        return fused

    @torch.no_grad()
    def operations(self):
        """What computes, views left out, by name."""
        found = []

        class Collect(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                found.append(function.overloadpacket.__name__)
                return function(*args, **(kwargs or {}))

        self.policy.before_layer(self.step, self.streams, {})
        with Collect():
            self.policy.before_layer(self.step, self.streams, {})
        return [name for name in found if name in COMPUTE]


COMPUTE = (
    "addmm",
    "mm",
    "bmm",
    "baddbmm",
    "gelu",
    "native_layer_norm",
    "cat",
    "gather",
    "index_select",
    "ge",
    "add",
    "mul",
    "sum",
)


@pytest.fixture
def asked(make_model):
    return Asked(make_model)


def test_a_fusion_step_takes_a_handful_of_operations(asked):
    """Of both streams: norm, guide, direction, its products with the tokens, own ones of them, MLP, gate; and all heads."""
    of_a_stream = ["native_layer_norm", "index_select", "mm", "addmm", "gather", "addmm", "gelu", "addmm", "ge"]
    of_the_step = ["cat", "addmm", "gelu", "addmm", "ge"]
    assert sorted(asked.operations()) == sorted(2 * of_a_stream + of_the_step)


def write_in_place(policy):
    with torch.no_grad():
        policy.head_trimmers["fusion_0/text_self"].fc1.weight.mul_(3)


def write_under_inference_mode(policy):
    with torch.inference_mode():
        policy.token_trimmers["fusion_0/image"].query["text"].weight.mul_(3)


def load(policy):
    policy.load_state_dict({name: value * 2 if value.dim() == 2 else value for name, value in policy.state_dict().items()})


def go_through_bf16(policy):
    policy.to(torch.bfloat16).to(torch.float32)


def average_weights(policy):
    """As hooks that keep moving averages do: past autograd, then on to validation."""
    policy.head_trimmers["fusion_0/text_self"].fc1.weight.data.mul_(3)
    policy.train()
    policy.eval()


def replace_weight(policy):
    linear = policy.head_trimmers["fusion_0/image_cross"].fc2
    linear.weight = nn.Parameter(torch.randn_like(linear.weight))


def replace_trimmer(policy):
    other = copy.deepcopy(policy.token_trimmers["fusion_0/text"])
    excite(other, seed=3)
    policy.token_trimmers["fusion_0/text"] = other


def replace_all(policy):
    policy.head_trimmers = copy.deepcopy(policy.head_trimmers)
    excite(policy.head_trimmers, seed=3)


CHANGES = [
    write_in_place,
    write_under_inference_mode,
    load,
    go_through_bf16,
    average_weights,
    replace_weight,
    replace_trimmer,
    replace_all,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(asked, change):
    before = asked.assert_same()
    change(asked.policy)
    after = asked.assert_same(1e-6)
    assert any(not torch.equal(after.heads[name], scores) for name, scores in before.heads.items()) or any(
        not torch.equal(after.keep[name], scores) for name, scores in before.keep.items()
    )


def test_weights_are_stacked_once(asked, monkeypatch):
    built = []
    own = FusedStep.__init__
    monkeypatch.setattr(FusedStep, "__init__", lambda self, *rest: built.append(1) or own(self, *rest))
    for _ in range(3):
        asked.assert_same()
    assert len(built) == 1


def test_training_does_not_fuse(asked):
    asked.assert_same()
    asked.policy.train()
    decision = asked.policy.before_layer(asked.step, asked.streams, {})
    decision.heads["text.self"].sum().backward()
    assert asked.policy.head_trimmers["fusion_0/text_self"].fc1.weight.grad.any()


def test_hooks_of_a_trimmer_are_called(asked):
    asked.assert_same()
    called = []
    handle = asked.policy.head_trimmers["fusion_0/text_self"].register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        asked.policy.before_layer(asked.step, asked.streams, {})
    assert called == [1]
    handle.remove()
    asked.assert_same()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(asked, dtype):
    exact = asked.assert_same()
    with torch.autocast("cpu", dtype):
        fused = asked.assert_same(0.05)
    assert not torch.equal(fused.heads["text.self"], exact.heads["text.self"])
    assert torch.equal(asked.assert_same().heads["text.self"], exact.heads["text.self"])


def test_nothing_is_saved_or_copied(asked):
    names = set(asked.policy.state_dict())
    asked.assert_same()
    assert set(asked.policy.state_dict()) == names
    other = copy.deepcopy(asked.policy)
    file = io.BytesIO()
    torch.save(asked.policy, file)
    file.seek(0)
    for policy in (other, torch.load(file, weights_only=False)):
        write_in_place(policy)
        mine, asked.policy = asked.policy, policy
        asked.assert_same()
        asked.policy = mine
        asked.assert_same()


@pytest.fixture
def own_trimmers():
    """A token trimmer by the norm of tokens, and a head trimmer that is a subclass of ours."""

    class ByNorm(nn.Module):
        guides = ()

        def __init__(self, *, width, own, guides, stable_init):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, stream, guides):
            return layer_norm(stream.x, stream.x.shape[-1:])[..., 0] * self.scale

        def multiply_adds(self, tokens):
            return tokens

    class Doubled(HeadTrimmer):
        def forward(self, guides):
            return 2 * super().forward(guides)

    for kind in (ByNorm, Doubled):
        TRIMMERS.register_module(module=kind, force=True)
    yield {"token_trimmer": {"type": "ByNorm"}}, {"head_trimmer": {"type": "Doubled"}}
    for kind in (ByNorm, Doubled):
        TRIMMERS.module_dict.pop(kind.__name__)


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_trimmers_of_ones_own_run_beside(make_model, own_trimmers, which):
    changes = {key: value for index in which for key, value in own_trimmers[index].items()}
    asked = Asked(make_model, **changes)
    found = asked.assert_same()
    assert found.keep.keys() == {"text", "image"} and len(found.heads) == 4
    assert not all(is_fusible(trimmer) for trimmer in asked.policy.modules() if hasattr(trimmer, "multiply_adds"))


def test_parameters_made_in_inference_mode_are_not_stacked(make_model):
    with torch.inference_mode():
        asked = Asked(make_model)
        before = asked.policy.scores(asked.step, asked.streams, {}).heads["text.self"]
        asked.policy.head_trimmers["fusion_0/text_self"].fc1.weight.mul_(3)
        assert not torch.equal(asked.policy.scores(asked.step, asked.streams, {}).heads["text.self"], before)


def test_no_trimmer_no_step():
    assert FusedTrimmers().step("fusion.0", (nn.ModuleDict(), {}), (nn.ModuleDict(), {})) is None
