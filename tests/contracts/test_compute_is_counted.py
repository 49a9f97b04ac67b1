"""Invariant 4: what a record says is what torch multiplied; what was decided and what was executed are kept apart."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from smarttrim_mm.testing import Replay, Strip, count_multiply_adds

COUNTED = {*flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu}
MULTIPLIES = ("mm", "mv", "matmul", "dot", "conv", "linear", "attention", "einsum", "ger", "outer", "kron", "cdist")


@torch.no_grad()
def traced(model, inputs, kind="packed", policy=None):
    (_, record), counted = count_multiply_adds(lambda: model.trace(inputs, kind, policy))
    return record, counted


def keeping_all_tokens(model, inputs):
    """Decisions with every token and no head."""
    replay = Replay(traced(model, inputs, "masked", Strip())[0])
    replay.grids = {step: {name: torch.ones_like(grid) for name, grid in grids.items()} for step, grids in replay.grids.items()}
    return replay


def test_records_agree_with_the_counter_at_batch_1(build, inputs_of, backbone, policy):
    model = build(backbone, policy)
    inputs = inputs_of(model)
    for pair in (0, 2):  # the longest text, and one without words
        record, counted = traced(model, inputs.select(torch.tensor([pair])))
        if record.pairs_per_sample > 1:  # its pairs are a batch: heads that either needs are projected for both
            assert record.executed_multiply_adds() == pytest.approx(counted, rel=0.01)
            assert record.executed_multiply_adds() >= float(record.multiply_adds()) * (1 - 1e-6)
            continue
        assert float(record.multiply_adds()) == pytest.approx(counted, rel=0.01)
        assert record.executed_multiply_adds() == pytest.approx(float(record.multiply_adds()), rel=1e-6)


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_executed_agrees_with_the_counter_in_any_batch(build, inputs_of, backbone, policy, kind):
    model = build(backbone, policy)
    inputs = inputs_of(model)
    record, counted = traced(model, inputs, kind)
    assert record.executed_multiply_adds() == pytest.approx(counted / record.samples, rel=0.01)


def test_dense_agrees_with_the_counter_on_the_host(build, inputs_of, backbone):
    model = build(backbone, {"type": "Dense"})
    inputs = inputs_of(model).select(torch.tensor([3]))
    record, _ = traced(model, inputs)
    with torch.no_grad():
        _, counted = count_multiply_adds(lambda: model.host_forward(inputs))
    assert float(record.dense_multiply_adds()) == pytest.approx(counted, rel=0.001)


def test_the_counter_misses_nothing(build, inputs_of, backbone, policy):
    """Whatever is dispatched is counted, or multiplies no matrices."""
    seen = set()

    class Collect(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(function.overloadpacket)
            return function(*args, **(kwargs or {}))

    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad(), Collect():
        for kind in ("masked", "packed"):
            model.trace(inputs, kind)
        model.trace(inputs.select(torch.tensor([0])))
    missed = {str(op) for op in seen - COUNTED if any(part in str(op).rpartition(".")[2] for part in MULTIPLIES)}
    assert not missed
    assert torch.ops.aten.addmm in seen


def test_decided_is_not_executed(build, inputs_of, backbone):
    """Padding and heads that are off are executed in dense shapes; packed, at most what some instance needs is, for all."""
    model = build(backbone, {"type": "Dense"})
    inputs = inputs_of(model).unshared()
    dense, _ = traced(model, inputs)
    replay = keeping_all_tokens(model, inputs)
    for heads in replay.heads.values():
        for grid in heads.values():
            grid[0] = True
    packed, _ = traced(model, inputs, "packed", replay)
    masked, _ = traced(model, inputs, "masked", replay)
    assert torch.equal(packed.multiply_adds(), masked.multiply_adds())
    assert (packed.multiply_adds() <= dense.multiply_adds()).all()
    assert packed.multiply_adds().mean() < dense.multiply_adds().mean()
    assert packed.executed_multiply_adds() < dense.executed_multiply_adds()
    assert packed.executed_multiply_adds() >= float(packed.multiply_adds().mean()) * (1 - 1e-6)
    assert masked.executed_multiply_adds() > packed.executed_multiply_adds()
    for record in (packed, masked):
        assert torch.equal(record.dense_multiply_adds(), dense.dense_multiply_adds())


def test_heads_that_are_off_cost_nothing_at_batch_1(build, inputs_of, backbone):
    """Neither scores nor projections: with half of the heads, half of what heads cost is executed."""
    model = build(backbone, {"type": "Dense"})
    inputs = inputs_of(model).select(torch.tensor([0]))
    replay = keeping_all_tokens(model, inputs)

    def executed(share):
        for heads in replay.heads.values():
            for name, grid in heads.items():
                heads[name] = (torch.arange(grid.shape[1]) >= round(grid.shape[1] * (1 - share))).expand(grid.shape)
        record, counted = traced(model, inputs, "packed", replay)
        assert record.executed_multiply_adds() == pytest.approx(counted, rel=0.001)
        assert record.executed_multiply_adds() == pytest.approx(float(record.multiply_adds()), rel=1e-6)
        return counted

    none, every = executed(0), executed(1)
    assert none < every
    assert executed(0.5) == pytest.approx((none + every) / 2, rel=1e-6), "small configs need even numbers of heads"


@torch.no_grad()
def test_the_least_is_reached_by_keeping_nothing(build, inputs_of, backbone, policy):
    model = build(backbone, policy)
    inputs = inputs_of(model)
    for kind in ("masked", "packed"):
        _, record = model.trace(inputs, kind)
        _, stripped = model.trace(inputs, kind, Strip(model.policy))
        layouts = [(name, layout) for entry in record.steps for name, layout in entry.before.items()]
        if all(torch.equal(model.policy.least_tokens(name, layout), layout.floor()) for name, layout in layouts):
            torch.testing.assert_close(stripped.multiply_adds(), record.least_multiply_adds())
        else:  # it keeps more than protected tokens in any case, which is its own test's
            assert (stripped.multiply_adds() < record.least_multiply_adds()).all()
        assert (record.least_multiply_adds() <= record.multiply_adds() + 1).all()


def test_a_policy_cuts_only_what_it_says(build, inputs_of, backbone, policy):
    model = build(backbone, policy)
    with torch.no_grad():
        model.policy.train()
        _, record = model.trace(inputs_of(model), "masked")
    for entry in record.steps:
        streams, attentions = model.policy.trims(entry.step)
        assert entry.heads.keys() <= attentions
        for name, before in entry.before.items():
            if name not in streams:
                assert torch.equal(entry.tokens[name].kept_grid(), before.kept_grid()), (entry.step.name, name)
        reduced = model.policy.reduces(entry.step)
        assert entry.merged.keys() <= reduced and entry.run.keys() <= model.policy.skips(entry.step)
        for name, layout in entry.after.items():
            if name not in reduced:
                assert torch.equal(entry.tokens[name].kept_grid(), layout.kept_grid()), (entry.step.name, name)


def test_tokens_merge_into_tokens_that_stay(build, inputs_of, backbone, policy):
    """Else what they stand for would be lost, and packed, they would merge into some other instance's."""
    model = build(backbone, policy)
    with torch.no_grad():
        records = [model.trace(inputs_of(model), "masked")[1]]
        if model.policy.knob is not None:
            model.policy.set_knob((model.policy.knob.low + model.policy.knob.high) / 2)
            records.append(model.trace(inputs_of(model), "masked")[1])
    for entry in (entry for record in records for entry in record.steps):
        for name, merged in entry.merged.items():
            layout, stays = entry.tokens[name], entry.after[name].kept_grid()
            own = torch.arange(layout.size).expand_as(merged.into)
            away = (merged.into != own) & layout.kept_grid() & ~layout.protected
            assert stays.gather(1, merged.into)[away].all() and not stays[away].any(), (entry.step.name, name)


def test_the_knob_goes_from_much_to_little(build, inputs_of, backbone, policy):
    model = build(backbone, policy)
    knob = model.policy.knob
    if knob is None:
        with pytest.raises(ValueError, match="no calibration knob"):
            model.policy.set_knob(0.5)
        return
    inputs = inputs_of(model)
    compute = []
    for value in (knob.low, knob.high):
        model.policy.set_knob(value)
        assert model.policy.get_knob() == pytest.approx(value)
        with torch.no_grad():
            compute.append(model.trace(inputs)[1].multiply_adds().mean())
    assert compute[1] < compute[0]
    with pytest.raises(ValueError, match="2000000"):
        model.policy.set_knob(2_000_000)
