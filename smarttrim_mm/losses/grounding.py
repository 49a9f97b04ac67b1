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
    """Cross-entropy of the coordinates of boxes.

    This is what mmpretrain's ``GroundingHead`` learns by: the loss that it weights by how far boxes are off is computed without
    gradients, and only adds to the number in its log.
    """

    def forward(self, logits: Tensor, targets: BoxTargets) -> dict[str, Tensor]:
        """Logits of the coordinates [4 G, C], boxes -> the mean, and numbers to log.

        Returns:
            ``loss_task``, and of the boxes with the likeliest coordinates, each given the right ones before it, ``box_l1``, the
            mean distance of a coordinate, and ``box_giou``, the mean of 1 minus the generalised IoU (Rezatofighi et al., arXiv
            1902.09630); mmpretrain logs these times its coefficients, 4 and 2.
        """
        steps = logits.shape[-1]
        with torch.no_grad():
            found = logits.argmax(-1).view(-1, 4) / (steps - 1)
            overlap = generalized_box_iou(corners(found), corners(targets.boxes)).diagonal()
        return {
            "loss_task": cross_entropy(logits.float(), targets.bins(steps).flatten()),
            "box_l1": (found - targets.boxes).abs().mean(),
            "box_giou": (1 - overlap).mean(),
        }
