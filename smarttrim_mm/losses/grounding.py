"""The loss of models that write where a text points."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.ops import generalized_box_iou

from smarttrim_mm.inputs import BoxTargets
from smarttrim_mm.ops.boxes import corners
from smarttrim_mm.registry import MODELS


@MODELS.register_module()
class BoxGeneration(nn.Module):
    """Cross-entropy of the coordinates of boxes, weighted by how far each is off: the loss of mmpretrain's ``GroundingHead``.

    Args:
        l1_weight: Of a coordinate's own distance.
        giou_weight: Of its box's: 1 minus the generalised IoU (Rezatofighi et al., arXiv 1902.09630).
    """

    def __init__(self, *, l1_weight: float = 4.0, giou_weight: float = 2.0) -> None:
        super().__init__()
        self.l1_weight, self.giou_weight = l1_weight, giou_weight

    def forward(self, logits: Tensor, targets: BoxTargets) -> dict[str, Tensor]:
        """Logits of the coordinates [4 G, C], boxes -> means, of which those named losses are to be summed.

        Returns:
            ``loss_tokens``, the cross-entropy alone; ``loss_boxes``, twice the weighted one, as mmpretrain's head gives it
            under two names and mmengine sums both; and, to log, the weights ``box_l1`` and ``box_giou``.
        """
        steps = logits.shape[-1]
        each = cross_entropy(logits.float(), targets.bins(steps).flatten(), reduction="none").view(-1, 4)
        with torch.no_grad():
            found = logits.argmax(-1).view(-1, 4) / (steps - 1)
            l1 = (found - targets.boxes).abs() * self.l1_weight
            giou = (1 - generalized_box_iou(corners(found), corners(targets.boxes)).diagonal()) * self.giou_weight
        weighted = (each * l1 * giou[:, None]).mean()
        return {"loss_tokens": each.mean(), "loss_boxes": 2 * weighted, "box_l1": l1.mean(), "box_giou": giou.mean()}
