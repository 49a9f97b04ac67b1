from dataclasses import replace

import pytest
import torch

from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.record import StepRecord, attention_multiply_adds
from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import TokenStream

VALID = torch.arange(6) < torch.tensor([[6], [4]])
IDS = torch.tensor([0, 1])


@pytest.fixture
def stream(tokens):
    return TokenStream.start(tokens[:2], ids=IDS, valid=VALID)


def test_attention_by_hand(encoder_layer):
    view = encoder_layer(True)[1].layers["words"].attentions[0]
    n, m = torch.tensor([5.0]), torch.tensor([3.0])
    # q and out on 5 rows, k and v on 3, all 16 by 16; scores and sums 5 by 3, 16 channels each
    assert attention_multiply_adds(view, n, m, 4).item() == 2 * 5 * 256 + 2 * 3 * 256 + 2 * 5 * 3 * 16
    assert attention_multiply_adds(view, n, m, 1).item() == (2 * 5 * 256 + 2 * 3 * 256 + 2 * 5 * 3 * 16) / 4
    assert attention_multiply_adds(view, n, m, 0).item() == 0


def test_a_pass_by_hand(encoder_layer, fixed, stream):
    _, step = encoder_layer(True)
    keep = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    heads = {"words.self": torch.tensor([[True, True, False, False], [True] * 4])}
    execution = Execution(fixed({"words": keep}, heads), sample_ids=IDS, kind="packed")
    words = execution.start(stream)
    execution.linear(100, "words", words, name="text.map")
    words = execution.run([step], {"words": words})["words"]
    execution.linear(7, name="head.answer")
    record = execution.record
    layer = lambda n, share: share * (4 * n * 256 + 2 * n * n * 16) + n * 2 * 16 * 24  # noqa: E731
    assert record.dense_multiply_adds().tolist() == [600 + layer(6, 1) + 7, 400 + layer(4, 1) + 7]
    assert record.multiply_adds().tolist() == [600 + layer(3, 0.5) + 7, 400 + layer(2, 1) + 7]
    assert record.kept() == {"text.0/words": pytest.approx([0.5, 0.5])}
    assert record.heads() == {"text.0/words.self": pytest.approx([0.5, 1.0])}
    # all 4 heads are projected on the 5 tokens of the batch; 2 of them attend 3 by 3, and 4 attend 2 by 2
    executed = 1000 + 5 * (4 * 256 + 2 * 16 * 24) + 2 * (2 * 9 + 4 * 4) * 4 + 14
    assert record.executed_multiply_adds() == executed / 2


def test_heads_that_no_instance_needs_are_not_projected(encoder_layer, fixed, stream):
    _, step = encoder_layer(True)
    heads = {"words.self": torch.tensor([[True, False, True, False], [False, False, True, False]])}
    policy = fixed({}, heads)
    masked, packed = (Execution(policy, sample_ids=IDS, kind=kind) for kind in ("masked", "packed"))
    with torch.no_grad():
        in_place = masked.run([step], {"words": stream})["words"]
        left_out = packed.run([step], {"words": packed.start(stream)})["words"]
    torch.testing.assert_close(left_out.x, in_place.x[VALID])
    # 2 of 4 heads are projected on 10 tokens; 2 of them attend 6 by 6, and 1 attends 4 by 4
    assert packed.record.executed_multiply_adds() == (10 * (2 * 256 + 2 * 16 * 24) + 2 * (2 * 36 + 16) * 4) / 2


def test_masked_executes_everything(encoder_layer, fixed, stream):
    _, step = encoder_layer(True)
    execution = Execution(fixed({"words": torch.zeros(2, 6)}), sample_ids=IDS, kind="masked")
    words = execution.run([step], {"words": stream})["words"]
    execution.linear(100, "words", words, name="text.map")
    assert execution.record.multiply_adds().tolist() == [4 * 256 + 2 * 16 + 2 * 16 * 24 + 100] * 2
    assert execution.record.executed_multiply_adds() == 6 * (4 * 256 + 2 * 16 * 24) + 2 * 36 * 16 + 600


def test_shared_images_count_for_every_pair_and_run_once(encoder_layer, fixed, stream):
    _, step = encoder_layer(True)
    rows = torch.tensor([1, 0, 1])
    execution = Execution(fixed({"words": torch.zeros(2, 6)}), sample_ids=torch.arange(3), kind="packed")
    execution.linear(1000, name="text.patches", instances=2)
    execution.run([step], {"words": execution.start(stream)}, rows=rows)
    record = execution.record
    one = 4 * 256 + 2 * 16 + 2 * 16 * 24
    assert record.multiply_adds().tolist() == [1000 + one] * 3
    assert record.kept()["text.0/words"].tolist() == pytest.approx([1 / 4, 1 / 6, 1 / 4])
    assert record.executed_multiply_adds() == pytest.approx(2 * (1000 + one) / 3)


def test_a_pair_may_use_several_instances(encoder_layer, fixed, stream):
    """All of them count; a step that ran twice has one mean, over all of its runs."""
    _, step = encoder_layer(True)
    execution = Execution(fixed({"words": torch.zeros(2, 6)}), sample_ids=torch.arange(1), kind="packed")
    execution.run([step], {"words": execution.start(stream)}, rows=torch.tensor([[0, 1]]))
    execution.run([step], {"words": execution.start(stream)}, rows=torch.tensor([1]))
    record = execution.record
    one = 4 * 256 + 2 * 16 + 2 * 16 * 24
    assert record.multiply_adds().tolist() == [3 * one]
    assert record.kept()["text.0/words"].tolist() == pytest.approx([(1 / 6 + 1 / 4 + 1 / 4) / 3])


class Counts(Policy):
    """Costs 10 a token, and may cut tokens."""

    def trims(self, step):
        return frozenset({"words"}), frozenset({"words.self"})

    def multiply_adds(self, step, counts):
        return 10 * counts["words"]


def test_the_policy_is_counted(encoder_layer, stream):
    _, step = encoder_layer(True)
    execution = Execution(Counts(steps=[]), sample_ids=IDS, kind="packed")
    words = execution.start(stream)
    for _ in range(2):
        words = execution.run([step], {"words": words})["words"]
    execution.linear(100, "words", words, name="text.map")
    record = execution.record
    assert (record.multiply_adds() - record.dense_multiply_adds()).tolist() == [2 * 60, 2 * 40]
    # the first decision still sees every token; then one token, no head, and its MLP are left
    least = torch.tensor([60.0, 40.0]) + 10 + 2 * 2 * 16 * 24 + 100
    assert torch.equal(record.least_multiply_adds(), least)
    masked = Execution(Counts(steps=[]), sample_ids=IDS, kind="masked")
    masked.run([step], {"words": stream})
    assert masked.record.executed_multiply_adds() == masked.record.steps[0].executed / 2 + 60


def test_a_plan_by_hand(encoder_layer, stream):
    """What was decided plays no part; the first decision scores every token, later ones what the plan leaves."""
    _, step = encoder_layer(True)
    execution = Execution(Counts(steps=[]), sample_ids=IDS, kind="packed")
    words = execution.start(stream)
    execution.linear(7, "words", words, name="text.before")
    for _ in range(2):
        words = execution.run([step], {"words": words})["words"]
    execution.linear(100, "words", words, name="text.after")
    before, first, second, after = execution.record.plan(Counts(steps=[]), 0.5)
    kept = torch.tensor([1 + 5 / 2, 1 + 3 / 2])  # one token is protected
    layer = 0.5 * (4 * kept * 256 + 2 * kept**2 * 16) + kept * 2 * 16 * 24
    assert torch.equal(before.own, 7 * torch.tensor([6.0, 4.0]))
    assert torch.equal(first.own, layer)
    assert torch.equal(second.own, layer)
    assert torch.equal(after.own, 100 * kept)
    assert torch.equal(first.policy, 10 * torch.tensor([6.0, 4.0]))
    assert torch.equal(second.policy, 10 * kept)
    assert not before.policy.any()
    assert torch.equal(second.tokens["words"], kept)
    assert second.heads == {"words.self": 2.0}


def test_a_plan_that_differs_by_instance_and_step(encoder_layer, stream):
    first, second = encoder_layer(True)[1], replace(encoder_layer(True)[1], name="text.1")
    execution = Execution(Counts(steps=[]), sample_ids=IDS, kind="packed")
    words = execution.run([first, second], {"words": execution.start(stream)})["words"]
    execution.linear(100, "words", words, name="text.after")

    class Cuts:
        def tokens(self, step, stream, layout):
            assert stream == "words" and torch.equal(layout.ids, IDS)
            return torch.tensor({"text.0": [4.0, 3.0], "text.1": [2.0, 1.0]}[step.name])

        def heads(self, step, view, ids):
            assert view.name == "words.self" and torch.equal(ids, IDS)
            return torch.tensor([1.0, 4.0])

    plan = execution.record.plan(Counts(steps=[]), Cuts())
    for planned, kept in zip(plan[:2], ([4.0, 3.0], [2.0, 1.0]), strict=True):
        n, share = torch.tensor(kept), torch.tensor([0.25, 1.0])
        assert torch.equal(planned.own, share * (4 * n * 256 + 2 * n**2 * 16) + n * 2 * 16 * 24)
    assert plan[2].own.tolist() == [200, 100]
    assert [planned.policy.tolist() for planned in plan] == [[60, 40], [40, 30], [0, 0]]  # scored before each cut


def test_a_stream_that_begins_anew_is_whole_in_a_plan(encoder_layer, stream):
    _, step = encoder_layer(True)

    class CutsFirst(Policy):
        def trims(self, each):
            return frozenset({"words"} if each is step else ()), frozenset()

    for anew, left in (((), [1.0, 1.0]), (("words",), [6.0, 4.0])):
        execution = Execution(CutsFirst(steps=[]), sample_ids=IDS, kind="masked")
        execution.run([step, replace(step, anew=frozenset(anew))], {"words": stream})
        plan = execution.record.plan(execution.policy, 0.0)
        assert [planned.tokens["words"].tolist() for planned in plan] == [[1.0, 1.0], left]


def test_decided_compute_is_differentiable(encoder_layer, fixed, stream):
    _, step = encoder_layer(True)
    keep = torch.ones(2, 6, requires_grad=True)
    heads = torch.ones(2, 4, requires_grad=True)
    execution = Execution(fixed({"words": keep}, {"words.self": heads}), sample_ids=IDS, kind="masked")
    execution.run([step], {"words": stream})
    execution.record.multiply_adds().sum().backward()
    slope = 4 * 256 + 2 * 2 * 6 * 16 + 2 * 16 * 24  # of n (projections + 2 n d + MLP) at n = 6
    torch.testing.assert_close(keep.grad[0], torch.tensor([0.0] + [slope] * 5))
    torch.testing.assert_close(heads.grad[0], torch.full((4,), (4 * 6 * 256 + 2 * 36 * 16) / 4.0))


def test_what_is_read_ahead_is_the_policys_own(encoder_layer, fixed, stream):
    _, step = encoder_layer(True)
    layer = lambda n: 4 * n * 256 + 2 * n * n * 16 + n * 2 * 16 * 24  # noqa: E731
    for kind in ("masked", "packed"):
        execution = Execution(fixed({"words": torch.zeros(2, 6)}), sample_ids=torch.arange(3), kind=kind)
        words = execution.start(stream)
        rows = torch.tensor([1, 0, 1])
        after = execution.read_ahead([step, step], {"words": words}, rows=rows)["words"]
        whole, _ = run_layer(step, run_layer(step, {"words": words}, Policy(steps=[]))[0], Policy(steps=[]))
        assert torch.equal(after.x, whole["words"].x)
        record = execution.record
        assert record.multiply_adds().tolist() == [2 * layer(4), 2 * layer(6), 2 * layer(4)]
        assert torch.equal(record.least_multiply_adds(), record.multiply_adds())
        assert not record.dense_multiply_adds().any() and not record.kept() and not record.steps
    assert execution.record.executed_multiply_adds() == pytest.approx(2 * (10 * (4 * 256 + 768) + 2 * (36 + 16) * 16) / 3)


def test_a_stream_goes_on_as_two(twin_layer, fixed):
    """Cut as 'image', it is 'image0' and 'image1' for the text: the least counts what is left of them."""
    _, _, step = twin_layer("mean")

    class CutsBefore(Policy):
        def trims(self, step):
            return frozenset({"image"} & step.streams().keys()), frozenset()

    image = TokenStream.start(torch.randn(2, 5, 12), ids=IDS)
    one = twin_layer("mean")[2].layers["words"]
    before = LayerStep("image.0", {"image": replace(one, attentions=(), joins=())})
    execution = Execution(CutsBefore(steps=[]), sample_ids=IDS, kind="masked")
    execution.record.entries.append(StepRecord(before, {"image": image.layout}, {"image": image.layout}, {}, 0))
    words = TokenStream.start(torch.randn(2, 6, 16), ids=IDS)
    execution.run([step], {"words": words, "image0": image, "image1": image})
    n, m = 6, 2  # of each image its first token
    fusion = 2 * n * 2 * 256 + 2 * m * 16 * 12 + 2 * n * m * 16 + n * 768
    assert execution.record.least_multiply_adds().tolist() == [768 + fusion] * 2


def test_what_deciding_took_is_read_from_the_device_at_once(encoder_layer, fixed, stream, monkeypatch):
    _, step = encoder_layer(True)
    policy = fixed()
    execution = Execution(policy, sample_ids=IDS, kind="packed")
    execution.run([step, replace(step, name="text.1")], {"words": execution.start(stream)})
    without = execution.record.executed_multiply_adds()
    policy.multiply_adds = lambda step, counts: 3 * counts["words"]
    reads, own = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor) or own(tensor))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda tensor: pytest.fail("one more is read"))
    assert execution.record.executed_multiply_adds() == without + 2 * 3 * (6 + 4) / 2
    assert len(reads) == 1
