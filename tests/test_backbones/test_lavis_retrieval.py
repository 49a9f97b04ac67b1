"""LAVIS's retrieval models: the training step is LAVIS's own, and both passes of a step see the same negatives."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.backbones.lavis_host import encoding
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import excite, random_inputs

CASES = {name.partition(" ")[0]: case for name, case in LavisBackbone.small_configs().items() if "retrieval" in name}
ARCHS = sorted(CASES)
IDS = [7, 3, 7, 9]  # two of four pairs are about one image
CONTRAST = {"type": "ContrastAndMatching"}
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


@pytest.fixture
def build():
    def make(arch, policy="Dense", task_loss=CONTRAST, others=None, **changes):
        policy = {"type": policy} if isinstance(policy, str) else policy
        config = {"backbone": {**CASES[arch], **changes}, "policy": policy, "task_loss": task_loss, **(others or {})}
        model = MODELS.build({"type": "TrimmedVLM", **config})
        excite(model.backbone)
        model.backbone.host.copy_params()
        with torch.no_grad():
            model.backbone.host.temp.fill_(0.07)
        return model.train()

    return make


@pytest.fixture
def batch():
    def make(model, seed=0, lengths=(9, 4, 2, 7), ids=IDS):
        inputs = random_inputs(model.backbone.input_format, lengths, seed=seed)
        return replace(inputs, image_ids=torch.tensor(ids))

    return make


def samples_of(inputs, iters=0):
    """As LAVIS passes them; two epochs have 8 iterations."""
    words = encoding(inputs.input_ids, inputs.text_mask)
    place = {"epoch": iters // 4, "iters": iters % 4, "num_iters_per_epoch": 4}
    return {"image": inputs.images, "text_input": words, "image_id": inputs.image_ids, **place}


def total(losses):
    return sum(value for name, value in losses.items() if "loss" in name)


# ---- LAVIS's own training step


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("albef_retrieval", {}),
        ("albef_retrieval", {"use_distill": False}),  # which LAVIS's own cannot return
        ("blip_retrieval", {}),
        ("blip_retrieval", {"alpha": 0.9, "momentum": 0.7}),
    ],
)
def test_two_steps_of_lavis(build, batch, arch, options):
    """Losses, gradients, momentum copies and queue, with dropout on."""
    model = build(arch, **options)
    host = model.backbone.host
    own = copy.deepcopy(host)
    if not getattr(own, "use_distill", True):
        own.use_distill, own.alpha = True, 0.0
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in own.modules())
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.05) for one in (host, own)]
    queue = host.image_queue.clone()
    for step in range(2):
        inputs = batch(model, seed=step)
        model.backbone.ramp_up = own._rampup_factor(0, 3 + step, 4)
        torch.manual_seed(step)
        theirs = own(samples_of(inputs, 3 + step))
        torch.manual_seed(step)
        ours = model.loss(inputs)
        for name in ("loss_itc", "loss_itm"):
            torch.testing.assert_close(ours[name], theirs[name], msg=name)
        torch.testing.assert_close(total(ours), theirs.loss)
        for optimizer, loss in zip(optimizers, (total(ours), theirs.loss), strict=True):
            optimizer.zero_grad()
            loss.backward()
        expected = dict(own.named_parameters())
        for name, parameter in host.named_parameters():
            gradient = expected[name].grad
            assert (parameter.grad is None) is (gradient is None) is ("_m." in name), name
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4, msg=name)
        for optimizer in optimizers:
            optimizer.step()
        for name, value in own.state_dict().items():
            torch.testing.assert_close(host.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert int(host.queue_ptr) == 8 and host.idx_queue[0, :9].tolist() == [*IDS, *IDS, -100]
    assert not torch.equal(host.image_queue[:, :8], queue[:, :8]) and torch.equal(host.image_queue[:, 8:], queue[:, 8:])
