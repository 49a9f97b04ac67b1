"""The loss of retrieval models that contrast and match."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.pairs import PairLogits, PairTargets
from smarttrim_mm.registry import MODELS


@MODELS.register_module()
class ContrastAndMatching(nn.Module):
    """LAVIS's loss of retrieval (ALBEF, arXiv 2107.07651): contrast with soft targets, and matching of hard negatives."""

    def prepare(self, backbone: Any, inputs: VLMInputs) -> VLMInputs:
        """The batch with the targets that the backbone makes of it.

        Raises:
            TypeError: If the backbone makes none.
        """
        if not hasattr(backbone, "prepare"):
            raise TypeError(
                f"the backbone, a {type(backbone).__name__}, has nothing to contrast; ContrastAndMatching is the loss of "
                "LAVIS's retrieval (arch blip_retrieval, albef_retrieval). Take model.task_loss=dict(type='AnswerCrossEntropy')"
            )
        prepared: VLMInputs = backbone.prepare(inputs)
        return prepared

    def forward(self, logits: PairLogits, targets: PairTargets) -> dict[str, Tensor]:
        """Contrast [2 B, B + K] and match [3 B, 2], soft targets -> ``loss_itc`` and ``loss_itm``, means, to be summed."""
        assert targets.memory is not None
        contrast = -(log_softmax(logits.contrast.float(), 1) * targets.memory.wanted).sum(1).mean()
        return {"loss_itc": contrast, "loss_itm": cross_entropy(logits.match.float(), logits.labels)}
