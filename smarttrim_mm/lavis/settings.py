"""What a LAVIS config file says of a trimmed model: its trimming, its tokenizer, and where its weights come from."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from transformers import BertTokenizer

from smarttrim_mm.backbones.lavis_checkpoint import convert_public, lacking, take, with_vision
from smarttrim_mm.backbones.lavis_host import import_lavis
from smarttrim_mm.hooks.schedule import ScheduleHook
from smarttrim_mm.lavis.rebound import rebound
from smarttrim_mm.models.checkpoint import list_keys
from smarttrim_mm.registry import HOOKS
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

_POLICY = "policy."


@dataclass(frozen=True, kw_only=True)
class Trimming:
    """The section ``model.trimming``.

    Attributes:
        policy: Who decides, config of ``POLICIES``.
        distillation: Config of the loss between the trimmed and the dense pass; None: no dense pass.
        budget: Config of the loss on what was kept; None: none.
        text_first: See :class:`~smarttrim_mm.backbones.lavis.LavisBackbone`.
        checkpoint_layers: Whether layers are recomputed in the backward pass to save memory.
        attention: See :class:`~smarttrim_mm.models.trimmed_vlm.TrimmedVLM`; ``packed_from`` and ``compile`` too.
        schedules: Configs of the hooks that move something while a training runs (``CurriculumHook``, ``NoiseHook``).
        epochs: How long that training is, ``${run.max_epoch}``.
    """

    policy: Mapping[str, Any]
    distillation: Mapping[str, Any] | None = None
    budget: Mapping[str, Any] | None = None
    text_first: bool = False
    checkpoint_layers: bool = False
    attention: str | Mapping[str, Any] = "auto"
    packed_from: int | Literal["auto"] = "auto"
    compile: bool | Mapping[str, Any] = False
    schedules: list[Mapping[str, Any]] = field(default_factory=list)
    epochs: float | None = None

    @classmethod
    def read(cls, section: Mapping[str, Any] | None) -> "Trimming":
        """Checks the section.

        Raises:
            ValueError: If it is missing or incomplete, or has an unknown setting.
        """
        known = [each.name for each in fields(cls)]
        if not section or not section.get("policy"):
            raise ValueError(
                "model.trimming.policy is missing; say in the YAML who decides, such as trimming: {policy: {type: SmartTrim}}, "
                f"or {{policy: {{type: Dense}}}} for LAVIS's model as it is. Other settings of trimming: {', '.join(known[1:])}"
            )
        unknown = sorted(section.keys() - set(known))
        if unknown:
            raise ValueError(f"model.trimming has {', '.join(map(repr, unknown))}; expected settings of {', '.join(known)}")
        trimming = cls(**section)
        if (trimming.distillation or {}).get("frozen_teacher"):
            raise ValueError(
                "model.trimming.distillation.frozen_teacher is set; under LAVIS the dense pass of the weights in training "
                "teaches. Leave it out, or train with this package's own tools"
            )
        if trimming.schedules and not trimming.epochs:
            raise ValueError(
                f"model.trimming.epochs is {trimming.epochs}; schedules need the length of the training. Set "
                "epochs: ${run.max_epoch}"
            )
        return trimming

    def hooks(self) -> list[ScheduleHook]:
        """The hooks of ``schedules``.

        Raises:
            ValueError: If one of them moves nothing.
        """
        hooks = [HOOKS.build(dict(each)) for each in self.schedules]
        for hook in hooks:
            if not isinstance(hook, ScheduleHook):
                raise ValueError(
                    f"model.trimming.schedules has a {type(hook).__name__}; expected hooks that move something with the "
                    "training, such as CurriculumHook or NoiseHook: LAVIS's runner calls no others"
                )
        return hooks


def plain(node: Any) -> Any:
    """A part of an OmegaConf config as dictionaries and lists, interpolations resolved."""
    conf = import_lavis("omegaconf").OmegaConf
    return conf.to_container(node, resolve=True) if conf.is_config(node) else node


def read_tokenizer(host_class: Any, folder: str | None) -> Any:
    """LAVIS's own tokenizer of a model, from this machine's files only.

    Args:
        host_class: LAVIS's class.
        folder: Where its files are; None: in the local cache of Hugging Face.

    Raises:
        ValueError: If they are not there.
    """

    class Local:
        @staticmethod
        def from_pretrained(name: str) -> Any:
            return BertTokenizer.from_pretrained(name if folder is None else folder, local_files_only=True)

    try:
        return rebound(host_class.init_tokenizer.__func__, BertTokenizer=Local)(host_class)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"model.tokenizer is {folder!r}; expected a folder with BERT's vocab.txt"
            + (", as bert-base-uncased is not in the local Hugging Face cache" if folder is None else "")
            + ", and nothing is downloaded here. On a machine with a network run `huggingface-cli download bert-base-uncased "
            "config.json vocab.txt --local-dir data/bert-base-uncased`, copy the folder here, and set model.tokenizer to it"
        ) from error


def load_weights(model: Any, cfg: Mapping[str, Any]) -> None:
    """Loads what a config says: ``finetuned`` unless ``load_finetuned`` is off, else ``pretrained`` likewise.

    Args:
        model: The model.
        cfg: The section ``model``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no path or a web address, or the file is damaged, wants to run code, or does not fit.
    """
    for kind in ("finetuned", "pretrained"):
        if not cfg.get(f"load_{kind}", kind in cfg):
            continue
        path = cfg.get(kind)
        if path is None or "://" in path:
            raise ValueError(
                f"model.{kind} is {path}; expected a file on this machine, as nothing is downloaded here. Get the file that "
                f"LAVIS's config names and set model.{kind} to its path, or set model.load_{kind}: False"
            )
        load_file(model, path, whole=kind == "finetuned", vision=cfg.get("vision_checkpoint"))
        return


def load_file(model: Any, path: str | Path, *, whole: bool, vision: str | None = None) -> None:
    """Loads a public checkpoint, or one of LAVIS's runner with or without a policy, all or nothing.

    Args:
        model: The model.
        path: The file: ``{'model': state dict}``, or a state dict.
        whole: Whether everything but the policy must be in it.
        vision: The file of BLIP-2's image encoder, for what the first has not.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, wants to run code, or does not fit.
    """
    content = load_checkpoint_file(path, mmap=True)
    weights = content.get("model", content.get("state_dict", content))
    if vision is not None:
        weights = with_vision(weights, vision, model)
    policy = {key: value for key, value in weights.items() if key.startswith(_POLICY)}
    found = convert_public({key: value for key, value in weights.items() if key not in policy}, model)
    new = lacking(found)
    if whole and new:
        raise ValueError(
            f"{path} has nothing for {len(new)} weights ({', '.join(sorted(new)[:3])} ...): it is no fine-tuned file of this "
            "model. Name it as model.pretrained, with load_finetuned: False"
        )
    own = {key: value for key, value in model.state_dict().items() if key.startswith(_POLICY)}
    if policy:
        both = own.keys() & policy.keys()
        problems = list_keys("missing", own.keys() - policy.keys()) + list_keys("unexpected", policy.keys() - own.keys())
        problems += list_keys("of another shape", [key for key in both if own[key].shape != policy[key].shape])
        if problems:
            raise ValueError(
                "\n".join([f"the policy in {path} is another than model.trimming.policy; nothing was loaded", *problems])
            )
    elif own:
        logging.warning("%s has no policy: model.trimming.policy starts untrained", path)
    take(found, model)
    model.load_state_dict(policy, strict=False)
    logging.info("weights of %s:\n%s", path, found.table())
