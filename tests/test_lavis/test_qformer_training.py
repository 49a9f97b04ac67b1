"""BLIP-2's pre-training in LAVIS's registry: LAVIS's own step, trimmed."""

import pytest
import torch
from small_lavis import SIZES
from torch.distributed import HashStore, destroy_process_group, init_process_group

QFORMER = "blip2_qformer"
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}
PARTS = ("loss_itc", "loss_itm", "loss_lm")
SMALL = {"num_query_token": 4, "max_txt_len": 12}


@pytest.fixture
def one_process():
    """LAVIS's own step asks for a process group."""
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


def test_a_step_of_lavis(build, lavis_own, batch, one_process):
    """On LAVIS's own texts and tokenizer, which pads them to its longest, with dropout on; in evaluation too."""
    text = {**SIZES["text"], "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
    for training in (False, True):
        model = build(QFORMER, text=text, freeze_vit=False, **SMALL).train(training)
        own = lavis_own(model, text=text, freeze_vit=False, **SMALL)
        outputs = []
        for each in (model, own):
            torch.manual_seed(0)
            outputs.append(each(batch(model)))
            outputs[-1].loss.backward()
        ours, theirs = outputs
        assert issubclass(type(ours), type(theirs))
        for name in ("loss", *PARTS):
            torch.testing.assert_close(ours[name], theirs[name], msg=name)
        expected = dict(own.named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_all_losses_are_in_the_loss(build, batch):
    """Without a process group."""
    trimming = {
        "distillation": {"type": "SelfDistillation", "weight": 0.5, "dense_task_weight": 0.3},
        "budget": {"type": "ComputeBudget", "speedup": 1.2},
    }
    model = build(QFORMER, SMARTTRIM, trimming, **SMALL).train()
    output = model(batch(model))
    parts = {name: value for name, value in model.last_losses.items() if "loss_" in name}
    assert parts.keys() == {*PARTS, "loss_distill", "loss_dense_task", "loss_budget"}
    torch.testing.assert_close(output.loss.detach(), sum(parts.values()))
    output.loss.backward()
    trimmers = [weight.grad for weight in model.policy.parameters()]
    assert len(trimmers) > 20 and all(gradient is not None for gradient in trimmers)
    assert all(weight.grad is None for weight in model.visual_encoder.parameters()), "it is frozen"


def test_a_text_does_not_guide_it(build, batch):
    model = build(QFORMER, SMARTTRIM, {"text_first": True}, **SMALL).train()
    with pytest.raises(ValueError, match="text_first=True, and blip2_qformer is trained to contrast"):
        model(batch(model))
