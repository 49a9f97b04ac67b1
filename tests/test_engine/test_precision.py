"""Every contender runs in the numbers asked for, on the hosts that are benchmarked."""

import pytest
import torch

from smarttrim_mm.engine.contenders import HOST, PACKED, dense_contenders, in_precision, policy_contenders
from smarttrim_mm.engine.imposing import impose
from smarttrim_mm.engine.precision import PRECISIONS
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs

CASES = backbone_cases()
HOSTS = [
    "METER/shared images",
    "LavisBackbone/blip_vqa text first",
    "LavisBackbone/blip_nlvr shared images",
    "MMPretrainBackbone/BlipVQA text first",
]


def build(name):
    policy = {"type": "SmartTrim", "stable_init": False, "threshold": 0.9995}
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[name], "policy": policy})
    excite(model)
    return model.eval()


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("dtype", ["bf16", "autocast-bf16"])
def test_all_contenders_run_and_the_dense_ones_agree(name, dtype):
    model, precision = build(name), PRECISIONS[dtype]
    inputs = random_inputs(model.backbone.input_format, [9, 6])
    with torch.inference_mode():
        expected = model.host_forward(inputs).float()
        precision.cast(model)
        inputs = precision.inputs(inputs)
        policies = {"imposed": impose(model, inputs, [1.05])[1.05], "own": model.policy}
        contenders = {**dense_contenders(model), **policy_contenders(model, policies)}
        found = {key: in_precision(run, precision)(inputs)[0].float() for key, run in contenders.items()}
    finite = ~expected.isneginf()
    for key in (HOST, PACKED):
        assert (found[key] - expected)[finite].abs().max() < 0.1 * expected[finite].abs().max()
    assert not any(logits.isnan().any() for logits in found.values())


def test_weights_are_cast_and_knobs_are_not():
    model = build("METER/shared images")
    images = random_inputs(model.backbone.input_format, [9, 6])
    PRECISIONS["autocast-bf16"].cast(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert PRECISIONS["autocast-bf16"].inputs(images) is images
    PRECISIONS["bf16"].cast(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.policy.threshold == pytest.approx(0.9995)
    assert PRECISIONS["bf16"].inputs(images).images.dtype == torch.bfloat16


def test_autocast_is_around_a_run():
    def run(inputs):
        return inputs.images.flatten(1)[:, :4] @ torch.ones(4, 4), None

    inputs = random_inputs(build("METER/shared images").backbone.input_format, [9, 6])
    assert in_precision(run, PRECISIONS["autocast-fp16"])(inputs)[0].dtype == torch.float16
    assert in_precision(run, PRECISIONS["fp32"])(inputs)[0].dtype == torch.float32
