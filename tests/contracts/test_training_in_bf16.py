"""Mixed precision on every backbone: a step of training under bfloat16 autocast, and the decisions at inference."""

from dataclasses import replace

import pytest
import torch

from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision
from smarttrim_mm.testing import Replay

PARTS = {
    "distillation": {"type": "SelfDistillation", "dense_task_weight": 0.5},
    "budget": {"type": "RatioBudget", "token_ratio": 0.5, "head_ratio": 0.5},
}


def losses_of(model, inputs, amp):
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        losses = model.loss(inputs)
    return {name: value for name, value in losses.items() if "loss" in name}


def test_losses_are_near_those_of_single_precision(build, inputs_of, backbone, policy):
    """On the decisions that training in single precision has sampled, without dropout."""
    model = build(backbone, policy, **PARTS)
    inputs = inputs_of(model)
    model.policy.train()  # the policy alone: dropout would differ
    with torch.no_grad():
        model.policy = Replay(model.trace(inputs, "masked")[1])
        exact, rounded = losses_of(model, inputs, amp=False), losses_of(model, inputs, amp=True)
    assert rounded.keys() == exact.keys()
    for name, value in rounded.items():
        assert value.dtype == torch.float32, name
        torch.testing.assert_close(value, exact[name], atol=0.03, rtol=0.05, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_are_finite_and_reach_the_policy(build, inputs_of, backbone, policy):
    model = build(backbone, policy, **PARTS).train()
    sum(losses_of(model, inputs_of(model), amp=True).values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.dtype == torch.float32 and torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all(f"policy.{name}" in gradients for name, _ in model.policy.named_parameters())


def stays(decision, name, layout):
    """Which tokens, of those that may go, a decision neither drops nor merges away."""
    keep = decision.keep.get(name, torch.ones_like(layout.protected)) > 0
    if name in decision.merge:
        keep = keep & (decision.merge[name].into == layout.positions())
    return keep[~layout.protected]


class Witness(Policy):
    """Follows a record, and counts where another policy would have decided otherwise."""

    def __init__(self, policy, record):
        super().__init__(steps=[])
        self.policy, self.replay, self.differing, self.decided = policy, Replay(record), 0, 0

    def reads(self, step):
        return self.policy.reads(step)

    def before_layer(self, step, streams, guides) -> Decision:
        own, given = self.policy.before_layer(step, streams, guides), self.replay.before_layer(step, streams, guides)
        for name, keep in own.keep.items():
            free = ~streams[name].layout.protected
            self._compare((keep > 0)[free], (given.keep[name] > 0)[free])
        for name, heads in own.heads.items():
            self._compare(heads > 0, given.heads[name])
        for name, run in own.run.items():
            self._compare(run > 0, given.run[name])
        return replace(given, carry=own.carry)

    def looks(self, step):
        return self.policy.looks(step)

    def reduces(self, step):
        return self.replay.reduces(step)  # of a step that reduces, every stream

    def after_attention(self, step, streams, evidence, guides) -> Decision:
        own = self.policy.after_attention(step, streams, evidence, guides)
        given = self.replay.after_attention(step, streams, evidence, guides)
        for name in self.policy.reduces(step):
            self._compare(*(stays(decision, name, streams[name].layout) for decision in (own, given)))
        return given

    def _compare(self, own, given):
        self.differing += int((own != given).sum())
        self.decided += own.numel()


def test_packed_decides_as_masked_but_for_rounding(build, inputs_of, backbone, policy):
    """Sums are rounded in another order: what lies within bfloat16's precision of the threshold may go either way, no more."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        witness = Witness(model.policy, model.trace(inputs, "masked")[1])
        model.trace(inputs, policy=witness)
    if not witness.decided:
        pytest.skip("nothing is decided")
    assert witness.differing <= max(2, 0.02 * witness.decided), f"{witness.differing} of {witness.decided}"
