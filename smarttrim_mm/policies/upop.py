"""UPop (arXiv 2301.13741): searches, while the model is trained, which heads and FFN units to slice off for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from smarttrim_mm.layers.record import TrimRecord
from smarttrim_mm.layers.scaling import scale_layer
from smarttrim_mm.layers.slices import Sites, costs_of_one
from smarttrim_mm.layers.views import LayerStep, LayerView
from smarttrim_mm.ops.progressive import least_important, pruned_share, standardise
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.registry import POLICIES

_IMPORTANCE = {"gradient": torch.neg, "magnitude": torch.abs}


@POLICIES.register_module()
class UPop(Policy):
    """A scale on the output of every head and on the activation of every FFN unit, the same for all instances.

    At each move of the curriculum all scales are ranked together: by their accumulated gradients, standardised among their
    like, so that heads and units, text and image can be compared. The least important ones, as many multiply-adds of the whole
    model as the schedule wants by now, get the scale 1 - p_t / p, which falls to 0 as the pruned share p_t rises to its final
    p; the others get 1 again. Scales are set by this rule, never by the optimizer. At the end of the curriculum the choice is
    final; the rest of the training fits the weights to what is left, and ``tools/slice.py`` takes the others away.

    Nothing is left out during the search: its compute is reported as the whole model's, that of the sliced model is its own.
    :class:`~smarttrim_mm.losses.slicing.SlicingBudget` says how much is to go.

    Args:
        steps: The layers of the backbone.
        importance: What is accumulated, over all iterations, of each scale's gradient g: ``'gradient'``, the paper's, -g, so
            that those go whose lowering lowers the loss; ``'magnitude'``, ours, |g|, so that those go that change little.

    Raises:
        ValueError: If ``importance`` is neither, or attentions of the backbone share only some of their parameters.
    """

    searches = True
    scales: Tensor
    importances: Tensor
    costs: Tensor
    dense: Tensor
    goal: Tensor
    batches: Tensor
    found: Tensor

    def __init__(self, *, steps: Sequence[LayerStep], importance: str = "gradient") -> None:
        super().__init__(steps=steps)
        if importance not in _IMPORTANCE:
            raise ValueError(f"importance is {importance!r}; expected one of {', '.join(map(repr, _IMPORTANCE))}")
        self.importance = importance
        self.sites = Sites.of(steps)
        sizes = [site.size for site in self.sites.all]
        total = sum(sizes)
        self._places = [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
        self.register_buffer("scales", torch.ones(total))
        self.register_buffer("importances", torch.zeros(total))
        self.register_buffer("costs", torch.zeros(len(sizes)))  # of one head or unit of each site
        self.register_buffer("dense", torch.zeros(()))  # multiply-adds per sample
        self.register_buffer("goal", torch.zeros(()))  # those that are to go
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))  # that costs and dense are the means of
        self.register_buffer("found", torch.tensor(False))
        self._fresh: Tensor | None = None  # importances that this process has noted since the last move

    @classmethod
    def example_configs(cls) -> dict[str, dict[str, Any]]:
        return {"default": {}, "by magnitude": {"importance": "magnitude"}}

    def layers_of(self, step: LayerStep) -> Mapping[str, LayerView]:
        return {name: scale_layer(name, layer, partial(self._scale, step.name)) for name, layer in step.layers.items()}

    def weigh(self, record: TrimRecord, speedup: float) -> None:
        """Learns from a training batch what each head and unit costs, and how much of the whole model is to go.

        Args:
            record: Of the batch.
            speedup: Multiply-adds of the whole model over those of the sliced one.

        Raises:
            ValueError: If slicing cannot reach the speed-up; said of the first batch.
        """
        if self.found:
            return
        dense = record.dense_multiply_adds().mean().detach()
        both = torch.cat([costs_of_one(record, self.sites).mean(1), dense.unsqueeze(0)])
        all_reduce(both, "mean")  # every process has seen other data, and all must choose alike
        costs, dense = both[:-1], both[-1]
        if self.batches == 0:
            sizes = costs.new_tensor([site.size - 1 for site in self.sites.all])
            most = float(dense / (dense - (costs * sizes).sum()))
            if speedup > most:
                raise ValueError(
                    f"speedup is {speedup}, but slicing this model reaches at most {most:.2f} (one head and one unit left of "
                    "every layer). Lower the target"
                )
        self.batches += 1
        self.costs += (costs - self.costs) / self.batches
        self.dense += (dense - self.dense) / self.batches
        self.goal.copy_(self.dense * (1 - 1 / speedup))

    def set_curriculum(self, progress: float) -> None:
        super().set_curriculum(progress)
        if self.batches == 0 or self.found:  # nothing is known yet, or all that is needed
            return
        fresh = torch.zeros_like(self.importances) if self._fresh is None else self._fresh
        all_reduce(fresh, "mean")
        self.importances += fresh
        self._fresh = None
        share, site = pruned_share(progress), self._numbers(range(len(self.sites.all)))
        goes = least_important(self.standard_scores(), self.costs[site], site, self.goal * share)
        self.scales.copy_(torch.where(goes, 1 - share, 1.0))
        self.found.fill_(progress >= 1)

    def standard_scores(self) -> Tensor:
        """Importance of every scale among its like, fp64 [scales], by which they are ranked."""
        groups = [site.group for site in self.sites.all]
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        return standardise(self.importances, self._numbers([numbers[group] for group in groups]))

    def planned_saving(self) -> Tensor:
        """Multiply-adds per sample that would be saved if all were sliced off whose scale is below 1 by now, []."""
        return torch.where(self.scales < 1, self.costs[self._numbers(range(len(self.sites.all)))], 0.0).sum()

    def plan(self) -> dict[str, Tensor]:
        """What is left of each site once the search is over: by its name, bool [H] or [F].

        Raises:
            ValueError: If the search is not over.
        """
        if not self.found:
            raise ValueError(
                f"the search of UPop is not over: it has seen {int(self.batches)} batches, and its curriculum has not come to "
                "its end. Slice a checkpoint of the end of a training with this policy and a CurriculumHook"
            )
        return {site.name: self.scales[place] > 0 for site, place in zip(self.sites.all, self._places, strict=True)}

    def _numbers(self, of_sites: Sequence[int]) -> Tensor:
        """A number of each site, given to each of its scales: long [scales]."""
        device, sizes = self.scales.device, [site.size for site in self.sites.all]
        repeats = torch.tensor(sizes, device=device)
        return torch.tensor(of_sites, device=device).repeat_interleave(repeats, output_size=sum(sizes))

    def _scale(self, step: str, name: str) -> Tensor:
        """The scales of what a step runs under a name; in training their gradients are noted."""
        place = self._places[self.sites.where[step, name]]
        scale = self.scales[place]
        if self.training and torch.is_grad_enabled():
            scale = scale.detach().clone().requires_grad_()
            scale.register_hook(partial(self._note, place))
        return scale

    def _note(self, place: slice, gradient: Tensor) -> None:
        gradient = torch.where(gradient.isfinite(), gradient, 0.0)  # a step that overflows is no step
        if self._fresh is None:
            self._fresh = torch.zeros_like(self.importances)
        self._fresh[place] += _IMPORTANCE[self.importance](gradient)
