"""Invariant 5: no state but what is passed; gradients reach every trimmer, and the gates of what was dropped."""

import pytest
import torch

from smarttrim_mm.layers import execution

BUDGET = {"type": "RatioBudget", "token_ratio": 0.5, "head_ratio": 0.5}
LONG = {"lengths": [20, 18, 16, 12, 19, 17], "image_index": [0, 0, 1, 1, 2, 3]}  # words are left in the last layer


def trained_once(model, inputs, amp=False):
    model.zero_grad()
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        losses = model.loss(inputs)
    sum(value for key, value in losses.items() if "loss" in key).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def shake(module):
    """Moves weights that start at zero, as the first steps of a training do."""
    for parameter in module.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))


def test_each_layer_gives_the_same_answer_again(build, inputs_of, backbone, policy, monkeypatch):
    once, layers = execution.run_layer, []

    def twice(*args):
        state = torch.get_rng_state()
        first, first_record = once(*args)
        torch.set_rng_state(state)
        second, second_record = once(*args)
        for name in first:
            assert torch.equal(first[name].x, second[name].x)
            assert torch.equal(first[name].layout.gate, second[name].layout.gate)
        for name, gate in first_record.heads.items():
            assert torch.equal(gate, second_record.heads[name])
        layers.append(args[0].name)
        return second, second_record

    monkeypatch.setattr(execution, "run_layer", twice)
    model = build(backbone, policy).train()
    model.loss(inputs_of(model))
    names = [step.name for stage in model.backbone.steps.values() for step in stage]
    assert [name for name in layers if not name.startswith("ahead.")] == names


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
def test_activation_checkpointing_changes_nothing(build, inputs_of, backbone, policy, amp):
    """Layers are recomputed in the backward pass, random decisions and dropout included.

    Under autocast, gradients of a weight that both passes use are summed in bfloat16 if they share its copy, and in fp32 if
    each layer makes its own again.
    """
    others = {"distillation": {"type": "SelfDistillation", "dense_task_weight": 0.5}, "budget": BUDGET}
    model = build(backbone, policy, **others).train()
    inputs = inputs_of(model)
    shake(model.policy)
    losses, gradients = trained_once(model, inputs, amp)
    again, same_gradients = trained_once(model, inputs, amp)
    model.checkpoint_layers = True
    calls = count_calls(model)
    checkpointed, checkpointed_gradients = trained_once(model, inputs, amp)
    recomputed = len(calls)
    calls.clear()
    model.checkpoint_layers = False
    trained_once(model, inputs, amp)
    assert recomputed > len(calls) > 0
    assert losses.keys() == again.keys() == checkpointed.keys()
    for name, value in losses.items():
        assert torch.equal(value, again[name]) and torch.equal(value, checkpointed[name]), name
    assert gradients.keys() == same_gradients.keys() == checkpointed_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, same_gradients[name]), name
        if amp:
            difference = (gradient - checkpointed_gradients[name]).norm()
            assert difference <= 0.02 * gradient.norm() + 1e-6, f"{name}: {difference} of {gradient.norm()}"
        else:
            torch.testing.assert_close(gradient, checkpointed_gradients[name], atol=1e-6, rtol=1e-5)


def count_calls(model):
    calls = []
    for stage in model.backbone.steps.values():
        for step in stage:
            for layer in step.layers.values():
                layer.mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_gradients_reach_every_trimmer(build, inputs_of, backbone, policy):
    """From the task alone, without a budget loss; a few draws, as the last layers may find nothing left in one."""
    model = build(backbone, policy).train()
    shake(model.policy)
    inputs = inputs_of(model, **LONG)
    for _ in range(4):
        model.loss(inputs)["loss_task"].backward()
    for name, parameter in model.policy.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_untouched_policies_receive_gradients_too(build, inputs_of, backbone, policy):
    """As a config builds them: a stable start must not cut trimmers off."""
    model = build(backbone, policy).train()
    _, gradients = trained_once(model, inputs_of(model))
    assert all(f"policy.{name}" in gradients for name, _ in model.policy.named_parameters())


def read_at_all(entry, gate):
    """Which instances skip no attention of a step and have not gone past all that would have read them, bool [B]."""
    runs = (gate.grad != 0).any(1)
    for part, turn in entry.run.items():
        runs &= (turn > 0) | (not part.endswith(".attention"))
    return runs


def test_gates_of_what_was_dropped_receive_gradients(build, inputs_of, backbone, policy):
    """But for instances that lost every head which would have read the token, and those that skip its attention."""
    model = build(backbone, policy)
    model.policy.train()  # alone: dropout also takes gradients away
    shake(model.policy)
    logits, record = model.trace(inputs_of(model, **LONG), "masked")
    gates = {f"{e.step.name}/{name}": x.gate for e in record.steps for name, x in e.tokens.items()}
    gates |= {f"{e.step.name}/{name}": gate for e in record.steps for name, gate in e.heads.items()}
    gates = {name: gate for name, gate in gates.items() if gate.requires_grad}
    if not gates:
        pytest.skip("nothing is learned")
    for gate in gates.values():
        gate.retain_grad()
    logits.square().sum().backward()
    entries = {entry.step.name: entry for entry in record.steps}
    reached = {}
    for name, gate in gates.items():
        read = read_at_all(entries[name.split("/")[0]], gate)
        reached[name] = (gate.grad != 0)[(gate == 0) & read.unsqueeze(1)]
    if not any(map(len, reached.values())):
        pytest.skip("nothing is dropped; another example of the policy drops more")
    for name, dropped in reached.items():
        assert len(dropped) == 0 or dropped.float().mean() > 0.6, name
