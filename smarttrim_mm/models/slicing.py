"""Slices heads and FFN units off a backbone for good: smaller Linears of the host, under the host's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.layers.slices import Site, Sites, costs_of_one
from smarttrim_mm.layers.views import AttentionView, LayerStep, LayerView, MlpView
from smarttrim_mm.utils.checkpoint_io import load_checkpoint_file

PREFIX = "slices."  # of the plan's keys in a state dict
_COUNTS = ("num_attention_heads", "num_heads", "heads")  # what hosts call the number of heads of an attention
_WIDTHS = ("all_head_size", "embed_dims")  # what they call heads times head width, where their forward reads it


class Slices(nn.Module):
    """What is left of a sliced backbone, saved with it.

    Args:
        plan: By the name of a :class:`~smarttrim_mm.layers.slices.Site`, what is left of its heads or units: bool [H] or [F].
    """

    def __init__(self, plan: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, keep in plan.items():
            self.register_buffer(name, keep.detach().clone())

    @property
    def plan(self) -> dict[str, Tensor]:
        return dict(self.named_buffers())

    def unsliced_multiply_adds(self, record: TrimRecord, steps: Sequence[LayerStep]) -> Tensor:
        """What the model would take on every real token if it had not been sliced, per sample, fp32 [G].

        Args:
            record: Of a pass of the sliced model.
            steps: Its layers.
        """
        sites = Sites.of(steps)
        cut = torch.stack([(~self.plan[site.name]).sum() if site.name in self.plan else torch.tensor(0) for site in sites.all])
        costs = costs_of_one(record, sites)
        return record.dense_multiply_adds() + cut.to(costs) @ costs


def read_plan(checkpoint: str) -> dict[str, Tensor]:
    """The plan by which the model of a checkpoint was sliced; nothing, if it was not.

    Args:
        checkpoint: The file; nothing but tensors and plain values is read from it.
    """
    content = load_checkpoint_file(checkpoint, mmap=True)
    weights = content.get("state_dict", content)
    return {key.removeprefix(PREFIX): keep.clone() for key, keep in weights.items() if key.startswith(PREFIX)}


def require_plan(checkpoint: str) -> dict[str, Tensor]:
    """Likewise.

    Raises:
        ValueError: If it was not sliced.
    """
    plan = read_plan(checkpoint)
    if not plan:
        raise ValueError(
            f"sliced is {checkpoint}, which is no checkpoint of a sliced model: it has no keys '{PREFIX}*'. Give the file that "
            "tools/slice.py wrote, or leave it out"
        )
    return plan


def adopt_slices(cfg: Config, checkpoint: str | None) -> None:
    """Lets the model of a config be sliced as the one of a checkpoint, if that was.

    Args:
        cfg: The config.
        checkpoint: The file that will be loaded into its model; None, or an address: nothing is done.
    """
    if checkpoint is not None and "://" not in checkpoint and "model" in cfg and read_plan(checkpoint):
        cfg.model.sliced = checkpoint


@torch.no_grad()
def slice_backbone(backbone: Any, plan: Mapping[str, Tensor]) -> None:
    """Takes heads and FFN units off a backbone, in place.

    Parameters keep their names and identities and get smaller: rows of the projections to queries, keys and values (also where
    a host has them in one weight) and columns of the output's, rows of the first and columns of the second Linear of a
    feed-forward part. The width of a head and the scale of its scores stay.

    Args:
        backbone: The backbone; policies that were built for it as it was do not fit it any more.
        plan: By the name of a site, what is left of its heads or units, bool [H] or [F]; sites left out stay whole.

    Raises:
        ValueError: If the plan is of another backbone, or leaves nothing of a site; then nothing is sliced.
    """
    steps: Sequence[LayerStep] = [step for stage in backbone.steps.values() for step in stage]
    sites = {site.name: site for site in Sites.of(steps).all}
    _check(plan, sites)
    for name, keep in plan.items():
        _slice_heads([each for each in sites[name].views if isinstance(each[0], AttentionView)], keep)
        for view, _ in sites[name].views:
            if isinstance(view, MlpView):
                _slice_units(view, keep)
    for name in [name for name in vars(backbone) if isinstance(getattr(type(backbone), name, None), cached_property)]:
        delattr(backbone, name)  # views of the layers as they were


def _check(plan: Mapping[str, Tensor], sites: Mapping[str, Site]) -> None:
    unknown = sorted(plan.keys() - sites.keys())
    if unknown:
        raise ValueError(
            f"the plan slices {unknown[:4]}, {len(unknown)} in all that this backbone does not have; it has "
            f"{sorted(sites)[:4]} and others. Use the config that the search was trained with"
        )
    for name, keep in plan.items():
        if keep.dtype is not torch.bool or keep.shape != (sites[name].size,):
            raise ValueError(
                f"the plan has {keep.dtype} {list(keep.shape)} for {name}; expected torch.bool [{sites[name].size}], one for "
                "each head or unit of this backbone. Use the config that the search was trained with, and slice it once"
            )
        if not keep.any():
            raise ValueError(f"the plan leaves none of the {len(keep)} of {name}; expected at least one head or unit")


def _slice_heads(views: Sequence[tuple[Any, LayerView]], keep: Tensor) -> None:
    rows: dict[int, tuple[Tensor, list[nn.Module]]] = {}  # by parameter of projections, what is left of it, and its modules
    parameters: dict[int, nn.Parameter] = {}
    for view, layer in views:
        channels = keep.repeat_interleave(view.head_width)
        for projection in (view.q, view.k, view.v):
            for module, name, part in projection.owners():
                parameter = getattr(module, name)
                parameters[id(parameter)] = parameter
                left, modules = rows.setdefault(id(parameter), (torch.ones(len(parameter), dtype=torch.bool), []))
                left[slice(None) if part is None else part] = channels.to(left.device)
                modules.append(module)
        for module in _counting(layer.owner, view):
            for names, value in ((_COUNTS, int(keep.sum())), (_WIDTHS, int(channels.sum()))):
                for name in names:
                    if isinstance(getattr(module, name, None), int):
                        setattr(module, name, value)
        _cut(view.out.weight, channels, 1, [view.out])
    for key, (left, modules) in rows.items():
        _cut(parameters[key], left, 0, modules)


def _counting(layer: nn.Module, view: AttentionView) -> list[nn.Module]:
    """The host's attention modules that own the projections, as far as they count heads."""
    own = {id(module) for projection in (view.q, view.k, view.v) for module, _, _ in projection.owners()}
    return [
        module
        for module in layer.modules()
        if (id(module) in own or own & {id(child) for child in module.children()})
        and any(isinstance(getattr(module, name, None), int) for name in _COUNTS)
    ]


def _slice_units(view: MlpView, keep: Tensor) -> None:
    _cut(view.fc1.weight, keep, 0, [view.fc1])
    if view.fc1.bias is not None:
        _cut(view.fc1.bias, keep, 0)
    _cut(view.fc2.weight, keep, 1, [view.fc2])


def _cut(parameter: Tensor, keep: Tensor, dim: int, modules: Sequence[nn.Module] = ()) -> None:
    """Leaves some rows (dim 0) or columns (1) of a parameter, and tells the Linears whose weight it is."""
    left = keep.to(parameter.device)
    parameter.data = parameter.data[left] if dim == 0 else parameter.data[:, left].contiguous()
    parameter.grad = None
    for module in modules:
        if isinstance(module, nn.Linear) and module.weight is parameter:
            module.out_features, module.in_features = parameter.shape
