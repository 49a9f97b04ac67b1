"""Low precision at inference on every backbone: bfloat16 and float16, by autocast and of the weights themselves."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from smarttrim_mm.testing import Replay

# Of the largest logit; twice what 60 passes showed at most. The formats round by 2^-9 and 2^-12.
TOLERANCES = {torch.bfloat16: 0.05, torch.float16: 0.005}


def near(actual, expected, dtype):
    atol = TOLERANCES[dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual.float(), expected.float(), atol=atol, rtol=0)


def cast(model, inputs, dtype):
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm:
            module.float()  # LAVIS has one that takes its input to single precision itself
    return replace(inputs, images=inputs.images.to(dtype))


@pytest.fixture
def decided(build, inputs_of, backbone):
    """A model, inputs, what single precision makes of them, and its decisions."""
    model = build(backbone, {"type": "SmartTrim", "stable_init": False})
    inputs = inputs_of(model)
    with torch.inference_mode():
        exact, record = model.trace(inputs, "masked")
    return model, inputs, exact, Replay(record)


def check(model, inputs, exact, replay, dtype):
    masked, packed = (model.trace(inputs, kind, policy=replay)[0] for kind in ("masked", "packed"))
    near(masked, exact, dtype)
    near(packed, exact, dtype)
    near(packed, masked, dtype)
    dense = model.trace(inputs, policy=model.dense)[0]
    with torch.autocast("cpu", dtype):  # LAVIS's BLIP-2 needs it, as it takes image tokens to single precision itself
        near(dense, model.host_forward(inputs), dtype)


def check_scores(model, inputs):
    """Whatever the precision, scores are single when they meet the threshold."""
    dtypes = []
    trimmers = [*model.policy.token_trimmers.values(), *model.policy.head_trimmers.values()]
    hooks = [trimmer.register_forward_hook(lambda *given: dtypes.append(given[-1].dtype)) for trimmer in trimmers]
    model.trace(inputs)
    for hook in hooks:
        hook.remove()
    assert set(dtypes) == {torch.float32}
    assert len(dtypes) == len(trimmers)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_autocast(decided, dtype):
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        check(*decided, dtype)
        check_scores(*decided[:2])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_weights_of_low_precision(decided, dtype):
    model, inputs, exact, replay = decided
    inputs = cast(model, inputs, dtype)
    with torch.inference_mode():
        check(model, inputs, exact, replay, dtype)
        check_scores(model, inputs)
