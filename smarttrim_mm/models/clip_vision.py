"""The vision trunk of METER: CLIP's ViT under the parameter names of the public checkpoints."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the activation that CLIP was trained with (Radford et al., arXiv 2103.00020)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class FusedAttention(nn.Module):
    """Multi-head self-attention with the parameter names of ``nn.MultiheadAttention``.

    Args:
        width: Width D.
        heads: Number of heads H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        qkv = linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, N, d] each
        return self.out_proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two Linears around QuickGELU, under CLIP's names."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = FusedAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class ClipVision(nn.Module):
    """CLIP's ViT without its output projection; ``ln_post`` is applied to all tokens (METER, arXiv 2111.02387).

    Args:
        image_size: Side of the square image, pixels.
        patch_size: Side of a patch, pixels.
        width: Width D.
        layers: Number of blocks; METER takes 11 of CLIP's 12.
        heads: Heads of each block.
        mlp_ratio: Hidden width of the MLPs, in widths.

    Raises:
        ValueError: If the patch does not divide the image, or the heads the width.
    """

    def __init__(
        self, *, image_size: int, patch_size: int, width: int, layers: int, heads: int, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"image_size is {image_size}, which patch_size {patch_size} does not divide; expected a multiple of it"
            )
        if width % heads:
            raise ValueError(f"width is {width}, which {heads} heads do not divide; expected a multiple of it")
        self.image_size = image_size
        self.grid = image_size // patch_size
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(self.grid**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        blocks = nn.ModuleList(Block(width, heads, int(width * mlp_ratio)) for _ in range(layers))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_post = nn.LayerNorm(width)
        self.reset_parameters()

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return list(cast(nn.ModuleList, self.transformer["resblocks"]))  # type: ignore[arg-type]

    def reset_parameters(self) -> None:
        """Initialises as CLIP does: standard deviations by width and depth."""
        width, layers = self.conv1.out_channels, len(self.blocks)
        nn.init.normal_(self.class_embedding, std=width**-0.5)
        nn.init.normal_(self.positional_embedding, std=width**-0.5)
        for block in self.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)

    def embed(self, images: Tensor) -> Tensor:
        """Patches with the class token first, after ``ln_pre``.

        Args:
            images: [I, 3, image_size, image_size].

        Returns:
            [I, P + 1, D].

        Raises:
            ValueError: If the images are of another size.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images are {tuple(images.shape[-2:])} pixels; expected {self.image_size} by {self.image_size}. Resize them "
                "in the data pipeline, or set the backbone's image_size."
            )
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
        return self.ln_pre(x + self.positional_embedding.to(x.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """The host's own dense forward: [I, 3, image_size, image_size] -> [I, P + 1, D]."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)
