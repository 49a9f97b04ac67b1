"""A model of LAVIS that is trimmed: LAVIS's own class around the adapter of a backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchEncoding

from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.backbones.lavis_host import import_lavis
from smarttrim_mm.inputs import TextTargets, VLMInputs
from smarttrim_mm.lavis.settings import Trimming, load_weights, plain, read_tokenizer
from smarttrim_mm.layers.execution import Kind
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM

BaseModel: Any = import_lavis("lavis.models.base_model").BaseModel

_METHODS: dict[type[LavisBackbone], type[TrimmedModel]] = {}


class TrimmedModel(BaseModel):
    """Base: LAVIS's class of an architecture comes after it in a subclass, with its constructor and its parameters.

    What LAVIS's host has keeps LAVIS's names in the state dict; the policy's lie below ``policy.``.

    Args:
        tokenizer: The host's.
        trimming: The section ``model.trimming``.
        **arguments: Of LAVIS's constructor.

    Attributes:
        last_losses: Scalars of the last training step by name: losses, ``speedup``, kept ratios.
        last_record: What the last prediction kept and took; not of re-ranking, which is many passes.
    """

    arch: ClassVar[str]
    host_class: ClassVar[Any]
    adapter: ClassVar[type[LavisBackbone]]
    output_class: ClassVar[Any]  # LAVIS's, with a loss
    task_loss: ClassVar[Mapping[str, Any]]
    padding: ClassVar[str] = "longest"  # of texts, as transformers has it

    def __init__(self, *, tokenizer: Any, trimming: Mapping[str, Any], **arguments: Any) -> None:
        self._given_tokenizer = tokenizer  # first: LAVIS's constructor asks for it
        super().__init__(**arguments)
        settings = Trimming.read(trimming)
        # not among the submodules, as it holds this model
        self._trimmed = [
            TrimmedVLM(
                backbone=self.adapter.around(self, arch=self.arch, text_first=settings.text_first),
                policy=settings.policy,
                task_loss=self.task_loss,
                distillation=settings.distillation,
                budget=settings.budget,
                checkpoint_layers=settings.checkpoint_layers,
                attention=settings.attention,
                packed_from=settings.packed_from,
                compile=settings.compile,
            )
        ]
        self.policy = self.trimmed.policy
        self._schedules, self._epochs = settings.hooks(), settings.epochs
        for hook in self._schedules:
            hook.check(self)
        self._at: tuple[int, int] | None = None  # iterations done, and all of them
        self.last_losses: dict[str, Tensor] = {}
        self.last_record: TrimRecord | None = None
        self._spent = torch.zeros(3, dtype=torch.float64)  # samples, their multiply-adds, and dense ones

    @classmethod
    def from_config(cls, cfg: Any = None) -> Any:
        """Builds a model from the section ``model`` of a LAVIS config file.

        Besides LAVIS's settings it reads ``trimming`` (:class:`~smarttrim_mm.lavis.settings.Trimming`), ``tokenizer`` (a
        folder), and ``vision``, ``text`` and ``decoder``, which are those of a
        :class:`~smarttrim_mm.backbones.lavis.LavisBackbone`. Nothing is downloaded. But for retrieval there are no momentum
        copies: LAVIS's ``use_distill``, ``momentum`` and ``alpha`` have no effect.

        Args:
            cfg: The section.

        Raises:
            FileNotFoundError: If a file of weights is missing.
            ValueError: If the trimming, the tokenizer or the weights do not fit.
        """
        trimming = plain(cfg.get("trimming"))
        Trimming.read(trimming)  # before anything large is built
        tokenizer = read_tokenizer(cls.host_class, cfg.get("tokenizer"))
        vision, text, decoder = (plain(cfg.get(name)) or {} for name in ("vision", "text", "decoder"))
        arguments = cls.adapter.host_arguments(cls.host_class, cls.arch, cfg, vision, text, decoder, {})
        model = cls(tokenizer=tokenizer, trimming=trimming, **arguments)
        load_weights(model, cfg)
        return model

    def init_tokenizer(self) -> Any:
        """The tokenizer that was given; LAVIS's own method downloads one."""
        return self._given_tokenizer

    @property
    def trimmed(self) -> TrimmedVLM:
        """The model as this package's own trainings have it: a backbone around this one, the policy, the losses."""
        return self._trimmed[0]

    @property
    def kind(self) -> Kind | None:
        """How a batch is run: in training masked, else as :meth:`TrimmedVLM.inference_kind` says."""
        return "masked" if self.training else None

    @property
    def backbone(self) -> Any:
        """The adapter around this model."""
        return self.trimmed.backbone

    def set_curriculum(self, progress: float) -> None:
        """Moves policy and budget between keeping everything (0) and their final strength (1)."""
        self.trimmed.set_curriculum(progress)

    def inputs_of(self, samples: dict[str, Any], targets: Tensor | TextTargets | None = None) -> VLMInputs:
        """A batch as LAVIS's data sets collate it, tokenized as LAVIS does; ``tokenized_text`` is written into it.

        Args:
            samples: ``image``, or ``image0`` and ``image1``; ``text_input``; identities, if it has ``question_id`` or
                ``instance_id``.
            targets: Of the batch.
        """
        each = self.adapter.images_per_text
        images = [samples["image"]] if each == 1 else [samples[f"image{i}"] for i in range(each)]
        words = self._tokenize(samples["text_input"])
        samples["tokenized_text"] = words
        ids = identities(samples, len(words.input_ids)).to(self.device)
        pairs = torch.arange(len(ids), device=self.device).repeat_interleave(each)
        return VLMInputs(
            images=torch.stack(images, 1).flatten(0, 1),
            image_index=None,
            image_ids=(ids[:, None] * each + torch.arange(each, device=self.device)).flatten(),
            input_ids=words.input_ids,
            text_mask=words.attention_mask.bool(),
            special_mask=self._special(words.input_ids),
            sample_ids=(ids[:, None] * each + torch.arange(each, device=self.device)).flatten(),
            targets=targets,
            text_index=None if each == 1 else pairs,
            text_ids=None if each == 1 else ids,
            pairs_per_sample=each,
        )

    def learn(self, samples: dict[str, Any], targets: Tensor | TextTargets | None) -> tuple[Tensor, Any]:
        """The sum of all losses, and the logits of the trimmed pass.

        In training mode the schedules are at the place that ``epoch``, ``iters`` and ``num_iters_per_epoch`` say, which
        LAVIS's tasks write into the batch.

        Args:
            samples: The batch.
            targets: Its targets.

        Raises:
            ValueError: If there are schedules and the batch does not say where in the training it is.
        """
        if self.training and self._schedules:
            self._move(samples)
        losses, logits = self.trimmed.learn(self.inputs_of(samples, targets))
        loss, scalars = self.trimmed.parse_losses(losses)
        self.last_losses = {name: value.detach() for name, value in scalars.items()}
        return loss, logits

    def trace(self, samples: dict[str, Any]) -> Tensor:
        """Logits of a batch, [G, C]."""
        logits, record = self.trimmed.trace(self.inputs_of(samples), self.kind)
        self._note(record)
        return logits

    def before_evaluation(self, **kwargs: Any) -> None:
        """LAVIS's tasks call this: schedules go to where the training is now, and the report begins anew."""
        super().before_evaluation(**kwargs)
        if self._at is not None:
            self._go_to(*self._at)
        self._spent.zero_()

    def compute_report(self) -> dict[str, float]:
        """What predictions took since the evaluation began, in this process.

        Returns:
            ``samples``; means of ``multiply_adds`` and ``dense_multiply_adds``, in millions a sample; ``speedup``, the ratio of
            the two. Nothing before the first prediction.
        """
        samples, decided, dense = self._spent.tolist()
        if not samples:
            return {}
        means = {"multiply_adds": decided / samples / 1e6, "dense_multiply_adds": dense / samples / 1e6}
        return {"samples": samples, **means, "speedup": dense / decided}

    def _note(self, record: TrimRecord) -> None:
        self.last_record = record
        with torch.no_grad():
            self._spend(record.multiply_adds(), record.dense_multiply_adds())

    def _spend(self, decided: Tensor, dense: Tensor) -> None:
        """Adds samples to the report: the multiply-adds of each, [G]."""
        sums = [cost.double().sum().item() for cost in (decided, dense)]
        self._spent += torch.tensor([len(decided), *sums], dtype=torch.float64)

    def _move(self, samples: Mapping[str, Any]) -> None:
        place = place_of(samples, "model.trimming.schedules need", ", or leave schedules out and call set_curriculum()")
        done = place["epoch"] * place["num_iters_per_epoch"] + place["iters"]
        all_of_them = max(round((self._epochs or 0) * place["num_iters_per_epoch"]), 1)
        self._go_to(done, all_of_them)
        self._at = (done + 1, all_of_them)

    def _go_to(self, done: int, all_of_them: int) -> None:
        for hook in self._schedules:
            hook.apply(self, hook.progress(done, all_of_them))

    def _special(self, input_ids: Tensor) -> Tensor:
        """True at tokens that no policy may drop."""
        special = torch.tensor([self.tokenizer.cls_token_id, self.tokenizer.sep_token_id], device=input_ids.device)
        return torch.isin(input_ids, special)

    def _tokenize(self, texts: str | list[str] | BatchEncoding) -> Any:
        """Texts as LAVIS's own forward tokenizes them; NLVR2's of BLIP are not cut."""
        if isinstance(texts, BatchEncoding):
            return texts
        cut = {"truncation": True, "max_length": self.max_txt_len} if hasattr(self, "max_txt_len") else {}
        texts = [texts] if isinstance(texts, str) else texts
        return self.tokenizer(texts, padding=self.padding, return_tensors="pt", **cut).to(self.device)


def place_of(samples: Mapping[str, Any], who: str, instead: str = "") -> dict[str, Any]:
    """Where the training is: what LAVIS's tasks write of it into a batch.

    Args:
        samples: The batch.
        who: Needs to know it, for the message.
        instead: What else could be done, likewise.

    Raises:
        ValueError: If the batch does not say.
    """
    names = ("epoch", "iters", "num_iters_per_epoch")
    missing = [name for name in names if name not in samples]
    if missing:
        raise ValueError(
            f"the batch has no {', '.join(missing)}, and {who} to know where the training is. LAVIS's tasks write them; in a "
            f"loop of your own do so too{instead}"
        )
    return {name: samples[name] for name in names}


def methods_of(adapter: type[LavisBackbone]) -> Callable[[type[TrimmedModel]], type[TrimmedModel]]:
    """Decorates the methods of LAVIS's models whose adapters are of a class, or of a subclass of it."""

    def register(methods: type[TrimmedModel]) -> type[TrimmedModel]:
        _METHODS[adapter] = methods
        return methods

    return register


def trimmed_class(arch: str, adapter: type[LavisBackbone], host_class: Any) -> type[TrimmedModel] | None:
    """The trimmed class of an architecture; None if nobody has written the methods of its kind.

    Args:
        arch: LAVIS's name of it.
        adapter: Its adapter.
        host_class: LAVIS's class.
    """
    methods = next((_METHODS[kind] for kind in adapter.__mro__ if kind in _METHODS), None)
    if methods is None:
        return None
    family = arch.partition("_")[0].rstrip("2")  # BLIP-2's outputs are BLIP's
    outputs = import_lavis(f"lavis.models.{family}_models.{family}_outputs")
    own = {
        "__doc__": f"LAVIS's ``{arch}``, trimmed.",
        "arch": arch,
        "adapter": adapter,
        "host_class": host_class,
        "output_class": getattr(outputs, f"{family.capitalize()}OutputWithLogits"),
        **adapter.host_methods,
    }
    return type(f"SmartTrim{host_class.__name__}", (methods, host_class), own)


def identities(samples: Mapping[str, Any], count: int) -> Tensor:
    """Stable numbers of the samples of a batch, long [G], where its data set has them."""
    for name in ("question_id", "instance_id"):
        given = [str(int(each) if isinstance(each, Tensor) else each) for each in samples.get(name, ())]
        if given and all(each.isdecimal() for each in given):
            return torch.tensor([int(each) for each in given])
    return torch.arange(count)
