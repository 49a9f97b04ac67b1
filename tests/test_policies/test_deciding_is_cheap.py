"""What deciding costs at inference: multiply-adds of METER at its native size, and no waiting for the device."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from smarttrim_mm.layers.record import StepRecord
from smarttrim_mm.policies.imposed import ImposedKeep
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import random_inputs

aten = torch.ops.aten
WAITING = {
    aten.nonzero,
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.masked_select,
    aten.equal,
    aten.bincount,
    aten.repeat_interleave,
}


class Watch(TorchDispatchMode):
    """Notes what would wait for a device."""

    def __init__(self):
        super().__init__()
        self.waited, self.ran = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ran += 1
        by_mask = function.overloadpacket in (aten.index, aten.index_put_) and any(
            index is not None and index.dtype is torch.bool for index in args[1]
        )
        if function.overloadpacket in WAITING or by_mask:
            self.waited.append(str(function))
        return function(*args, **(kwargs or {}))


def watch(policy, monkeypatch):
    """The calls of ``policy.before_layer`` alone."""
    mode, own = Watch(), policy.before_layer

    def watched(*arguments):
        with mode:
            return own(*arguments)

    monkeypatch.setattr(policy, "before_layer", watched)
    return mode


def test_the_watch_sees_what_waits():
    values = torch.arange(3.0)
    for read in (
        lambda: values[0].item(),
        lambda: float(values[0]),
        lambda: bool(values[0]),
        lambda: values[values > 1],
        lambda: (values > 1).nonzero(),
    ):
        with Watch() as mode:
            read()
        assert mode.waited
    with Watch() as mode:
        values[torch.tensor([1])]
    assert not mode.waited and mode.ran


@pytest.mark.parametrize("kind", ["packed", "masked"])
def test_smarttrim_waits_for_nothing(make_model, make_inputs, monkeypatch, kind):
    model = make_model({"type": "SmartTrim", "stable_init": False}, {"text_first": True})
    inputs = make_inputs(model)
    with torch.inference_mode():
        _, before = model.trace(inputs, kind)  # reads the threshold
        mode = watch(model.policy, monkeypatch)
        _, record = model.trace(inputs, kind)
    assert mode.ran > 50 and not mode.waited
    assert torch.equal(record.multiply_adds(), before.multiply_adds())


def test_the_threshold_is_read_again_when_it_changed(make_model, make_inputs, monkeypatch):
    model = make_model({"type": "SmartTrim", "stable_init": False})
    inputs = make_inputs(model)
    found = []
    for change in (
        lambda policy: None,
        lambda policy: policy.set_knob(0.7),
        lambda policy: policy.load_state_dict({**policy.state_dict(), "knob_value": torch.tensor(0.25)}),
        lambda policy: policy.to(torch.bfloat16).to(torch.float32).knob_value.fill_(0.75),
    ):
        with torch.inference_mode():
            change(model.policy)
            model.trace(inputs)
        found.append(model.policy.threshold)
    assert found == pytest.approx([0.5, 0.7, 0.25, 0.75])


def test_imposed_decisions_wait_for_each_tensor_of_identities_once(make_model, make_inputs, monkeypatch):
    model = make_model({"type": "SmartTrim", "stable_init": False})
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    policy = ImposedKeep.around(model.policy, steps, spread=0.1).at(0.5)
    inputs = make_inputs(model)
    with torch.inference_mode():
        model.trace(inputs, policy=policy)
        mode, read, own = watch(policy, monkeypatch), [], torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor) or own(tensor))  # is not dispatched
        deciding, asked = policy.before_layer, []

        def before_layer(*arguments):
            read.clear()
            decision = deciding(*arguments)
            asked.extend(read)
            return decision

        monkeypatch.setattr(policy, "before_layer", before_layer)
        model.trace(replace(make_inputs(model), sample_ids=inputs.sample_ids.clone()), policy=policy)
        assert len(asked) == len({id(ids) for ids in asked}) <= 3
        first = len(asked)
        ahead = replace(make_inputs(model), sample_ids=inputs.sample_ids.clone())
        policy.prepare(ahead.sample_ids, ahead.image_ids)
        model.trace(ahead, policy=policy)
        assert len(asked) - first < first
    assert mode.ran > 50 and not mode.waited


def counted(model, image, text):
    """Multiply-adds of the layers, and of deciding on them with everything kept."""
    dense = policy = 0.0
    counts = {"image": torch.tensor([image]), "text": torch.tensor([text])}
    for stage in model.backbone.steps.values():
        for step in stage:
            of_step = {name: counts[name] for name in step.streams()}
            dense += float(StepRecord(step, {}, {}, {}, 0).cost(of_step, {}, of_step, {}))
            policy += float(model.policy.multiply_adds(step, of_step))
    return dense, policy


@pytest.mark.parametrize("text_first", [False, True])
def test_deciding_takes_less_than_two_hundredths_of_meters_multiply_adds(text_first):
    """At 288 px, with nothing dropped, against the layers alone: patches and head are left out."""
    backbone = {"type": "METER", "num_classes": 3129, "vision": {"image_size": 288}, "text_first": text_first}
    with torch.device("meta"):
        model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "SmartTrim"}}).eval()
    dense, policy = counted(model, 325.0, 50.0)
    assert dense == pytest.approx(54.1e9, rel=0.02)
    assert 0.005 < policy / dense < 0.01
    assert random_inputs(model.backbone.input_format, [50]).images.shape[-1] == 288
