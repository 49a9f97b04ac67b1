"""Invariant 1: under the dense policy a model is its host's own forward."""

import pytest
import torch
from torch.nn.functional import cross_entropy


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_logits(build, inputs_of, backbone, batch, kind):
    model = build(backbone, {"type": "Dense"})
    inputs = inputs_of(model, **batch)
    with torch.no_grad():
        logits, record = model.trace(inputs, kind)
        torch.testing.assert_close(logits, model.host_forward(inputs), atol=1e-5, rtol=1e-5)
    assert torch.equal(record.multiply_adds(), record.dense_multiply_adds())
    assert all((ratio == 1).all() for ratio in record.kept().values()) and not record.heads()


def test_every_instance_answers_differently(build, inputs_of, backbone):
    """Else the tests here would pass on a model that ignores its inputs."""
    model = build(backbone, {"type": "Dense"})
    with torch.no_grad():
        logits = model(inputs_of(model))
    assert torch.pdist(logits).min() > 0.02


def test_loss_and_gradients_in_training(build, inputs_of, backbone):
    model = build(backbone, {"type": "Dense"}).train()
    inputs = inputs_of(model)

    def losses_and_gradients(forward):
        model.zero_grad()
        torch.manual_seed(3)
        loss = cross_entropy(forward(inputs), inputs.targets)
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.backbone.named_parameters() if p.grad is not None}

    host_loss, host_gradients = losses_and_gradients(model.host_forward)
    loss, gradients = losses_and_gradients(lambda inputs: model.trace(inputs, "masked")[0])
    dropped = [module for module in model.backbone.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
    assert dropped, "the small configs must have dropout, or equal random numbers are not tested"
    torch.testing.assert_close(loss, host_loss, atol=1e-6, rtol=1e-6)
    assert gradients.keys() == host_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, host_gradients[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_dropout_acts_in_training_only(build, inputs_of, backbone):
    model = build(backbone, {"type": "Dense"})
    inputs = inputs_of(model)
    with torch.no_grad():
        assert torch.equal(model.trace(inputs, "masked")[0], model.trace(inputs, "masked")[0])
        model.train()
        assert not torch.allclose(model.trace(inputs, "masked")[0], model.trace(inputs, "masked")[0])
