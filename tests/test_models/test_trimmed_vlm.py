import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from smarttrim_mm.models.trimmed_vlm import TrimmedVLM, is_right
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases

SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


def total(losses):
    return sum(value for key, value in losses.items() if "loss" in key)


def test_tensor_mode(make_model, make_inputs):
    model = make_model()
    inputs = make_inputs(model)
    assert torch.equal(model(inputs), model.trace(inputs)[0])
    assert model(inputs).shape == (6, 7)


def test_loss_mode(make_model, make_inputs):
    model = make_model(SMARTTRIM, budget={"type": "ComputeBudget", "speedup": 2.0}, distillation={"type": "SelfDistillation"})
    inputs = make_inputs(model)
    torch.manual_seed(0)
    losses = model.train()(inputs, mode="loss")
    assert {"loss_task", "loss_distill", "loss_budget", "target", "accuracy", "speedup", "multiply_adds"} <= losses.keys()
    assert all(value.dim() == 0 for value in losses.values())
    assert {"kept/image.2/image", "kept/fusion.1/text", "heads/fusion.1/text.cross"} <= losses.keys()
    assert losses["speedup"] > 1 and 0 <= losses["accuracy"] <= 1
    assert not [key for key, value in losses.items() if value.requires_grad and "loss" not in key and "/" not in key]


def test_the_task_loss_is_that_of_the_trimmed_pass(make_model, make_inputs):
    model = make_model({"type": "Random", "keep_ratio": 0.5})
    inputs = make_inputs(model)
    losses = model.loss(inputs)
    assert losses["loss_task"].item() == pytest.approx(cross_entropy(model(inputs), inputs.targets).item(), rel=1e-4)
    assert losses["multiply_adds"].item() == pytest.approx(model.trace(inputs)[1].multiply_adds().mean().item() / 1e6)
    assert {key for key in losses if "loss" in key} == {"loss_task"}


def test_the_task_loss_is_chosen_by_config(make_model, make_inputs):
    model = make_model(task_loss={"type": "SoftTargetBCE"})
    inputs = make_inputs(model)
    soft = torch.rand(6, 7)
    losses = model.loss(replace(inputs, targets=soft))
    logits = model(inputs)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, soft) * 7
    assert losses["loss_task"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["accuracy"].item() == pytest.approx((logits.argmax(1) == soft.argmax(1)).float().mean().item())


def test_the_wrong_mode_or_missing_parts(make_model, make_inputs):
    model = make_model()
    inputs = make_inputs(model)
    with pytest.raises(ValueError, match="mode is 'train'; expected 'loss', 'predict' or 'tensor'"):
        model(inputs, mode="train")
    with pytest.raises(ValueError, match="data_samples is None"):
        model(inputs, mode="predict")
    with pytest.raises(ValueError, match=r"inputs\.targets is None"):
        model(replace(inputs, targets=None), mode="loss")


def test_self_distillation_pulls_to_the_dense_pass(make_model, make_inputs):
    model = make_model({"type": "Random", "keep_ratio": 0.5}, distillation={"type": "SelfDistillation", "weight": 3.0})
    inputs = make_inputs(model)
    student, teacher = (model.trace(inputs, policy=p)[0].log_softmax(-1) for p in (model.policy, model.dense))
    expected = 3 * kl_div(student, teacher, reduction="batchmean", log_target=True)
    losses = model.loss(inputs)
    assert losses["loss_distill"].item() == pytest.approx(expected.item(), rel=1e-3)
    assert losses["loss_distill"].item() > 0.01 and "loss_dense_task" not in losses
    assert make_model("Dense", distillation={"type": "SelfDistillation"}).loss(inputs)["loss_distill"].abs() < 1e-5


def test_the_dense_pass_is_trained_on_request(make_model, make_inputs):
    gradients = []
    for weight in (0.0, 0.5):
        distillation = {"type": "SelfDistillation", "dense_task_weight": weight}
        model = make_model({"type": "Random", "keep_ratio": 0.5}, distillation=distillation)
        inputs = make_inputs(model)
        losses = model.loss(inputs)
        losses.pop("loss_task"), losses.pop("loss_distill")
        if weight:
            dense = cross_entropy(model.trace(inputs, policy=model.dense)[0], inputs.targets)
            assert losses["loss_dense_task"].item() == pytest.approx(0.5 * dense.item(), rel=1e-4)
        total(losses).backward() if weight else None
        gradients.append(model.backbone.head[0].weight.grad)
    assert gradients[0] is None and gradients[1].any()


@pytest.fixture
def teacher_checkpoint(make_model, tmp_path):
    teacher = make_model("SmartTrim")
    for parameter in teacher.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save({"state_dict": teacher.state_dict()}, tmp_path / "teacher.pth")
    return teacher, str(tmp_path / "teacher.pth")


def test_a_frozen_teacher_teaches(make_model, make_inputs, teacher_checkpoint):
    teacher, path = teacher_checkpoint
    model = make_model("Dense", distillation={"type": "SelfDistillation", "frozen_teacher": path})
    inputs = make_inputs(model)
    keys = set(model.state_dict())
    taught = teacher.trace(inputs, policy=teacher.dense)[0].log_softmax(-1)
    for _ in range(2):  # what is learned in between must not reach the teacher
        expected = kl_div(model(inputs).log_softmax(-1), taught, reduction="batchmean", log_target=True)
        losses = model.loss(inputs)
        assert losses["loss_distill"].item() == pytest.approx(expected.item(), rel=1e-3)
        losses["loss_distill"].backward()
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert set(model.state_dict()) == keys
    assert len(list(model.parameters())) == len(list(make_model("Dense").parameters()))


def test_a_frozen_teacher_has_no_dropout(make_model, make_inputs, teacher_checkpoint):
    _, path = teacher_checkpoint
    model = make_model("Dense", distillation={"type": "SelfDistillation", "frozen_teacher": path})
    inputs = make_inputs(model)
    first = model.train()._teach(inputs)
    assert torch.equal(model._teach(inputs), first) and not first.requires_grad


def test_a_frozen_teacher_of_another_architecture(make_model, make_inputs, teacher_checkpoint):
    _, path = teacher_checkpoint
    model = make_model("Dense", {"num_classes": 9}, distillation={"type": "SelfDistillation", "frozen_teacher": path})
    with pytest.raises(ValueError, match=r"vqa_classifier\.3\.weight \(7, 128\), the model's \(9, 128\)"):
        model.loss(make_inputs(model))
    assert not model._frozen


def test_checkpointing_is_a_switch(make_model, make_inputs):
    calls = []
    for checkpoint_layers in (False, True):
        model = make_model(checkpoint_layers=checkpoint_layers).train()
        count = []
        model.backbone.trunk.blocks[0].mlp.c_fc.register_forward_hook(lambda *_, count=count: count.append(1))
        model.loss(make_inputs(model))["loss_task"].backward()
        calls.append(len(count))
    assert calls == [1, 2]


def test_the_curriculum_moves_policy_and_budget(make_model, make_inputs):
    model = make_model({"type": "Random", "keep_ratio": 0.5}, budget={"type": "ComputeBudget", "speedup": 2.0})
    inputs = make_inputs(model)
    model.set_curriculum(0.0)
    start = model.loss(inputs)
    assert start["speedup"] == 1 and start["target"] == 1 and start["loss_budget"] == 0
    model.set_curriculum(1.0)
    end = model.loss(inputs)
    assert end["speedup"] > 1.5 and end["target"] == 2
    make_model("SmartTrim").set_curriculum(0.5)  # a model without a budget has no target to move


def test_an_unreachable_target_stops_the_first_batch(make_model, make_inputs):
    model = make_model("SmartTrim", budget={"type": "ComputeBudget", "speedup": 1000.0}).train()
    model.set_curriculum(0.0)
    with pytest.raises(ValueError, match=r"speedup is 1000\.0, but .* reaches at most"):
        model.loss(make_inputs(model))


def test_a_step_of_training_lowers_the_loss(make_model, make_inputs):
    parts = {
        "distillation": {"type": "SelfDistillation"},
        "budget": {"type": "RatioBudget", "token_ratio": 0.6, "head_ratio": 0.6},
    }
    model = make_model("SmartTrim", **parts).train()
    inputs = make_inputs(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(12):
        loss = total(model.loss(inputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert min(history[-3:]) < 0.7 * history[0]


def test_policies_swap_by_config_and_keep_the_weights(make_model, make_inputs):
    compute = {}
    for policy in ("Dense", {"type": "Random", "keep_ratio": 0.8}, SMARTTRIM):
        model = make_model(policy)
        _, record = model.trace(make_inputs(model))
        compute[type(model.policy).__name__] = record.multiply_adds().mean().item()
        torch.testing.assert_close(
            model.trace(make_inputs(model), policy=model.dense)[0], model.host_forward(make_inputs(model))
        )
    assert len(set(compute.values())) == 3


def test_a_config_is_not_changed_by_building(make_model):
    policy = {"type": "SmartTrim", "token_trimmer": {"type": "TokenTrimmer", "hidden": 4}}
    before = copy.deepcopy(policy)
    make_model(policy)
    assert policy == before


def test_unknown_parts_suggest_the_nearest():
    with pytest.raises(KeyError, match="Did you mean 'TrimmedVLM'"):
        MODELS.build({"type": "TrimedVLM"})
    with pytest.raises(KeyError, match="Did you mean 'METER'"):
        MODELS.build({"type": "TrimmedVLM", "backbone": {"type": "METRE"}, "policy": {"type": "Dense"}})


def test_training_in_mixed_precision(make_model, make_inputs):
    parts = {"distillation": {"type": "SelfDistillation"}, "budget": {"type": "ComputeBudget", "speedup": 2.0}}
    model = make_model(SMARTTRIM, **parts).train()
    inputs = make_inputs(model)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(inputs)
        total(losses).backward()
    assert all(losses[key].dtype == torch.float32 for key in losses if "loss" in key)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.policy.parameters())


def test_soft_targets_have_several_right_answers():
    logits = torch.eye(4)
    targets = torch.tensor([[1.0, 0, 1, 0], [0.3, 0.3, 0, 0], [0, 0, 0.9, 1], [0, 0, 0, 0]])
    assert is_right(logits, targets).tolist() == [True, True, False, False]
    assert is_right(logits, torch.tensor([0, 1, 1, 3])).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"packed_from": 0}, "packed_from is 0; expected 'auto' or a number of pairs"),
        ({"packed_from": "never"}, "packed_from is 'never'; expected 'auto' or a number of pairs"),
        ({"compile": "max-autotune"}, "compile is 'max-autotune'; expected True, False, or a dict"),
    ],
)
def test_settings_of_execution_are_checked(setting, message):
    with pytest.raises(ValueError, match=message):
        TrimmedVLM(backbone=backbone_cases()["METER/shared images"], policy={"type": "Dense"}, **setting)
