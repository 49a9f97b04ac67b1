"""LAVIS's retrieval models."""

from dataclasses import replace
from typing import Any

import torch

from smarttrim_mm.backbones.lavis import LavisRetriever
from smarttrim_mm.inputs import TextTargets, VLMInputs
from smarttrim_mm.lavis.model import methods_of, place_of
from smarttrim_mm.lavis.ranking import Ranker


@methods_of(LavisRetriever)
class Retriever(Ranker):
    """``forward`` of a model that is trained to contrast and to match."""

    task_loss = {"type": "ContrastAndMatching"}
    padding = "max_length"

    def forward(self, samples: dict[str, Any]) -> Any:
        """A training step of LAVIS's, which moves momentum copies and queue.

        Args:
            samples: As LAVIS's data sets and tasks give them: ``image``, ``text_input``, ``image_id``, ``epoch``, ``iters``,
                ``num_iters_per_epoch``.

        Returns:
            LAVIS's output with ``loss``, the sum of all losses, and, detached, its parts ``loss_itc`` and ``loss_itm``.

        Raises:
            ValueError: If LAVIS's queue cannot take the batch, it has no two images, or does not say where the training is.
        """
        self.backbone.ramp_up = self._rampup_factor(**place_of(samples, "the momentum targets' share (alpha) needs"))
        loss, _ = self.learn(samples, None)
        return self.output_class(loss=loss, **{name: self.last_losses[name] for name in ("loss_itc", "loss_itm")})

    def inputs_of(self, samples: dict[str, Any], targets: torch.Tensor | TextTargets | None = None) -> VLMInputs:
        """See :meth:`~smarttrim_mm.lavis.model.TrimmedModel.inputs_of`; images are known by their ``image_id``, if there."""
        inputs = super().inputs_of(samples, targets)
        if "image_id" not in samples:
            return inputs
        return replace(inputs, image_ids=torch.as_tensor(samples["image_id"], device=self.device).view(-1))
