"""Budget losses: they pull the kept compute to a target that the curriculum lowers (SmartTrim, arXiv 2305.15033)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.registry import MODELS


class UnreachableSpeedup(ValueError):
    """A speed-up that no setting of the policy reaches on this model."""


class BudgetLoss(nn.Module):
    """Base: holds how far the curriculum has come.

    Args:
        weight: lambda_cost.
    """

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight of the budget loss is {weight}; expected a number >= 0")
        self.weight = weight
        self.progress = 1.0

    def set_curriculum(self, progress: float) -> None:
        """Moves the target between keeping everything (0) and its final value (1)."""
        self.progress = progress

    def scheduled(self, final: float) -> float:
        """The present target of something that starts at 1 and ends at ``final``."""
        return 1.0 + self.progress * (final - 1.0)

    def forward(self, record: TrimRecord) -> dict[str, Tensor]:
        """Losses (keys that hold ``'loss'``) and numbers to log, all scalar tensors."""
        raise TypeError(f"{type(self).__name__} does not define forward")


@MODELS.register_module()
class ComputeBudget(BudgetLoss):
    """weight * (kept share of the whole model's multiply-adds - target)^2, batch means.

    The target falls from 1 to 1 / speedup with the curriculum.

    Args:
        speedup: Dense over trimmed multiply-adds of the whole model, the policy's own included, at least 1.
        weight: lambda_cost.

    Raises:
        ValueError: If ``speedup`` is below 1.
        UnreachableSpeedup: At the first batch, if trimming cannot reach it.
    """

    def __init__(self, *, speedup: float, weight: float = 20.0) -> None:
        super().__init__(weight=weight)
        if not speedup >= 1:
            raise ValueError(f"speedup is {speedup}; expected a number >= 1, such as 2.0 for half of the dense multiply-adds")
        self.speedup = speedup
        self._checked = False

    def forward(self, record: TrimRecord) -> dict[str, Tensor]:
        dense = record.dense_multiply_adds().mean()
        if not self._checked:
            check_reachable(record, self.speedup)
            self._checked = True
        kept = record.multiply_adds().mean() / dense
        target = self.scheduled(1 / self.speedup)
        return {"loss_budget": self.weight * (kept - target) ** 2, "target": torch.tensor(1 / target)}


@MODELS.register_module()
class RatioBudget(BudgetLoss):
    """weight * (kept ratio - target)^2 for tokens and for heads, averaged over the places where they are trimmed.

    Args:
        token_ratio: Final target of the mean kept share of tokens, in (0, 1].
        head_ratio: Final target of the mean share of heads that are on, in (0, 1].
        weight: lambda_cost.

    Raises:
        ValueError: If a ratio is outside (0, 1].
    """

    def __init__(self, *, token_ratio: float, head_ratio: float, weight: float = 20.0) -> None:
        super().__init__(weight=weight)
        for name, ratio in (("token_ratio", token_ratio), ("head_ratio", head_ratio)):
            if not 0 < ratio <= 1:
                raise ValueError(f"{name} is {ratio}; expected a number in (0, 1], 1 keeps everything")
        self.token_ratio, self.head_ratio = token_ratio, head_ratio

    def forward(self, record: TrimRecord) -> dict[str, Tensor]:
        trimmed = {f"{step.step.name}/{name}" for step in record.steps for name in record.policy.trims(step.step)[0]}
        before = [ratio for key, ratio in record.kept().items() if key in trimmed]
        tokens = _mean([*before, *record.kept_within().values()])
        heads = _mean(record.heads().values())
        losses = {}
        if tokens is not None:
            losses["target_tokens"] = torch.tensor(self.scheduled(self.token_ratio))
            losses["loss_budget_tokens"] = self.weight * (tokens - self.scheduled(self.token_ratio)) ** 2
        if heads is not None:
            losses["target_heads"] = torch.tensor(self.scheduled(self.head_ratio))
            losses["loss_budget_heads"] = self.weight * (heads - self.scheduled(self.head_ratio)) ** 2
        return losses


def check_reachable(record: TrimRecord, speedup: float) -> None:
    """Checks that a speed-up is within what the policy can cut.

    Raises:
        UnreachableSpeedup: If it is not; the message gives the reachable maximum for this model and batch.
    """
    most = float((record.dense_multiply_adds().mean() / record.least_multiply_adds().mean()).detach())
    if speedup > most:
        raise UnreachableSpeedup(
            f"speedup is {speedup}, but with this model and policy trimming reaches at most {most:.2f} (only protected tokens "
            "and no trimmed head left, the trimmers counted). Lower the target, or let the policy trim more layers and streams."
        )


def _mean(ratios: Iterable[Tensor]) -> Tensor | None:
    values = [ratio.mean() for ratio in ratios]
    return torch.stack(values).mean() if values else None
