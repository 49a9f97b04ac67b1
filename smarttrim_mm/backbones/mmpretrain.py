"""Models of mmpretrain as backbones: what its families share.

A model is built by mmpretrain's own registry, from a config as mmpretrain writes it. It keeps its parameters, its state dict
below ``host.``, and its forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from smarttrim_mm.backbones.mmpretrain_checkpoint import load_public
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.models.conversion import Conversion
from smarttrim_mm.registry import MMPRETRAIN_MODELS, MODELS


@MODELS.register_module()
class MMPretrainBackbone(nn.Module):
    """A model of mmpretrain, by its config.

    Called with ``model`` it makes an instance of the subclass that :data:`~smarttrim_mm.registry.MMPRETRAIN_MODELS` has for the
    model's ``type``; further arguments are that subclass's.

    Args:
        model: mmpretrain's config of the model: ``dict(type='BlipVQA', ...)``. What the model needs for its own predictions
            from texts is not built: the tokenizer (texts come as the token ids of a data set) and a list of answers.
        checkpoint: Where a training starts: a public checkpoint of mmpretrain, read by :meth:`init_weights`.

    Raises:
        KeyError: If there is no backbone for the type.
        ValueError: If there is no model or no type, or the model has a part that cannot be trimmed.
    """

    host: Any  # mmpretrain has no types
    checkpoint: str | None

    def __new__(cls, *, model: Mapping[str, Any] | None = None, **_: Any) -> MMPretrainBackbone:
        return super().__new__(MMPRETRAIN_MODELS.get(model_name(model)) if cls is MMPretrainBackbone else cls)

    @classmethod
    def small_configs(cls) -> dict[str, dict[str, Any]]:
        """Configs of small instances of every model, by its name and the variant's."""
        MMPRETRAIN_MODELS.import_from_location()
        return {
            f"{name} {variant}": {"type": "MMPretrainBackbone", **config}
            for name, kind in sorted(MMPRETRAIN_MODELS.module_dict.items())
            for variant, config in kind.variants().items()
        }

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Arguments of small instances of this model by name."""
        raise NotImplementedError(f"{cls.__name__} does not define variants()")

    @property
    def steps(self) -> dict[str, list[LayerStep]]:
        """Views of all layers by stage, in the order of execution."""
        raise NotImplementedError(f"{type(self).__name__} does not define steps")

    @property
    def input_format(self) -> dict[str, int]:
        """Sizes and token ids of the inputs, see :func:`smarttrim_mm.utils.random_inputs.random_inputs`."""
        raise NotImplementedError(f"{type(self).__name__} does not define input_format")

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """Mmpretrain's own forward."""
        raise NotImplementedError(f"{type(self).__name__} does not define host_forward()")

    def init_weights(self) -> None:
        """Initialises as mmpretrain does, loads ``checkpoint``; the Runner calls this ahead of ``load_from`` and ``resume``."""
        self.host.init_weights()
        if self.checkpoint is not None:
            found = self.load(self.checkpoint)
            print_log(f"{type(self.host).__name__} starts from {self.checkpoint}:\n{found.table()}", logger="current")

    def load(self, path: str) -> Conversion:
        """Loads a public checkpoint, see :func:`~smarttrim_mm.backbones.mmpretrain_checkpoint.load_public`."""
        return load_public(self.host, path)


def model_name(model: Mapping[str, Any] | None) -> str:
    """Mmpretrain's name of a model, from its config.

    Raises:
        ValueError: If it has none.
    """
    if model is None or "type" not in model:
        given = "None" if model is None else f"a config of {', '.join(model) or 'nothing'}"
        raise ValueError(f"model.backbone.model is {given}; expected mmpretrain's config of a model, with its type")
    kind = model["type"]
    return kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__
