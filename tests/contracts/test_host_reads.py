"""What packed inference reads from its device: lengths, heads, skipped parts, by ``to_host``, at most once for each decision.

A GPU works off what it was asked to do while the host asks for more; a read waits until it is done. On a CPU a read costs
nothing and is easily slipped in: here they are counted.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import smarttrim_mm
from smarttrim_mm.ops import host
from smarttrim_mm.structures import PackedLayout, PaddedLayout, TokenStream
from smarttrim_mm.testing import backbone_cases, policy_cases

aten = torch.ops.aten
# the size of what they give, or the number, is known to the device alone
WAITING = {
    aten._local_scalar_dense,
    aten._unique,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
    aten.unique_dim_consecutive,
}
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
READS = ("item", "tolist", "cpu", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__")
# what reads a tensor that is on the host whatever the device is
ON_THE_HOST = {
    "_coordinates": "an attribute of mmpretrain's head that is no buffer, which `to` leaves where it was made",
}
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}
PACKAGE = str(Path(smarttrim_mm.__file__).parent)


def waits(function, args, kwargs):
    packet = function.overloadpacket
    if packet in BY_INDEX:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return packet in WAITING or (packet is aten.repeat_interleave and kwargs.get("output_size") is None)


def caller():
    """The function of the package that is running."""
    frame = sys._getframe(1)
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return "no function of the package" if frame is None else frame.f_code.co_name


class Watch(TorchDispatchMode):
    """While it is entered, notes what is read from the device, and what should have been."""

    def __init__(self):
        super().__init__()
        self.on = False
        self.reads, self.due, self.others = Counter(), Counter(), []

    def __enter__(self):
        self.reads, self.due, self.others, self.on = Counter(), Counter(), [], True
        return super().__enter__()

    def __exit__(self, *error):
        self.on = False
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if waits(function, args, kwargs or {}):
            self.note(str(function))
        return function(*args, **(kwargs or {}))

    def note(self, what):
        if self.on and (where := caller()) not in ON_THE_HOST:
            self.others.append(f"{what} in {where}")

    def spy(self, name, own):
        def read(tensor, *args, **kwargs):
            self.note(f"Tensor.{name}")
            return own(tensor, *args, **kwargs)

        return read

    def to_host(self, tensors):
        if tensors:
            self.reads[caller()] += 1
        before, self.on = self.on, False
        try:
            return TO_HOST(tensors)
        finally:
            self.on = before

    def counting(self, own, name, reads):
        """A method of which one read is due if ``reads`` says so of what it belongs to."""

        def method(of, *args):
            self.due[name] += reads(of)
            return own(of, *args)

        return method


TO_HOST = host.to_host


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, watch.spy(name, getattr(torch.Tensor, name)))
    for name, module in list(sys.modules.items()):
        if name.startswith("smarttrim_mm") and vars(module).get("to_host") is TO_HOST:
            monkeypatch.setattr(module, "to_host", watch.to_host)
    for cls, name, reads in (
        (TokenStream, "pack", lambda stream: isinstance(stream.layout, PaddedLayout) and not stream.layout.whole),
        (PackedLayout, "expand", lambda _: True),
    ):
        monkeypatch.setattr(cls, name, watch.counting(getattr(cls, name), name, reads))
    return watch


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        lambda x: float(x[0]),
        lambda x: [1, 2, 3][x[1].long()],
        lambda x: 1 if x[0] > 1 else 0,
        lambda x: x[x > 1],
        lambda x: x.index_put((x > 1,), x[:1]),
        lambda x: (x > 1).nonzero(),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.equal(x, x),
    ],
)
def test_the_watch_sees_what_is_read(watch, read):
    x = torch.arange(3.0)
    with torch.no_grad(), watch:
        read(x)
    assert watch.others


def test_the_watch_lets_go_of_what_is_not_read(watch):
    x = torch.arange(3.0)
    with torch.no_grad(), watch:
        x[x.long()] + x.masked_fill(x > 1, 0) + x.repeat_interleave(2)[:3]
        x.repeat_interleave(x.long(), output_size=3)
        torch.nonzero_static(x > 1, size=1)
    assert not watch.others and not watch.reads


def traced(watch, model, inputs):
    """The record of a forward that was watched."""
    # without gradients, not in inference mode, which would hide what composed operations consist of
    with torch.no_grad(), watch:
        return model.trace(inputs)[1]


def test_lengths_and_heads_are_read_and_nothing_else(build, inputs_of, backbone, watch):
    model = build(backbone, SMARTTRIM)
    traced(watch, model, inputs_of(model, lengths=[3, 8, 5]))  # reads the threshold, which stays known
    for batch in ({"lengths": [5, 7, 3, 6]}, {"lengths": [9, 4, 2, 7], "image_index": [0, 0, 1, 1]}, {"lengths": [4]}):
        record = traced(watch, model, inputs_of(model, **batch))
        assert not watch.others, batch
        deciding = sum(any(model.policy.trims(entry.step)) for entry in record.steps)
        assert 0 < watch.reads.pop("_apply") <= deciding, batch
        assert watch.reads.pop("start", 0) <= 1, batch  # checks that what has no guide token has protected ones
        assert watch.reads == {name: count for name, count in watch.due.items() if count}, batch


@pytest.mark.parametrize("name", [name for name in policy_cases() if not name.startswith("Random/")])  # reads its knob
def test_no_policy_reads_anything_itself(build, inputs_of, name, watch):
    model = build(backbone_cases()["METER/text first"], policy_cases()[name])
    traced(watch, model, inputs_of(model, lengths=[3, 8, 5]))  # SmartTrim reads its threshold once
    record = traced(watch, model, inputs_of(model, lengths=[9, 4, 2, 7], image_index=[0, 0, 1, 1]))
    assert not watch.others
    first = sum(any((*model.policy.trims(entry.step), *model.policy.skips(entry.step))) for entry in record.steps)
    second = sum(bool(model.policy.reduces(entry.step)) for entry in record.steps)
    assert watch.reads["_apply"] <= first + second


@pytest.mark.parametrize(
    ("host", "shape", "reads"),
    [
        ("METER/shared images", {"lengths": [5, 7, 3, 6]}, {"pack": 1, "_apply": 7}),
        ("METER/shared images", {"lengths": [5, 7, 3], "image_index": [0, 1, 0]}, {"pack": 1, "expand": 1, "_apply": 7}),
        ("LavisBackbone/blip_vqa text first", {"lengths": [5, 7, 3, 6]}, {"pack": 2, "expand": 1, "_apply": 4}),
    ],
)
def test_how_often(build, inputs_of, watch, host, shape, reads):
    """For each of METER's seven steps (two of the text, three of the image, two of the fusion), and as texts are packed."""
    model = build(backbone_cases()[host], SMARTTRIM)
    inputs = inputs_of(model, **shape)
    traced(watch, model, inputs)
    traced(watch, model, inputs)
    assert watch.reads == reads


def test_a_policy_that_keeps_everything_makes_no_read_but_the_first(build, inputs_of, watch):
    model = build(backbone_cases()["METER/shared images"], {"type": "Dense"})
    traced(watch, model, inputs_of(model, lengths=[5, 7, 3, 6]))
    assert watch.reads == {"pack": 1} and not watch.others
