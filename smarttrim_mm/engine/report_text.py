"""The quickstart's report as text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smarttrim_mm.engine.contenders import HOST
from smarttrim_mm.engine.progress import clock


def render(report: Mapping[str, Any]) -> str:
    """The report in Markdown.

    Args:
        report: What :func:`~smarttrim_mm.engine.report.build_report` returned.
    """
    here = report["machine"]
    parts = [
        "# Quickstart report",
        *_smoke_note(report),
        model_table(report),
        "Multiply-adds are those of the whole model, the policy's own included, per unshared image-question pair. Accuracy is "
        "on the official test split; thresholds and checkpoints were chosen on held-out training images.",
        "## Targets",
        target_table(report),
        "## Findings",
        "\n".join(f"- {finding}" for finding in report["findings"]),
        "## Clock",
        clock_table(report),
        f"{here.get('gpu', here['cpu'])}, torch {here['torch']}; load average "
        f"{report['load_average']['before']} before and {report['load_average']['after']} after. New unshared pairs each "
        "round, contenders in rotated order; the ratios are the result, times depend on the machine.",
        "## Pictures",
        "\n\n".join(f"![{Path(path).stem}]({Path(path).parent.name}/{Path(path).name})" for path in report["pictures"]),
        "## Kept per layer",
        *(f"{model['title']}:\n\n{kept_table(model)}" for model in _trimmed(report)),
        "## How to repeat it",
        "Seeds: " + ", ".join(f"{what} {seed}" for what, seed in report["seeds"].items()) + ".",
        "\n".join(["```bash", *(stage["command"] for stage in report["stages"]), "```"]),
        table(
            ["stage", "time"],
            [[stage["title"], clock(stage["seconds"])] for stage in report["stages"]] + [["all", clock(report["seconds"])]],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def render_console(report: Mapping[str, Any]) -> str:
    """The part of the report that the console shows."""
    return "\n\n".join(
        [
            *_smoke_note(report),
            model_table(report),
            clock_table(report),
            target_table(report),
            "\n".join(f"- {finding}" for finding in report["findings"]),
            f"pictures: {', '.join(report['pictures'])}\nall stages took {clock(report['seconds'])}",
        ]
    )


def model_table(report: Mapping[str, Any]) -> str:
    """One row a model."""
    rows = []
    for name, model in report["models"].items():
        found = report["against_dense"].get(name)
        change = "" if found is None else f"{found['difference'] * 100:+.2f} ± {found['standard_error'] * 200:.2f}"
        spent = model["multiply_adds"]
        rows.append(
            [
                model["title"], f"{model['accuracy']:.4f}", change,
                *(f"{spent[key]:.2f}" for key in ("mean", "p05", "p95")), f"{model['speedup']:.3f}",
            ]
        )  # fmt: skip
    headers = [
        "model",
        "accuracy",
        "points against dense (± 2 SE)",
        "M multiply-adds",
        "5th pct",
        "95th pct",
        "dense / trimmed",
    ]
    return table(headers, rows)


def clock_table(report: Mapping[str, Any]) -> str:
    """One row for each number of threads, batch size and contender."""
    rows = []
    for result in report["clock"]:
        for name, row in result["contenders"].items():
            ratio, executed = row["speedup"], row["executed_multiply_adds"]
            rows.append(
                [
                    str(result["threads"]), str(result["batch_size"]), name, f"{ratio['median']:.2f}",
                    "" if name == HOST else f"{ratio['q1']:.2f}-{ratio['q3']:.2f}", f"{row['ms_per_batch']['median']:.1f}",
                    f"{row['decided_multiply_adds']:.2f}", "" if executed is None else f"{executed:.2f}",
                ]
            )  # fmt: skip
    headers = ["threads", "batch", "execution", "x faster", "middle half", "ms per batch", "M decided", "M executed"]
    return table(headers, rows)


def target_table(report: Mapping[str, Any]) -> str:
    """One row a target."""
    rows = [
        [target["what"], target["wanted"], f"{target['measured']:.4f}", "reached" if target["reached"] else "NOT REACHED"]
        for target in report["targets"]
    ]
    return table(["target", "wanted", "measured", ""], rows)


def kept_table(model: Mapping[str, Any]) -> str:
    """One row a layer: kept share of each stream's tokens, and of each attention's heads."""
    steps: dict[str, dict[str, float]] = {}
    for key, ratio in model["kept"].items():
        step, _, stream = key.partition("/")
        steps.setdefault(step, {})[stream] = ratio
    streams = sorted({stream for kept in steps.values() for stream in kept})
    heads: dict[str, list[str]] = {}
    for key, ratio in model["heads"].items():
        step, _, attention = key.partition("/")
        heads.setdefault(step, []).append(f"{attention} {ratio:.2f}")
    rows = [
        [step, *(f"{kept[stream]:.2f}" if stream in kept else "" for stream in streams), ", ".join(heads.get(step, []))]
        for step, kept in steps.items()
    ]
    return table(["layer", *(f"{stream} tokens" for stream in streams), "heads"], rows)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(cell) for cell in column) for column in zip(headers, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(headers), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, rows)])


def _trimmed(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [model for name, model in report["models"].items() if not name.startswith("dense")]


def _smoke_note(report: Mapping[str, Any]) -> list[str]:
    return ["**A smoke run of a few iterations: its numbers mean nothing.**"] if report["smoke"] else []
