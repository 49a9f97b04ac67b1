"""What a benchmark found, as a table for the console and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smarttrim_mm.engine.contenders import HOST
from smarttrim_mm.engine.machine import in_words

Row = Mapping[str, Any]


def table(name: str, result: Mapping[str, Any]) -> str:
    """Ratios, compute, memory and times of one batch size, as a few lines of text.

    Args:
        name: Heading.
        result: What :func:`~smarttrim_mm.engine.clocks.compare_clocks` returned.
    """
    over = _ratios(result)
    numbers: dict[str, tuple[int, Callable[[Row], str]]] = {
        "mult-adds": (11, lambda row: _number(row["dense_over_decided"], 2)),
        "kept": (7, lambda row: _number(row["share_kept"] and row["share_kept"]["median"], 2)),
        "M decided": (12, lambda row: _number(row["decided_multiply_adds"], 2)),
        "M executed": (12, lambda row: _number(row["executed_multiply_adds"], 2)),
        "ms/batch": (10, lambda row: _number(row["ms_per_batch"]["median"], 1)),
        "MiB": (9, lambda row: _number(row["peak_mib"], 1)),
        "x SDPA" if result["sdpa_baseline"] else "x host": (8, lambda row: _number(row["memory_ratio"], 2)),
    }
    titles = "".join(f"{title:>10}{'middle half':>16}" for _, title, _ in over)
    wide = 2 + max(map(len, [name, *result["contenders"]]))
    lines = [f"{name:<{wide}}" + titles + "".join(f"{title:>{width}}" for title, (width, _) in numbers.items())]
    for contender, row in result["contenders"].items():
        line = f"{contender:<{wide}}"
        for key, _, baseline in over:
            ratio = row[key]
            half = "" if contender == baseline else f"{ratio['q1']:.2f} - {ratio['q3']:.2f}"
            line += f"{ratio['median']:>10.2f}{half:>16}"
        lines.append((line + "".join(f"{show(row):>{width}}" for width, show in numbers.values())).rstrip())
    return "\n".join(lines)


def markdown(content: Mapping[str, Any]) -> str:
    """A table of all batch sizes, below what it was measured on and how.

    Args:
        content: What ``tools/benchmark.py`` writes as JSON.
    """
    here, results = content["machine"], content["results"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if version)
    lines = [
        f"`{content['command']}`",
        "",
        f"{here.get('gpu', here['cpu'])}, {here['cores']} cores, {content['dtype']}; {versions}; load average before "
        f"{content['load_average']['before'][0]}, after {content['load_average']['after'][0]}. {content['baselines']} "
        f"{content['weights']} New batches each round, contenders in turn, medians of the rounds' ratios with the middle half.",
    ]
    if not results:
        return "\n".join([*lines, ""])
    over = _ratios(results[0])
    baseline = "SDPA" if results[0]["sdpa_baseline"] else "host"
    titles = ["batch", "model", "execution", *(title for _, title, _ in over), "multiply-adds", "share kept"]
    titles += ["M decided", "M executed", "ms per batch", "peak MiB", f"memory over {baseline}"]
    several = len({result["threads"] for result in results}) > 1
    lines += ["", _line(titles), _line(["---:", "---", "---", *["---:"] * (len(titles) - 3)])]
    for result in results:
        batch = f"{result['batch_size']}, {in_words(result['threads'])}" if several else str(result["batch_size"])
        for contender, row in result["contenders"].items():
            cells = [batch, contender, row["path"] or "-"]
            for key, _, reference in over:
                cells.append("1" if contender == reference else _spread(row[key]))
            cells += [_number(row["dense_over_decided"], 2), _spread(row["share_kept"])]
            cells += [_number(row["decided_multiply_adds"], 1), _number(row["executed_multiply_adds"], 1)]
            cells += [_number(row["ms_per_batch"]["median"], 1), _number(row["peak_mib"], 1), _number(row["memory_ratio"], 2)]
            lines.append(_line([cell or "-" for cell in cells]))
    lines += [
        "",
        "Multiply-adds: dense over decided, of the whole model with the policy's own, padding counted nowhere; M per sample. "
        f"Share kept: the speed-up over {baseline} divided by that ratio. Memory: what tensors take beyond weights and batch; "
        f"the weights take {results[0]['held_mib']:.0f} MiB.",
        "",
    ]
    return "\n".join(lines)


def _ratios(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, title and baseline of the ratios of clocks that differ."""
    sdpa = result["sdpa_baseline"]
    found = [("speedup", "over host" if sdpa != HOST else "over SDPA", HOST)]
    if sdpa is not None and sdpa != HOST:
        found.append(("speedup_over_sdpa", "over SDPA", sdpa))
    return found


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _spread(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['median']:.2f} ({value['q1']:.2f}-{value['q3']:.2f})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
