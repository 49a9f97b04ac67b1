"""The cost sheet: its totals are torch's own, and running what it plans costs what it says."""

import pytest
import torch

from smarttrim_mm.engine.cost_sheet import Cuts, cost_sheet, places_of, trace_dense
from smarttrim_mm.layers.record import AheadRecord
from smarttrim_mm.structures import Decision
from smarttrim_mm.testing import Strip, count_multiply_adds, random_inputs

LENGTH = 10  # eight words: half of them is a whole number


class KeepHalf(Strip):
    """Keeps the first half of what is not protected, and half of the heads."""

    def before_layer(self, step, streams, guides):
        decision = super().before_layer(step, streams, guides)
        layouts = {name: streams[name].layout for name in decision.keep}
        halves = {name: (layout.full() - layout.floor()) / 2 for name, layout in layouts.items()}
        assert all((half % 1 == 0).all() for half in halves.values()), "small configs need an even number of patches"
        first = {name: layer.first or 0 for name, layer in step.layers.items()}  # queries before the words
        keep = {
            name: layout.positions() <= layout.per_token(halves[name]) + first.get(name, 0) for name, layout in layouts.items()
        }
        heads = {name: torch.arange(gate.shape[1]).expand(gate.shape) % 2 == 0 for name, gate in decision.heads.items()}
        return Decision(keep=keep, heads=heads)

    def reads(self, step):
        return frozenset()  # decides for free


def length_of(model):
    return LENGTH if "vocab_size" in model.backbone.input_format else None  # some models read no texts


def test_dense_total_is_what_torch_counts(build, backbone, policy):
    model = build(backbone, policy)
    sheet = cost_sheet(model, text_length=length_of(model))
    assert sheet.dense == pytest.approx(sheet.counted, rel=0.01)
    assert sum(part.dense for part in sheet.parts) == pytest.approx(sheet.dense, rel=1e-6)
    assert sum(layer.dense for layer in sheet.layers) == pytest.approx(sheet.dense, rel=1e-6)


def test_a_plan_costs_what_running_it_costs(build, backbone):
    model = build(backbone, {"type": "Dense"})
    inputs = random_inputs(model.backbone.input_format, [LENGTH])
    record, _ = trace_dense(model, inputs)
    everything = places_of([entry.step for entry in record.steps])["everything"]
    with torch.no_grad():
        _, counted = count_multiply_adds(lambda: model.trace(inputs, policy=KeepHalf()))
    assert sum(float(planned.own) for planned in record.plan(everything, 0.5)) == pytest.approx(counted, rel=0.01)


def test_a_plan_spans_from_everything_to_the_least(build, backbone, policy):
    model = build(backbone, policy)
    record, _ = trace_dense(model, random_inputs(model.backbone.input_format, [LENGTH]))
    whole, least = (sum(float(p.own) for p in record.plan(model.policy, share)) for share in (1.0, 0.0))
    assert whole == pytest.approx(float(record.dense_multiply_adds()), rel=1e-6)
    assert (least < whole) == any(model.policy.may_cut(entry.step) for entry in record.steps)


def test_budget_is_met_where_the_policy_may_cut(build, backbone, policy):
    model = build(backbone, policy)
    speedup = (cost_sheet(model, text_length=length_of(model)).best_of_policy or 4.0) ** 0.5
    sheet = cost_sheet(model, text_length=length_of(model), speedup=speedup)
    assert sum(part.left for part in sheet.parts) == pytest.approx(sheet.dense / speedup, rel=1e-4)
    assert sum(layer.left + layer.policy for layer in sheet.layers) == pytest.approx(sheet.dense / speedup, rel=1e-4)
    everything = next(place for place in sheet.places if place.name == "everything")
    assert everything.best_of_policy == sheet.best_of_policy
    assert all(place.best <= everything.best for place in sheet.places)
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    if not any(model.policy.skips(step) for step in steps):  # tokens and heads cannot save what skipping layers can
        assert all((place.best_of_policy or 0) <= place.best for place in sheet.places)


def test_what_is_read_ahead_for_the_policy_is_planned(build, backbone, policy):
    model = build(backbone, policy)
    record, _ = trace_dense(model, random_inputs(model.backbone.input_format, [LENGTH]))
    ahead = [entry for entry in record.entries if isinstance(entry, AheadRecord)]
    plan = record.plan(model.policy, 1.0)
    costs = [float(planned.policy) for planned in plan if isinstance(planned.entry, AheadRecord)]
    assert costs == [float(entry.multiply_adds[0]) for entry in ahead] and 0 not in costs
    assert not ahead or any(model.policy.reads(entry.step) for entry in record.steps)
    assert sum(float(planned.policy) for planned in record.plan(Cuts({}, {}), 1.0)) == 0


def test_longest_text_is_the_longest(build, backbone):
    model = build(backbone, {"type": "Dense"})
    shape = model.backbone.input_format
    if "max_text_length" not in shape:
        return
    longest = shape["max_text_length"]
    assert cost_sheet(model, text_length=longest).text_length == longest
    with pytest.raises((IndexError, RuntimeError)):
        trace_dense(model, random_inputs(shape, [longest + 1]))
    with pytest.raises(ValueError, match=f"text length is {longest + 1}; expected 2 to {longest}"):
        cost_sheet(model, text_length=longest + 1)
