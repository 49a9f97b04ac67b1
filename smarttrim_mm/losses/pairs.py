"""The loss of models that contrast and match, and may write."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.pairs import PairLogits, PairTargets
from smarttrim_mm.registry import MODELS

_SMOOTHING = 0.1  # of LAVIS's captions


@MODELS.register_module()
class ContrastAndMatching(nn.Module):
    """LAVIS's loss of retrieval (ALBEF, arXiv 2107.07651): contrast with soft targets, and matching of hard negatives.

    Of a model that gives the texts too (BLIP-2's pre-training, arXiv 2301.12597), also the cross-entropy of their words.
    """

    def prepare(self, backbone: Any, inputs: VLMInputs) -> VLMInputs:
        """The batch with the targets that the backbone makes of it.

        Raises:
            TypeError: If the backbone makes none.
        """
        if not hasattr(backbone, "prepare"):
            raise TypeError(
                f"the backbone, a {type(backbone).__name__}, has nothing to contrast; ContrastAndMatching is the loss of "
                "LAVIS's retrieval and BLIP-2 (arch blip_retrieval, albef_retrieval, blip2_qformer). Take "
                "model.task_loss=dict(type='AnswerCrossEntropy')"
            )
        prepared: VLMInputs = backbone.prepare(inputs)
        return prepared

    def forward(self, logits: PairLogits, targets: PairTargets) -> dict[str, Tensor]:
        """Contrast [2 B, B + K], match [3 B, 2] and words [K, V], targets -> means, to be summed.

        Returns:
            ``loss_itc``, ``loss_itm`` and, if there are words, ``loss_lm``.
        """
        assert targets.wanted is not None
        contrast = -(log_softmax(logits.contrast.float(), 1) * targets.wanted).sum(1).mean()
        losses = {"loss_itc": contrast, "loss_itm": cross_entropy(logits.match.float(), logits.labels)}
        if logits.words is not None:
            assert targets.words is not None
            losses["loss_lm"] = cross_entropy(logits.words.float(), targets.words, label_smoothing=_SMOOTHING)
        return losses
