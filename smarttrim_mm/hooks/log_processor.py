"""Console lines in which the kept ratios of all layers stay readable."""

import re
from itertools import groupby
from typing import Any

from mmengine.runner import LogProcessor, Runner

from smarttrim_mm.registry import LOG_PROCESSORS

_RATIO = re.compile(r"(?:^|/)(kept|heads|runs)/([^/\s]+)/([^/\s]+)$")
_PRINTED_RATIO = re.compile(r"(?:\S+/)?(?:kept|heads|runs)/[^/\s]+/[^/\s]+: \S+ *")


@LOG_PROCESSORS.register_module()
class TrimLogProcessor(LogProcessor):
    """mmengine's ``LogProcessor`` that prints the ratios of all layers in one short list.

    ``kept/image.0/image: 1.0000  kept/image.1/image: 0.9712 ...`` becomes ``kept image 1.00 .97 | heads .98``. Only the
    line is short: the visualizer's backends get each scalar by its own name.

    Args:
        mean_pattern: Regular expression of the scalars that are averaged over the last ``window_size`` iterations.
        **kwargs: Arguments of mmengine's ``LogProcessor``; ``by_epoch`` is False unless given.
    """

    def __init__(
        self,
        mean_pattern: str = r".*(loss|time|grad_norm|accuracy|speedup|multiply_adds|kept/|heads/|runs/).*",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("by_epoch", False)
        super().__init__(mean_pattern=mean_pattern, **kwargs)

    def _collect_scalars(self, custom_cfg: list[dict], runner: Runner, mode: str, reserve_prefix: bool = False) -> dict:
        tag = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        if mode != "train":  # the metrics of one validation, not a mean with those before it
            scalars = runner.message_hub.log_scalars
            for key in tag:
                name = key if reserve_prefix else f"{mode}/{key}"
                if name in scalars and "time" not in key:
                    tag[key] = scalars[name].current()
        return tag

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        return tag, shorten(line, tag)

    def get_log_after_epoch(self, runner: Runner, batch_idx: int, mode: str, with_non_scalar: bool = False) -> tuple[dict, str]:
        tag, line = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        return tag, shorten(line, tag)


def shorten(line: str, scalars: dict[str, Any]) -> str:
    """Replaces the ratios printed in a log line by one list at its end.

    Args:
        line: The line.
        scalars: The scalars that it prints, by name.

    Returns:
        The line; unchanged if it prints no ratio.
    """
    short, removed = _PRINTED_RATIO.subn("", line)
    return f"{short.rstrip()}  {summarise_ratios(scalars)}" if removed else line


def summarise_ratios(scalars: dict[str, Any]) -> str:
    """Lists kept ratios in the order of the layers.

    Args:
        scalars: By name; ``kept/<step>/<stream>``, ``heads/<step>/<attention>`` and ``runs/<step>/<part>`` are ratios in 0-1,
            others are ignored.

    Returns:
        For instance ``kept image 1.00x2 .97 | text 1.00 | fusion.image .85 | heads .98``; those of the heads, and of parts that
        may be skipped, are means.
    """
    kept: dict[str, list[float]] = {}
    means: dict[str, list[float]] = {}
    for name, value in scalars.items():
        match = _RATIO.search(name)
        if match is None:
            continue
        kind, step, owner = match.groups()
        if kind != "kept":
            means.setdefault(kind, []).append(float(value))
        else:
            stage = step.split(".")[0]
            kept.setdefault(owner if owner == stage else f"{stage}.{owner}", []).append(float(value))
    parts = [f"{name} {_runs(values)}" for name, values in kept.items()]
    line = f"kept {' | '.join(parts)}" if parts else ""
    return " | ".join(filter(None, [line, *(f"{kind} {_ratio(sum(each) / len(each))}" for kind, each in means.items())]))


def _runs(values: list[float]) -> str:
    counted = [(text, len(list(run))) for text, run in groupby(map(_ratio, values))]
    return " ".join(text if count == 1 else f"{text}x{count}" for text, count in counted)


def _ratio(value: float) -> str:
    return f"{value:.2f}".removeprefix("0") if 0 <= value < 1 else f"{value:.2f}"
