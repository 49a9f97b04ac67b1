"""DynamicViT (Rao et al., NeurIPS 2021, arXiv 2106.02034): predictors at a few layers say which tokens go."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.ops.gates import gumbel_keep
from smarttrim_mm.ops.ranking import keep_top
from smarttrim_mm.policies.base import (
    Knob,
    Policy,
    UnsupportedBackboneError,
    check_streams,
    chosen_steps,
    cuts_so_far,
    is_chosen,
)
from smarttrim_mm.registry import POLICIES
from smarttrim_mm.structures import Decision, Scores, Streams, TokenStream

_STABLE_LOGIT = 5.0  # keep minus drop at first: 0.7 % of the samples drop


@POLICIES.register_module()
class DynamicViT(Policy):
    """Drops tokens in a few stages, each a predictor before a layer (section 3).

    Trained, a token's decision is a hard Gumbel-softmax sample of the predictor's two logits, and what was dropped stays
    dropped; the loss pulls the kept share of each instance at stage s to ``keep_ratio ** s``. At inference each instance keeps
    exactly that share of its tokens at stage s, those that the predictor likes best. The paper adds the task's loss and
    0.5 KL to a dense teacher (``SelfDistillation``).

    Ours: the KL's teacher is what the config says; the paper's distillation of the kept tokens (weight 0.5) is left out, as it
    needs the teacher's features in the last layer. A query does not attend to itself once its token was dropped
    (:mod:`smarttrim_mm.ops.attention`). Shares are of the instance's own tokens, the protected ones (the paper: the class
    token) neither counted nor ranked. Stages lie where the config says, in any encoder and for texts too; their ratio falls
    with the curriculum; at first everything is kept (``stable_init``), in the paper half of the tokens.

    Args:
        steps: The layers of the backbone.
        keep_ratio: Share kept at each stage of what the stage before left, in (0, 1]; 0.7 in the paper's main results.
            Calibration sets it for a wanted speed-up.
        streams: Streams that are cut, memories too; ``'image'`` stands for ``'image0'`` and ``'image1'`` as well.
        layers: Per stage of the backbone, the layer indices before which tokens are dropped; stages left out: every layer.
            None: a quarter, half and three quarters of the way through the first one that has layers of the streams, which is
            3, 6 and 9 of 12 as in the paper.
        ratio_weight: Weight of the ratio loss, 2 in the paper; 0: none, where the model has a budget loss.
        stable_init: Whether everything is kept at step 0.
        temperature: Gumbel temperature; a hook may move it.
        noise: Scale of the Gumbel noise; a hook may move it.

    Raises:
        ValueError: If a number is out of its range, or a stream, stage or layer is unknown.
        UnsupportedBackboneError: If no chosen layer has one of the streams.
    """

    knob = Knob("drop ratio per stage", 0.0, 0.999)
    counts_fixed = True

    def __init__(
        self,
        *,
        steps: Sequence[LayerStep],
        keep_ratio: float = 0.7,
        streams: Sequence[str] = ("image",),
        layers: Mapping[str, Sequence[int]] | None = None,
        ratio_weight: float = 2.0,
        stable_init: bool = True,
        temperature: float = 1.0,
        noise: float = 1.0,
    ) -> None:
        super().__init__(steps=steps)
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio is {keep_ratio}; expected a number in (0, 1], 1 keeps every token")
        if ratio_weight < 0:
            raise ValueError(f"ratio_weight is {ratio_weight}; expected a number >= 0, 0 leaves the ratio loss out")
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; expected a positive number")
        if noise < 0:
            raise ValueError(f"noise is {noise}; expected a number >= 0, 1 samples from the keep probabilities")
        self.set_knob(1 - keep_ratio)
        self.ratio_weight, self.temperature, self.noise = ratio_weight, temperature, noise
        streams = check_streams(steps, streams)
        chosen = _quarters(steps, streams) if layers is None else chosen_steps(steps, layers, "layers")
        self.depth = cuts_so_far(steps, streams, chosen)
        if not self.depth:
            raise UnsupportedBackboneError(
                f"streams is {list(streams)} and layers {layers}: no chosen layer of this backbone has such a stream. Choose "
                "other layers or streams"
            )
        widths = {(step.name, name): width for step in steps for name, width in step.streams().items()}
        self.predictors = nn.ModuleDict({_key(*place): KeepPredictor(widths[place], stable_init) for place in self.depth})

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "untrained": {"keep_ratio": 0.6, "stable_init": False}}

    def before_layer(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Decision:
        keep = {}
        for name, logits in self._logits(step, streams).items():
            if self.training:
                keep[name] = gumbel_keep(logits, self.temperature, self.noise)
                continue
            layout = streams[name].layout
            counts = kept_counts(layout.full() - layout.floor(), self._ratio(), self.depth[step.name, name])
            grid = layout.to_grid(logits.masked_fill(layout.protected, -torch.inf), -torch.inf)
            keep[name] = layout.from_grid(keep_top(grid, counts))
        return Decision(keep=keep)

    def scores(self, step: LayerStep, streams: Streams, guides: Mapping[str, Tensor]) -> Scores:
        return Scores(keep={name: logits.sigmoid() for name, logits in self._logits(step, streams).items()})

    def losses(self, record: TrimRecord) -> dict[str, Tensor]:
        """``ratio_weight`` times the mean over stages and instances of (kept share - keep_ratio ** s) ** 2."""
        if self.ratio_weight == 0:
            return {}
        errors = []
        for entry in record.steps:
            for name, layout in entry.tokens.items():
                depth = self.depth.get((entry.step.name, name))
                if depth is not None:
                    free = layout.full() - layout.floor()
                    target = self._ratio() ** depth
                    share = (layout.counts() - layout.floor()) / free.clamp(min=1)
                    errors.append(torch.where(free > 0, (share - target) ** 2, 0.0).mean())  # a text may have no words
        return {"loss_ratio": self.ratio_weight * torch.stack(errors).mean()}

    def trims(self, step: LayerStep) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(name for name in step.streams() if (step.name, name) in self.depth), frozenset()

    def reads(self, step: LayerStep) -> frozenset[str]:
        return frozenset()

    def multiply_adds(self, step: LayerStep, counts: Mapping[str, Tensor]) -> Tensor | float:
        places: list[tuple[str, Any]] = [(name, self.predictors[_key(step.name, name)]) for name in self.trims(step)[0]]
        return sum((counts[name] * predictor.multiply_adds for name, predictor in places), 0.0)

    def _ratio(self) -> Tensor:
        """The present keep ratio of a stage, []."""
        return 1 - self.progress * self.knob_value

    def _logits(self, step: LayerStep, streams: Streams) -> dict[str, Tensor]:
        """Keep-minus-drop logits, fp32, [B, N] or [S]."""
        chosen = [name for name in streams if (step.name, name) in self.depth]
        return {name: self.predictors[_key(step.name, name)](streams[name]) for name in chosen}


class KeepPredictor(nn.Module):
    """Two logits of each token, of its own features and of the mean of those that are left (section 3.2).

    LayerNorm, Linear and GELU give D channels; half of them are the token's own, the others are averaged over the kept tokens
    that are not protected; an MLP with hidden widths D / 2 and D / 4 reads both.

    Args:
        width: Width D of the tokens, a multiple of 4.
        stable_init: Whether the first logit exceeds the second by a constant at first, so that everything is kept.

    Raises:
        ValueError: If the width is no multiple of 4.
    """

    def __init__(self, width: int, stable_init: bool) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width of the stream is {width}; expected a multiple of 4, which the predictor halves twice")
        self.embed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        hidden = [nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU()]
        last = nn.Linear(width // 4, 2)
        if stable_init:
            nn.init.zeros_(last.weight)
            with torch.no_grad():
                last.bias.copy_(torch.tensor([_STABLE_LOGIT, 0.0]))
        self.score = nn.Sequential(*hidden, last)
        self.multiply_adds = width * width + width * (width // 2) + (width // 2) * (width // 4) + 2 * (width // 4)

    def forward(self, stream: TokenStream) -> Tensor:
        """Keep-minus-drop logits, fp32, [B, N] or [S]."""
        own, others = self.embed(stream.x).chunk(2, -1)
        layout = stream.layout
        mean = layout.mean(others, ~layout.protected).to(own.dtype)
        both = torch.cat([own, layout.per_token(mean).expand_as(own)], -1)
        logits = self.score(both).float()
        return logits[..., 0] - logits[..., 1]


def kept_counts(tokens: Tensor, keep_ratio: Tensor | float, depth: int) -> Tensor:
    """Tokens that stage ``depth`` leaves of so many: ``keep_ratio ** depth`` of them, rounded down, long [B].

    Args:
        tokens: Of each instance before any stage, fp32 [B].
        keep_ratio: Share kept at each stage.
        depth: Stages so far, this one included.
    """
    return torch.floor(tokens * keep_ratio**depth + 1e-4).long()  # 1e-4: float error is no token less


def _quarters(steps: Sequence[LayerStep], streams: Sequence[str]) -> set[str]:
    """Names of the steps a quarter, half and three quarters of the way through the first stage with layers of the streams."""
    having = [step for step in steps if any(is_chosen(name, streams) for name in step.layers)]
    stage = [step.name for step in having if step.stage == having[0].stage]
    return {stage[len(stage) * quarter // 4] for quarter in (1, 2, 3)} if stage else set()


def _key(step: str, stream: str) -> str:
    return f"{step}/{stream}".replace(".", "_")  # a ModuleDict's keys hold no dots
