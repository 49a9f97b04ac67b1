"""Inference runs in torch's inference mode, whose tensors no later training meets."""

import pytest
import torch
from mmpretrain.structures import DataSample

from smarttrim_mm.testing import policy_cases


@pytest.fixture
def model(build, backbone):
    return build(backbone, policy_cases()["SmartTrim/untrained"])


def test_predictions_are_made_in_inference_mode(model, inputs_of):
    if model.ranks_texts:
        pytest.skip("its pairs are scored by the loop of retrieval")
    inputs, samples = inputs_of(model, lengths=[3, 8, 5]), [DataSample(questions=["?"]) for _ in range(3)]
    with torch.no_grad():  # as mmengine's loops
        for sample in model(inputs, samples, mode="predict"):
            assert all(value.is_inference() for value in sample.values() if isinstance(value, torch.Tensor))
            assert all(value.is_inference() for value in sample.trim.values())


def test_training_goes_on_after_it(model, inputs_of):
    inputs = inputs_of(model)
    with torch.inference_mode():
        model.trace(inputs, "masked")
        model.host_forward(inputs)
    if not model.ranks_texts:
        model(inputs, [DataSample(questions=["?", "?"]) for _ in range(3)], mode="predict")
    model.train()
    losses = model.loss(inputs)
    sum(value for name, value in losses.items() if "loss" in name).backward()
    assert any(p.grad is not None for p in model.parameters())
