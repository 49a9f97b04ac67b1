"""Scores the tokens of a stream for keeping (SmartTrim, arXiv 2305.15033, cross-modal-aware token trimmer)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from smarttrim_mm.registry import TRIMMERS
from smarttrim_mm.structures import TokenStream

SCORES = ("local", "self", "cross")


class Query(nn.Linear):
    """Projects a guide token, normalised so that the scale of a host's stream does not set that of the logits."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(width, rank, bias=False)

    def forward(self, guide: Tensor) -> Tensor:
        return super().forward(layer_norm(guide, (self.in_features,)))


@TRIMMERS.register_module()
class TokenTrimmer(nn.Module):
    """Local plus global scores: an MLP on LN(x), and bilinear similarities with the guide tokens.

    The local score tells whether a token says anything; the global ones, whether it matters to its own modality and to the
    other. Their sum is the keep-minus-drop logit. The bilinear form (W x) . (V g) is evaluated as x . (W^T V g), so that it
    costs one multiply-add a channel and token, not one projection a token.

    The paper's sizes are not known to us; hidden width, rank, and the normalisation of guides are our choices.

    Args:
        width: Width D of the tokens.
        own: Name of the stream whose tokens are scored.
        guides: Width of the guide token of each stream at hand, by name; the own stream among them.
        scores: Which of ``local``, ``self`` and ``cross`` are summed. ``cross`` is left out where no other guide is at hand.
        hidden: Hidden width of the MLP; None: D / 8, at least 16.
        rank: Rank of the bilinear forms; None: D / 8, at least 16.
        stable_init: Whether the logit is exactly ``keep_bias`` at first, so that everything is kept; else 0 on average.
        keep_bias: The logit at first.

    Raises:
        ValueError: If ``scores`` names an unknown score, or none is left.
    """

    def __init__(
        self,
        *,
        width: int,
        own: str,
        guides: Mapping[str, int],
        scores: Sequence[str] = SCORES,
        hidden: int | None = None,
        rank: int | None = None,
        stable_init: bool = True,
        keep_bias: float = 5.0,
    ) -> None:
        super().__init__()
        unknown = sorted(set(scores) - set(SCORES))
        if unknown:
            raise ValueError(f"scores holds {unknown}; expected some of {list(SCORES)}")
        wanted = [name for name in guides if ("self" if name == own else "cross") in scores]
        if "local" not in scores and not wanted:
            raise ValueError(
                f"scores is {list(scores)}, and no such guide token is at hand for {own!r} (guides: {sorted(guides)}): nothing "
                "could be scored. Add 'local' or 'self', run the other stream first (text_first), or leave this layer out."
            )
        hidden = max(16, width // 8) if hidden is None else hidden
        rank = max(16, width // 8) if rank is None else rank
        self.own, self.width, self.rank, self.guides = own, width, rank, tuple(wanted)
        self.widths = {name: guides[name] for name in wanted}
        self.fc1 = nn.Linear(width, hidden) if "local" in scores else None
        self.fc2 = nn.Linear(hidden, 1, bias=False) if "local" in scores else None
        self.key = nn.Linear(width, rank, bias=False) if wanted else None
        self.query = nn.ModuleDict({name: Query(guides[name], rank) for name in wanted})
        self.bias = nn.Parameter(torch.tensor(keep_bias if stable_init else 0.0))
        if stable_init:  # the last map of each score starts at 0, the others do not, so that gradients flow
            last = [*self.query.parameters(), *(self.fc2.parameters() if self.fc2 is not None else [])]
            for weight in last:
                nn.init.zeros_(weight)

    def forward(self, stream: TokenStream, guides: Mapping[str, Tensor]) -> Tensor:
        """Scores every token.

        Args:
            stream: The tokens, padded or packed.
            guides: Guide tokens by stream name, [B, D] each.

        Returns:
            Keep-minus-drop logits, fp32, shaped like the tokens: [B, N] or [S].
        """
        x = layer_norm(stream.x, (self.width,))
        logits = self.bias.float()
        if self.fc1 is not None and self.fc2 is not None:
            logits = logits + self.fc2(gelu(self.fc1(x))).squeeze(-1).float()
        if self.key is not None:
            query = torch.stack([project(guides[name]) for name, project in self.query.items()]).sum(0)  # [B, rank]
            direction = query @ self.key.weight * self.rank**-0.5  # [B, D]
            logits = logits + (x * stream.layout.per_token(direction)).sum(-1).float()
        return logits.expand(stream.x.shape[:-1])

    def multiply_adds(self, tokens: Tensor) -> Tensor:
        """Compute for the given numbers of tokens [B], per instance [B]."""
        per_token = 0 if self.fc1 is None or self.fc2 is None else self.fc1.weight.numel() + self.fc2.weight.numel()
        per_instance = 0
        if self.key is not None:
            per_token += self.width
            per_instance = self.key.weight.numel() + sum(weight.numel() for weight in self.query.parameters())
        return tokens * per_token + per_instance
