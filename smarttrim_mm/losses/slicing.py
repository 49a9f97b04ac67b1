"""How much a search for slices (UPop) is to take away."""

from torch import Tensor

from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.losses.budget import BudgetLoss
from smarttrim_mm.policies.upop import UPop
from smarttrim_mm.registry import MODELS


@MODELS.register_module()
class SlicingBudget(BudgetLoss):
    """No loss: it tells the policy UPop the cost of heads and units, and what the sliced model may cost.

    The budget holds by construction, as the policy counts. Logged is ``sliced``, the speed-up that the heads and units chosen
    by now would give.

    Args:
        speedup: Multiply-adds of the whole model over those of the sliced one, at least 1.

    Raises:
        ValueError: If ``speedup`` is below 1; at the first batch, if slicing cannot reach it or the policy slices nothing.
    """

    def __init__(self, *, speedup: float) -> None:
        super().__init__(weight=0.0)
        if not speedup >= 1:
            raise ValueError(f"speedup is {speedup}; expected a number >= 1, such as 2.0 for half of the dense multiply-adds")
        self.wanted = speedup

    def forward(self, record: TrimRecord) -> dict[str, Tensor]:
        policy = record.policy
        if not isinstance(policy, UPop):
            raise ValueError(
                f"SlicingBudget needs the policy UPop, and the model's is {type(policy).__name__}; for others choose "
                "ComputeBudget or RatioBudget, and to train a sliced model on set model.budget=None"
            )
        policy.weigh(record, self.wanted)
        return {"sliced": policy.dense / (policy.dense - policy.planned_saving())}
