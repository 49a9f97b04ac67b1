"""The paper's METER: parameters and multiply-adds, without its weights."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.record import StepRecord
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import count_multiply_adds, random_inputs

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "meter").glob("*.py"))
TEXT_LENGTH = 50


def build_on_meta(config):
    with torch.device("meta"):
        return MODELS.build(config).eval()


def meter(image_size, num_classes=3129):
    backbone = {"type": "METER", "num_classes": num_classes, "vision": {"image_size": image_size}}
    return build_on_meta({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "Dense"}})


class Planned(Execution):
    """Records the layers without running them."""

    def run(self, steps, streams, *, guides=None, rows=None):
        layouts = {name: stream.layout for name, stream in streams.items()}
        self.record.entries.extend(StepRecord(step, layouts, layouts, {}, 0, rows) for step in steps)
        return streams


@torch.no_grad()
def dense_compute(model):
    """Multiply-adds of one pair by stage, from the records; the weights take no memory, and layers are not run."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    inputs = random_inputs(model.backbone.input_format, [TEXT_LENGTH])
    execution = Planned(model.dense, sample_ids=inputs.sample_ids, kind="masked")
    model.backbone(inputs, execution)
    stages = dict.fromkeys(model.backbone.steps, 0.0)
    for entry in execution.record.steps:
        stages[entry.step.stage] += float(entry.dense())
    return stages, float(execution.record.dense_multiply_adds())


def numel(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters():
    """Part by part from the sizes: 78.8 M + 124.1 M for the encoders, 113.4 M for fusion, 2.4 M + 7.2 M around it."""
    backbone = meter(288).backbone
    linear, mlp, norm = 768 * 768 + 768, 2 * 768 * 3072 + 3072 + 768, 2 * 768
    layer = 4 * linear + mlp + 2 * norm
    vision = 768 * 3 * 16 * 16 + 768 + (18 * 18 + 1) * 768 + 2 * norm + 11 * layer
    text = (50265 + 514 + 1) * 768 + norm + 12 * layer
    fusion = 6 * (layer + 4 * linear + norm)  # a cross-attention more
    around = 4 * linear + 2 * 768  # two transforms, two poolers, two token types
    head = 1536 * 1536 + 1536 + 2 * 1536 + 1536 * 3129 + 3129
    assert numel(backbone.trunk) == vision
    assert numel(backbone.text_transformer) == text
    assert numel(backbone.cross_modal_text_layers) == numel(backbone.cross_modal_image_layers) == fusion
    assert numel(backbone.head) == head
    assert numel(backbone) == vision + text + 2 * fusion + around + head == 325_823_289


@pytest.mark.parametrize(
    ("image_size", "published", "by_stage"),
    [
        (288, 54.1e9, {"image": 27.3e9, "text": 4.3e9, "fusion": 22.6e9}),
        (384, 94.3e9, {"image": 50.9e9, "text": 4.3e9, "fusion": 39.2e9}),
    ],
)
def test_multiply_adds(image_size, published, by_stage):
    """The numbers of the published architecture, at text length 50; and torch's own count of the host's forward."""
    model = meter(image_size)
    inputs = random_inputs(model.backbone.input_format, [TEXT_LENGTH]).to("meta")
    with torch.no_grad():
        _, counted = count_multiply_adds(lambda: model.host_forward(inputs))
    stages, total = dense_compute(model)
    assert total == pytest.approx(published, rel=0.02)
    assert total == pytest.approx(counted, rel=1e-4)
    assert stages == pytest.approx(by_stage, rel=0.02)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path):
    model = build_on_meta(Config.fromfile(path).model)
    assert numel(model.backbone) > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("policy", [{"type": "Dense"}, {"type": "SmartTrim", "stable_init": False}], ids=lambda p: p["type"])
def test_invariants_at_native_size(policy):
    """Dense equals the host, and masked equals packed, with random weights."""
    backbone = {"type": "METER", "num_classes": 13, "text_first": True}
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy}).eval()
    inputs = random_inputs(model.backbone.input_format, [50, 12], [0, 0])
    with torch.no_grad():
        (masked, record), (packed, _) = model.trace(inputs, "masked"), model.trace(inputs, "packed")
        torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)
        if policy["type"] == "Dense":
            torch.testing.assert_close(packed, model.host_forward(inputs), atol=1e-4, rtol=0)
        else:
            assert (record.multiply_adds() < 0.6 * record.dense_multiply_adds()).all()
