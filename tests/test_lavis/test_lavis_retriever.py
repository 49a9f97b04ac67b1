"""LAVIS's retrieval models, trimmed, in LAVIS's registry."""

import pytest
import torch
from small_lavis import SIZES

from smarttrim_mm.lavis.settings import load_file

ARCHS = ["albef_retrieval", "blip_retrieval"]
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


@pytest.mark.parametrize("arch", ARCHS)
def test_two_steps_of_lavis(build, lavis_own, batch, arch):
    """On LAVIS's own texts and tokenizer, with dropout on."""
    text = {**SIZES["text"], **({"fusion_layer": 1} if "albef" in arch else {}), "hidden_dropout_prob": 0.2}
    model = build(arch, text=text).train()
    own = lavis_own(model, text=text)
    assert own.text_encoder.embeddings.dropout.p == model.text_encoder_m.embeddings.dropout.p == 0.2
    for step in range(2):
        outputs = []
        for each in (model, own):
            torch.manual_seed(step)
            each.zero_grad()
            outputs.append(each({**batch(model, step), "epoch": 0, "iters": 3 + step}))
            outputs[-1].loss.backward()
        ours, theirs = outputs
        assert issubclass(type(ours), type(theirs))
        for name in ("loss", "loss_itc", "loss_itm"):
            torch.testing.assert_close(ours[name], theirs[name], msg=name)
        expected = dict(own.named_parameters())
        for name, parameter in model.named_parameters():
            if expected[name].grad is None:
                assert parameter.grad is None and "_m." in name
            else:
                torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4, msg=name)
        state = model.state_dict()
        for name, value in own.state_dict().items():
            torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert model.idx_queue[0, :7].tolist() == [4, 2, 4, 4, 2, 4, -100]


@pytest.mark.parametrize("arch", ARCHS)
def test_all_losses_are_in_the_loss(build, batch, arch):
    trimming = {
        "distillation": {"type": "SelfDistillation", "weight": 0.5, "dense_task_weight": 0.3},
        "budget": {"type": "ComputeBudget", "speedup": 1.2},
    }
    model = build(arch, SMARTTRIM, trimming).train()
    output = model(batch(model))
    parts = {name: value for name, value in model.last_losses.items() if "loss_" in name}
    assert parts.keys() == {"loss_itc", "loss_itm", "loss_distill", "loss_dense_task", "loss_budget"}
    torch.testing.assert_close(output.loss.detach(), sum(parts.values()))
    output.loss.backward()
    trimmers = [p.grad for p in model.policy.parameters()]
    assert len(trimmers) > 20 and all(gradient is not None for gradient in trimmers)
    assert int(model.queue_ptr) == 3, "both passes are one step"


def test_a_batch_says_where_the_training_is(build, batch):
    model = build("albef_retrieval").train()
    samples = {name: value for name, value in batch(model).items() if name not in ("iters", "epoch")}
    with pytest.raises(ValueError, match=r"no epoch, iters, and the momentum targets' share \(alpha\) needs to know"):
        model(samples)
    assert int(model.queue_ptr) == 0


@pytest.mark.parametrize("arch", ARCHS)
def test_a_text_does_not_guide_retrieval(build, arch):
    with pytest.raises(ValueError, match=f"text_first=True with {arch}: retrieval scores every image with every text"):
        build(arch, SMARTTRIM, {"text_first": True})


def test_files_of_retrieval(build, tmp_path):
    """A file without momentum copies and queue is a whole one; the copies are made."""
    model, other = build("albef_retrieval"), build("albef_retrieval", SMARTTRIM)
    weights = {name: value + 1 for name, value in model.state_dict().items() if "_m." not in name and "queue" not in name}
    torch.save({"model": weights}, tmp_path / "weights.pth")
    load_file(other, tmp_path / "weights.pth", whole=True)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in weights.items())
    assert torch.equal(other.text_proj_m.weight, weights["text_proj.weight"])
