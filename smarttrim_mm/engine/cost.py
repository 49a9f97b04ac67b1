"""What ``tools/cost.py`` does: prints, saves and draws a config's cost sheet."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from mmengine.config import DictAction

from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.engine.cost_sheet import RANKED, TEXT_LENGTH, CostSheet, Layer, Ranking, cost_sheet
from smarttrim_mm.utils.checkpoint_io import write_atomically
from smarttrim_mm.visualization.cost_bars import draw_cost, unit_of


def render(sheet: CostSheet) -> str:
    """A sheet as text.

    Args:
        sheet: The sheet.
    """
    unit, letter = unit_of(sheet.dense)
    sample = "" if sheet.pairs_per_sample == 1 else f" of {sheet.pairs_per_sample} image-text pairs; tokens are those of one"
    budget = sheet.budget
    blocks = [
        f"{sheet.backbone}, {sheet.sizes}, policy {sheet.policy}\n"
        f"multiply-adds in {letter} per sample{sample}; counts, not times"
    ]
    if budget is not None:
        blocks.append(
            f"at {budget.speedup:g}x: wherever {budget.cuts} may cut, {100 * budget.share:.1f} % of the tokens, protected ones "
            "apart, and of the heads\nare kept; a trained policy spreads its cuts in its own way"
        )
    blocks += [_part_table(sheet, unit), _layer_table(sheet, unit), _place_table(sheet)]
    if sheet.best_of_policy is not None:
        own = 100 * sheet.policy_dense / sheet.dense
        blocks.append(
            f"{sheet.policy} itself takes {sheet.policy_dense / unit:.3f} {letter} where it keeps everything ({own:.2f} % of "
            f"the dense model); it reaches at most {sheet.best_of_policy:.2f}x"
        )
    if sheet.ranking is not None:
        blocks.append(_ranking_table(sheet, sheet.ranking))
    blocks.append(
        f"check: {sheet.dense / unit:.3f} {letter} recorded, {sheet.counted / unit:.3f} {letter} counted by "
        f"torch.utils.flop_counter on the same forward (FLOPs / 2), ratio {sheet.dense / sheet.counted:.4f}"
    )
    return "\n\n".join(blocks)


def parser() -> argparse.ArgumentParser:
    """The command line of ``tools/cost.py``."""
    parser = argparse.ArgumentParser(
        "cost.py",
        description="Print the multiply-adds of a config's model by part and by layer, dense and at a budget, and the best "
        "possible speed-up of each place that can be cut. Nothing is trained, and no data or checkpoint is read. The numbers "
        "are counts, not times.",
    )
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--speedup",
        type=float,
        metavar="S",
        help="plan for this speed-up of the whole model, at least 1: wherever the config's policy may cut, the same share is "
        "kept; if it cuts nothing (Dense), everywhere in the model (default: the config's model.budget.speedup, if any)",
    )
    parser.add_argument(
        "--text-length",
        type=int,
        metavar="T",
        help=f"tokens of the text, begin and end included (default: {TEXT_LENGTH}, METER's longest text, or the longest that "
        "the model takes)",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="I",
        help="also say what a pair costs where I images are ranked against M texts and each is encoded once (default: with "
        f"--texts or a ranking head, Flickr30K's {RANKED[0]:,})",
    )
    parser.add_argument("--texts", type=int, metavar="M", help=f"likewise (default: Flickr30K's {RANKED[1]:,})")
    parser.add_argument("--json", metavar="FILE", help="write everything to this JSON file")
    parser.add_argument("--plot", metavar="FILE", help="draw the layers, dense and at the budget, into this PNG file")
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="change settings of the config: a.b=1"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> CostSheet:
    """What ``tools/cost.py`` does.

    Args:
        argv: Arguments of the command line; None: this process's own.

    Returns:
        The sheet.

    Raises:
        ValueError: If a number does not fit, or the config has no model.
        TypeError: If its model is no ``TrimmedVLM``.
        FileNotFoundError: If the config is missing.
    """
    args = parser().parse_args(argv)
    model = build_model(read_config(args.config, args.cfg_options))
    ranked = None
    if args.images is not None or args.texts is not None:
        ranked = (RANKED[0] if args.images is None else args.images, RANKED[1] if args.texts is None else args.texts)
    sheet = cost_sheet(model, text_length=args.text_length, speedup=args.speedup, ranked=ranked)
    print(f"{args.config}: {render(sheet)}")
    if args.json is not None:
        content = {"config": args.config, "units": "multiply-adds per sample; ratios of them", **asdict(sheet)}
        write_atomically(args.json, (json.dumps(content, indent=1) + "\n").encode())
        print(f"written to {args.json}")
    if args.plot is not None:
        print(f"written to {draw_cost(sheet, args.plot)}")
    return sheet


def _part_table(sheet: CostSheet, unit: float) -> str:
    lines = [f"{'part':<14}{'dense':>10}{'of all':>9}{'x if free':>11}"]
    for part in sheet.parts:
        free = f"{part.if_free:.2f}" if part.dense else ""
        lines.append(f"{part.name:<14}{part.dense / unit:>10.3f}{100 * part.dense / sheet.dense:>7.1f} %{free:>11}")
    lines.append(f"{'total':<14}{sheet.dense / unit:>10.3f}{100:>7.1f} %")
    if sheet.budget is not None:
        lefts = [part.left or 0.0 for part in sheet.parts]
        columns = [f"{f'at {sheet.budget.speedup:g}x':>10}{'of dense':>10}"]
        for left, dense in zip([*lefts, sum(lefts)], [*(part.dense for part in sheet.parts), sheet.dense], strict=True):
            columns.append(f"{left / unit:>10.3f}" + (f"{100 * left / dense:>8.1f} %" if dense else ""))
        lines = [f"{line:<44}{column}" for line, column in zip(lines, columns, strict=True)]
    return "\n".join(lines)


def _layer_table(sheet: CostSheet, unit: float) -> str:
    at = sheet.budget and f"at {sheet.budget.speedup:g}x"
    width = max(24, *(len(_counts(layer.tokens)) + 2 for layer in sheet.layers))
    name = max(len(layer.name) for layer in sheet.layers) + 2
    headers = f"{'layer':<{name}}{'tokens':<{width}}{'heads':>6}{'dense':>10}{'best from here':>16}"
    lines = [headers + (f"   {'tokens left':<{width}}{'heads':>6}{at:>10}{'policy':>9}" if at else "")]
    for layer in sheet.layers:
        heads = layer.heads or ""
        best = "" if layer.best_from_here is None else f"{layer.best_from_here:.2f}x"
        line = f"{layer.name:<{name}}{_counts(layer.tokens):<{width}}{heads:>6}{layer.dense / unit:>10.3f}{best:>16}"
        lines.append((line + _left(layer, unit, width)).rstrip())
    return "\n".join(lines)


def _left(layer: Layer, unit: float, width: int) -> str:
    if layer.left is None or layer.left_tokens is None or layer.left_heads is None or layer.policy is None:
        return ""
    heads = f"{layer.left_heads:.1f}" if layer.heads else ""
    return f"   {_counts(layer.left_tokens):<{width}}{heads:>6}{layer.left / unit:>10.3f}{layer.policy / unit:>9.4f}"


def _place_table(sheet: CostSheet) -> str:
    width = max(len(place.name) for place in sheet.places) + 2
    mine = sheet.best_of_policy is not None
    lines = [
        f"{'best possible speed-up of a place':<{max(width, 36)}}{'at no cost':>12}" + (f"{sheet.policy:>14}" if mine else "")
    ]
    for place in sheet.places:
        policy = "-" if place.best_of_policy is None else f"{place.best_of_policy:.2f}x"
        lines.append(f"{place.name:<{max(width, 36)}}{place.best:>11.2f}x" + (f"{policy:>14}" if mine else ""))
    return "\n".join(lines)


def _ranking_table(sheet: CostSheet, ranking: Ranking) -> str:
    unit, letter = unit_of(sheet.dense)
    at = sheet.budget and f"at {sheet.budget.speedup:g}x"
    of_pair = " + ".join(f"{value / unit:.3f}" for value in (ranking.image, ranking.text, ranking.pair))
    title = f"{ranking.images:,} images against {ranking.texts:,} texts"
    lines = [f"{title:<44}{'dense':>10}" + (f"{at:>10}" if at else "")]
    for row, name in enumerate(("a pair on its own", "each image and each text encoded once")):
        lines.append(f"{name:<44}" + "".join(f"{costs[row] / unit:>10.3f}" for costs in (ranking.dense, ranking.left) if costs))
    ratios = "".join(f"{costs[0] / costs[1]:>9.2f}x" for costs in (ranking.dense, ranking.left) if costs)
    lines.append(f"{'times fewer':<44}{ratios}")
    return "\n".join([*lines, f"{letter} per pair; the dense pair is image + text + both: {of_pair}"])


def _counts(values: dict[str, float]) -> str:
    return ", ".join(f"{stream} {count:.1f}".removesuffix(".0") for stream, count in values.items())
