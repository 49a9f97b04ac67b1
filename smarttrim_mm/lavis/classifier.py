"""LAVIS's models that choose a class."""

from typing import Any

from torch import Tensor

from smarttrim_mm.backbones.lavis import LavisClassifier
from smarttrim_mm.backbones.lavis_blip import BlipMatching
from smarttrim_mm.lavis.model import TrimmedModel, methods_of


class Scorer(TrimmedModel):
    """What they share."""

    task_loss = {"type": "AnswerCrossEntropy"}

    def predict(self, samples: dict[str, Any]) -> dict[str, Any]:
        """``predictions`` [G, C] and, if the batch has a ``label``, ``targets`` [G]."""
        return {"predictions": self.trace(samples), "targets": samples.get("label")}

    def _taught(self, samples: dict[str, Any]) -> Any:
        loss, logits = self.learn(samples, samples["label"])
        return self.output_class(loss=loss, logits=logits)


@methods_of(LavisClassifier)
class Classifier(Scorer):
    """``forward`` of a classifier."""

    def forward(self, samples: dict[str, Any], is_train: bool = True) -> Any:
        """Runs the model.

        Args:
            samples: As LAVIS's data sets give them: ``image`` (or ``image0`` and ``image1``), ``text_input``, ``label``.
            is_train: Whether the loss is wanted.

        Returns:
            LAVIS's output with ``loss`` and ``logits`` [G, C]; or what :meth:`predict` gives.
        """
        return self._taught(samples) if is_train else self.predict(samples)


@methods_of(BlipMatching)
class Matcher(Scorer):
    """``forward`` of a model that says whether a text fits an image."""

    def forward(self, samples: dict[str, Any], match_head: str = "itm") -> Any:
        """Runs the model.

        Args:
            samples: ``image``, ``text_input``; in training ``label`` too: 1 where the text fits.
            match_head: ``'itm'``; or ``'itc'``, which is LAVIS's own and is not trimmed.

        Returns:
            Logits [G, 2], as LAVIS gives them. In training mode with ``label``, for which LAVIS has no loss: its output with
            ``loss`` and ``logits``.
        """
        if match_head != "itm":
            found: Tensor = self.host_class.forward(self, samples, match_head=match_head)
            return found
        if self.training and "label" in samples:
            return self._taught(samples)
        return self.trace(samples)
