"""The mmengine model: a backbone, a policy, and the losses that train both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from mmengine.model import BaseModel
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from smarttrim_mm.attention.base import AUTO, ChosenAttention
from smarttrim_mm.inputs import BoxTargets, Targets, TextTargets, VLMInputs
from smarttrim_mm.layers.execution import Execution, Kind
from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.layers.token_wise import CompiledTokenWise, TokenWise
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.losses.budget import BudgetLoss
from smarttrim_mm.losses.distillation import SelfDistillation
from smarttrim_mm.models.checkpoint import check_state_dict, load_backbone
from smarttrim_mm.models.layer_subset import load_layers
from smarttrim_mm.models.predictions import answers_of, write_scores
from smarttrim_mm.models.slicing import Slices, require_plan, slice_backbone
from smarttrim_mm.pairs import PairLogits, parts_of
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.registry import MODELS, POLICIES


@MODELS.register_module()
class TrimmedVLM(BaseModel):
    """A vision-language model that leaves out what its policy does not keep.

    Training runs masked, inference packed. With distillation, the dense and the trimmed pass both lie inside one
    :meth:`forward` call, so that a distributed wrapper sees one forward.

    Args:
        backbone: The host model, config of ``MODELS``, or built.
        policy: Who decides, config of ``POLICIES``.
        sliced: A checkpoint of a model that was sliced (``tools/slice.py``): the backbone is sliced as that was, before
            anything is loaded, and ``Dense`` takes the place of a policy that searches for slices. Tools that are given such a
            checkpoint set it themselves. None: the backbone is as its config says.
        task_loss: Loss on logits and targets, or several, by names with ``'loss'``, and numbers to log. With a method
            ``prepare(backbone, inputs)`` it says at each step what the targets are.
        distillation: Loss on trimmed and dense logits, see
            :class:`~smarttrim_mm.losses.distillation.SelfDistillation`; None: no dense pass.
        budget: Loss on the record of what was kept; None: none.
        checkpoint_layers: Whether layers are recomputed in the backward pass to save memory.
        attention: Computes the attention of packed streams: a name in ``ATTENTION_BACKENDS``, a config of one, or ``'auto'``,
            the best that can run.
        compile: Whether inference runs what is done to each token alone (norms, MLPs, residual sums) through ``torch.compile``;
            or its ``mode``, ``options`` or ``backend``, as a dict. Training never does.
        packed_from: Image-text pairs of a batch from which on inference is packed. Fewer run in dense shapes with the same
            decisions: where there is little to leave out, packing costs more than it saves
            (``tools/benchmark.py --crossover`` measures where). ``'auto'``: on a CPU each batch begins in dense shapes and is
            packed from the layer on from which that pays, where layers are large at once; elsewhere every batch is packed.
        init_layers: Starts a training from the weights of the frozen teacher, of which it keeps these layers: by the name of
            each list of layers in the backbone (``'text_transformer.encoder.layer'``), the teacher's numbers, in the student's
            order. Lists that are not named are taken whole; None: it starts otherwise.
        data_preprocessor: Collated batches to model inputs.
        init_cfg: mmengine's initialisation.

    Attributes:
        listeners: Called with the record of each trimmed pass in training; a hook that watches it adds itself.
    """

    def __init__(
        self,
        *,
        backbone: Mapping[str, Any] | nn.Module,
        policy: Mapping[str, Any],
        sliced: str | None = None,
        task_loss: Mapping[str, Any] = {"type": "AnswerCrossEntropy"},
        distillation: Mapping[str, Any] | None = None,
        budget: Mapping[str, Any] | None = None,
        checkpoint_layers: bool = False,
        attention: str | Mapping[str, Any] = "auto",
        compile: bool | Mapping[str, Any] = False,
        packed_from: int | Literal["auto"] = "auto",
        init_layers: Mapping[str, Sequence[int]] | None = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = cast(Any, backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone))
        self.slices: Slices | None = None
        if sliced is not None:
            self.slices = Slices(require_plan(sliced))
            slice_backbone(self.backbone, self.slices.plan)
        steps = self.layer_steps
        self.policy: Policy = POLICIES.build(policy, default_args={"steps": steps})
        self.dense = Dense(steps=steps)
        if sliced is not None and self.policy.searches:
            self.policy = self.dense
        self.task_loss = MODELS.build(task_loss)
        self.distillation: SelfDistillation | None = MODELS.build(distillation) if distillation else None
        self.budget: BudgetLoss | None = MODELS.build(budget) if budget else None
        self.checkpoint_layers = checkpoint_layers
        self.attention = ChosenAttention(attention)
        if not isinstance(compile, bool | Mapping):
            raise ValueError(
                f"compile is {compile!r}; expected True, False, or a dict of settings such as dict(mode='default')"
            )
        self.token_wise = TokenWise() if compile is False else CompiledTokenWise(**({} if compile is True else compile))
        if packed_from != AUTO and not (isinstance(packed_from, int) and packed_from >= 1):
            raise ValueError(f"packed_from is {packed_from!r}; expected 'auto' or a number of pairs, 1 packs every batch")
        self.packed_from: int | Literal["auto"] = packed_from
        if init_layers is not None and not (self.distillation and self.distillation.frozen_teacher):
            raise ValueError(
                f"init_layers names layers of {sorted(init_layers)}, but there is no teacher to take them from; set "
                "model.distillation.frozen_teacher to its checkpoint"
            )
        self.init_layers = init_layers
        self.listeners: list[Callable[[TrimRecord], None]] = []
        self._frozen: list[nn.Module] = []  # a list, so that the frozen teacher is neither saved nor trained
        self._register_load_state_dict_pre_hook(self._check_state_dict)

    def forward(self, inputs: VLMInputs, data_samples: list[DataSample] | None = None, mode: str = "tensor") -> Any:
        """Runs the model.

        Args:
            inputs: The batch.
            data_samples: One per image, with its questions, if any.
            mode: ``'loss'``: dict of losses and numbers to log; ``'predict'``: the data samples with ``pred_scores`` [Q, C], or
                what the backbone predicts, and ``trim`` (per question: multiply-adds and kept ratios); ``'tensor'``: logits
                [G, C].

        Raises:
            ValueError: If ``mode`` is none of these, or targets or data samples are missing.
        """
        if mode == "loss":
            return self.loss(inputs)
        if mode == "predict":
            if data_samples is None:
                raise ValueError("data_samples is None; mode 'predict' needs one sample an image to write the results into")
            return self.predict(inputs, data_samples)
        if mode == "tensor":
            return self.trace(inputs)[0]
        raise ValueError(f"mode is {mode!r}; expected 'loss', 'predict' or 'tensor'")

    def init_weights(self) -> None:
        """As every mmengine model, and then from layers of the teacher; the Runner calls this ahead of a checkpoint."""
        super().init_weights()
        if self.init_layers is not None and self.distillation is not None and self.distillation.frozen_teacher:
            load_layers(self.backbone, self.distillation.frozen_teacher, self.init_layers)

    def loss(self, inputs: VLMInputs) -> dict[str, Tensor]:
        """Losses (keys with ``'loss'``), accuracy, speed-up, and the kept ratios of every layer, as scalars."""
        return self.learn(inputs)[0]

    def learn(self, inputs: VLMInputs) -> tuple[dict[str, Tensor], Tensor | PairLogits]:
        """What :meth:`loss` gives, and the logits of the trimmed pass."""
        prepare = getattr(self.task_loss, "prepare", None)
        if prepare is not None:
            inputs = prepare(self.backbone, inputs)
        if inputs.targets is None:
            raise ValueError("inputs.targets is None; mode 'loss' needs an answer for every question")
        frozen = self.distillation is not None and self.distillation.frozen_teacher
        teacher = None if frozen else self._teach(inputs)
        logits, record = self._run(inputs.after(teacher), self.policy, "masked")
        for listener in self.listeners:
            listener(record)
        inputs = inputs.after(logits)
        if frozen:  # after it, as the model in training chooses what both are asked
            teacher = self._teach(inputs)
        if min(part.shape[1] for part in parts_of(logits)) < 2:
            raise ValueError(
                f"the model gives scores {list(parts_of(logits)[0].shape)}, one a sample, which no loss can compare: a ranking "
                "head needs several texts an image. Set data_preprocessor.rank_texts=True"
            )
        losses = self._task_losses(logits, inputs)
        if self.distillation is not None and teacher is not None:
            losses["loss_distill"] = self.distillation(logits, teacher)
            if self.distillation.dense_task_weight:
                dense = torch.stack([v for k, v in self._task_losses(teacher, inputs).items() if "loss" in k]).sum()
                losses["loss_dense_task"] = self.distillation.dense_task_weight * dense
        if self.budget is not None:
            losses |= self.budget(record)
        losses |= self.policy.losses(record)
        return losses | _scalars(logits, inputs.targets, record), logits

    @torch.inference_mode()
    def predict(self, inputs: VLMInputs, data_samples: list[DataSample]) -> list[DataSample]:
        """Answers every question; fills in ``trim`` of each data sample, and ``pred_scores`` or what the backbone predicts.

        ``trim`` is the record's summary, and ``packed``: 1 where what was dropped was left out, from some layer on at least, 0
        where all ran in dense shapes.
        Of a sliced model also ``unsliced_multiply_adds``: what it would take on all tokens had it not been sliced.

        A backbone with ``predict(inputs, execution, data_samples)`` fills in something else itself.

        Raises:
            ValueError: If the backbone's head scores pairs for retrieval.
        """
        record = self.answer(inputs, data_samples)
        trim = record.summary()
        trim["packed"] = torch.full_like(trim["multiply_adds"], record.packed)
        if self.slices is not None:
            trim["unsliced_multiply_adds"] = self.slices.unsliced_multiply_adds(record, self.layer_steps)
        begin = 0
        for sample in data_samples:
            rows = slice(begin, begin + answers_of(sample))
            sample.set_field({key: value[rows] for key, value in trim.items()}, "trim", dtype=dict)
            begin = rows.stop
        return data_samples

    @torch.inference_mode()
    def answer(self, inputs: VLMInputs, data_samples: list[DataSample]) -> TrimRecord:
        """What :meth:`predict` does, but for ``trim``: returns the record of what was kept instead."""
        execution = self.execution(inputs)
        if hasattr(self.backbone, "predict"):
            self.backbone.predict(inputs, execution, data_samples)
        else:
            write_scores(self.backbone(inputs, execution), data_samples)
        return execution.record

    def trace(self, inputs: VLMInputs, kind: Kind | None = "packed", policy: Policy | None = None) -> tuple[Tensor, TrimRecord]:
        """Logits [G, C] and the record of what was kept.

        Args:
            inputs: The batch.
            kind: ``'packed'``, ``'masked'`` or ``'adaptive'``; None: that of inference.
            policy: Decides instead of the model's own.
        """
        return self._run(inputs, policy or self.policy, kind)

    def host_forward(self, inputs: VLMInputs) -> Tensor:
        """The host model's own dense forward, logits [G, C].

        Raises:
            RuntimeError: Of a sliced model, if the host's own code cannot run with heads gone.
        """
        try:
            return self.backbone.host_forward(inputs if self.backbone.share_images else inputs.unshared())
        except RuntimeError as error:
            if self.slices is None:
                raise
            raise RuntimeError(
                f"the model is sliced, and the own forward of its host, in a {type(self.backbone).__name__}, cannot run what "
                f"is left ({error}): LAVIS's ViT takes a head's width from the tokens' width. Run the model, or the host "
                "within backbone.with_sdpa()"
            ) from error

    @property
    def layer_steps(self) -> list[LayerStep]:
        """Views of all layers of the backbone, in the order of execution."""
        return [step for stage in self.backbone.steps.values() for step in stage]

    @property
    def ranks_texts(self) -> bool:
        """Whether the backbone's head scores image-text pairs for retrieval."""
        return getattr(self.backbone, "ranks_texts", False)

    @property
    def frozen(self) -> tuple[nn.Module, ...]:
        """The frozen teacher, which is no part of the state, once it has taught."""
        return tuple(self._frozen)

    def set_curriculum(self, progress: float) -> None:
        """Moves policy and budget between keeping everything (0) and their final strength (1)."""
        self.policy.set_curriculum(progress)
        if self.budget is not None:
            self.budget.set_curriculum(progress)

    def execution(self, inputs: VLMInputs, kind: Kind | None = None, policy: Policy | None = None) -> Execution:
        """A forward pass of a batch, for the backbone to run.

        Args:
            inputs: The batch.
            kind: ``'packed'``, ``'masked'`` or ``'adaptive'``; None: that of inference.
            policy: Decides instead of the model's own.
        """
        return Execution(
            policy or self.policy,
            sample_ids=inputs.sample_ids,
            kind=kind or self.inference_kind(inputs),
            checkpoint_layers=self.checkpoint_layers and torch.is_grad_enabled(),
            pairs_per_sample=inputs.pairs_per_sample,
            attention=self.attention,
            token_wise=self.token_wise,
        )

    def inference_kind(self, inputs: VLMInputs) -> Kind:
        """How a batch is run at inference: packed, or in dense shapes below ``packed_from``, or as pays."""
        if not isinstance(self.packed_from, int):
            return "adaptive" if inputs.sample_ids.device.type == "cpu" else "packed"
        return "packed" if len(inputs.sample_ids) >= self.packed_from else "masked"

    def _run(self, inputs: VLMInputs, policy: Policy, kind: Kind | None) -> tuple[Any, TrimRecord]:
        execution = self.execution(inputs, kind, policy)
        logits = self.backbone(inputs, execution)
        return logits, execution.record

    def _task_losses(self, logits: Tensor | PairLogits, inputs: VLMInputs) -> dict[str, Tensor]:
        losses = self.task_loss(logits, inputs.targets)
        return losses if isinstance(losses, dict) else {"loss_task": losses}

    def _teach(self, inputs: VLMInputs) -> Tensor | PairLogits | None:
        if self.distillation is None:
            return None
        if self.distillation.frozen_teacher:
            return self._frozen_logits(inputs, self.distillation.frozen_teacher)
        with torch.set_grad_enabled(self.distillation.dense_task_weight > 0):
            return self._run(inputs, self.dense, "masked")[0]

    @torch.no_grad()
    def _frozen_logits(self, inputs: VLMInputs, checkpoint: str) -> Tensor | PairLogits:
        if not self._frozen:
            config = self.distillation.teacher_backbone if self.distillation else None
            teacher = copy.deepcopy(self.backbone) if config is None else MODELS.build(config)
            load_backbone(teacher, checkpoint)
            device = next(self.backbone.parameters()).device
            self._frozen.append(teacher.to(device).eval().requires_grad_(False))
        execution = Execution(self.dense, sample_ids=inputs.sample_ids, kind="masked", pairs_per_sample=inputs.pairs_per_sample)
        return self._frozen[0](inputs, execution)

    def _check_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
        check_state_dict(self, state_dict, prefix)


def is_right(logits: Tensor | PairLogits, targets: Targets | None) -> Tensor:
    """Whether the highest of the logits [G, C] is the target's, or a best one of soft targets.

    Returns:
        bool [G]; [K] of tokens, [4 G] of the coordinates of boxes, [3 B] of the pairs of a training of retrieval.
    """
    if isinstance(logits, PairLogits):
        return logits.right()
    assert isinstance(targets, Tensor | TextTargets | BoxTargets)
    predicted = logits.argmax(-1)
    if isinstance(targets, BoxTargets):
        return predicted == targets.bins(logits.shape[-1]).flatten()
    if isinstance(targets, TextTargets):
        return predicted == targets.tokens
    if targets.dim() == 1:
        return predicted == targets
    best = targets.amax(-1)
    return (targets.gather(-1, predicted.unsqueeze(-1)).squeeze(-1) == best) & (best > 0)


def _scalars(logits: Tensor | PairLogits, targets: Targets | None, record: TrimRecord) -> dict[str, Tensor]:
    with torch.no_grad():
        decided, dense = record.multiply_adds().mean(), record.dense_multiply_adds().mean()
        return {
            "accuracy": is_right(logits, targets).float().mean(),
            "speedup": dense / decided,
            "multiply_adds": decided / 1e6,
            **{f"kept/{key}": ratio.mean() for key, ratio in record.kept().items()},
            **{f"heads/{key}": ratio.mean() for key, ratio in record.heads().items()},
            **{f"runs/{key}": ratio.mean() for key, ratio in record.runs().items()},
        }
