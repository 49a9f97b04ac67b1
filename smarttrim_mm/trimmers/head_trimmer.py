"""Scores the heads of an attention module (SmartTrim, arXiv 2305.15033, modal-adaptive head trimmer)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from smarttrim_mm.registry import TRIMMERS


@TRIMMERS.register_module()
class HeadTrimmer(nn.Module):
    """An MLP on the guide tokens that the module serves gives one keep-minus-drop logit a head.

    Self-attention sees its own stream's guide; cross-attention sees both streams'.

    Args:
        heads: Number of heads H.
        guides: Width of each guide token it reads, by stream name.
        hidden: Hidden width; None: an eighth of the widths' sum, at least 16.
        stable_init: Whether the logits are exactly ``keep_bias`` at first, so that every head runs.
        keep_bias: The logit at first.
    """

    def __init__(
        self,
        *,
        heads: int,
        guides: Mapping[str, int],
        hidden: int | None = None,
        stable_init: bool = True,
        keep_bias: float = 5.0,
    ) -> None:
        super().__init__()
        width = sum(guides.values())
        hidden = max(16, width // 8) if hidden is None else hidden
        self.guides, self.widths = tuple(guides), dict(guides)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, heads)
        if stable_init:
            nn.init.zeros_(self.fc2.weight)
            nn.init.constant_(self.fc2.bias, keep_bias)
        else:
            nn.init.zeros_(self.fc2.bias)

    def forward(self, guides: Mapping[str, Tensor]) -> Tensor:
        """Scores every head.

        Args:
            guides: Guide tokens by stream name, [B, D] each.

        Returns:
            Keep-minus-drop logits, fp32 [B, H].
        """
        parts = [layer_norm(guides[name], guides[name].shape[-1:]) for name in self.guides]
        return self.fc2(gelu(self.fc1(torch.cat(parts, -1)))).float()

    def multiply_adds(self) -> int:
        """Compute per instance."""
        return self.fc1.weight.numel() + self.fc2.weight.numel()
