import json
import re

import pytest

from smarttrim_mm.engine.contenders import HOST, PACKED
from smarttrim_mm.engine.report import Row, build_report
from smarttrim_mm.engine.report_text import kept_table, render, render_console, table

IMAGES = 100


def row(title: str, right: int, speedup: float = 1.0, first: int = 0) -> Row:
    """A model that answers ``right`` of 100 questions, one an image, from the ``first`` on."""
    predictions = [
        {"question_id": i, "image_id": i, "predicted_answer": "yes" if first <= i < first + right else "no", "answer": "yes"}
        for i in range(IMAGES)
    ]
    compute = {
        "multiply_adds": 20 / speedup,
        "multiply_adds_p05": 15 / speedup,
        "multiply_adds_p95": 25 / speedup,
        "dense_multiply_adds": 20.0,
        "speedup": speedup,
        "kept": {"text.0/text": 0.9, "image.0/image": 0.5, "fusion.0/text": 0.8, "fusion.0/image": 0.25},
        "heads": {"fusion.0/text.cross": 0.75, "fusion.0/image.self": 1.0},
    }
    return Row(title, f"{title}.py", f"{title}.pth", predictions, compute)


def contender(faster: float, ms: float, decided: float, executed: float | None) -> dict:
    return {
        "ms_per_batch": {"median": ms, "q1": ms, "q3": ms},
        "speedup": {"median": faster, "q1": faster - 0.1, "q3": faster + 0.1},
        "decided_multiply_adds": decided,
        "executed_multiply_adds": executed,
    }


def benchmark(at_32: float = 1.5, host_at_1: float = 4.0) -> dict:
    def result(size: int, faster: float, host: float) -> dict:
        return {
            "batch_size": size,
            "threads": 2,
            "rounds": 60,
            "dense_multiply_adds": 20.0,
            "contenders": {
                HOST: contender(1.0, host, 20.0, None),
                PACKED: contender(0.95, host / 0.95, 20.0, 20.0),
                "SmartTrim": contender(faster, host / faster, 10.0, 11.0),
            },
        }

    return {
        "policy": "SmartTrim",
        "results": [result(1, 0.8, host_at_1), result(32, at_32, 64.0)],
        "machine": {"cpu": "a CPU", "torch": "2.13.0"},
        "load_average": {"before": [0.1, 0.1, 0.1], "after": [2.0, 1.0, 0.5]},
    }


def report(rows: dict[str, Row] | None = None, **changes) -> dict:
    rows = rows or {
        "dense": row("dense", 95),
        "smarttrim": row("SmartTrim", 95, 2.02),
        "dense-pass": row("dense pass of SmartTrim's weights", 96),
    }
    arguments = {
        "benchmark": benchmark(),
        "speedup": 2.0,
        "seeds": {"training": 3},
        "stages": [{"name": "a", "title": "do a", "command": "python tools/a.py", "seconds": 61.0}],
        "pictures": ["work_dirs/quickstart/pictures/pruned_patches.png"],
        **changes,
    }
    return build_report(rows, **arguments)


def reached(found: dict) -> list[bool]:
    return [target["reached"] for target in found["targets"]]


def test_targets_are_reached_by_the_numbers_alone():
    assert reached(report()) == [True, True, True, True]
    poor = {
        "dense": row("dense", 87),
        "smarttrim": row("SmartTrim", 85, 1.999),
        "dense-pass": row("dense pass of SmartTrim's weights", 87),
    }
    found = report(poor, benchmark=benchmark(at_32=1.29))
    assert reached(found) == [False, False, False, False]
    assert [target["measured"] for target in found["targets"]] == pytest.approx([0.87, 2.0, 1.999, 1.29])
    assert [target["wanted"] for target in found["targets"]] == [">= 0.88", "<= 1", ">= 2", ">= 1.3"]


def test_a_point_of_accuracy_may_be_lost_and_no_more():
    def loss(points: int) -> bool:
        rows = {"dense": row("dense", 95), "smarttrim": row("SmartTrim", 95 - points, 2.0), "dense-pass": row("pass", 95)}
        return reached(report(rows))[1]

    assert [loss(points) for points in (-1, 0, 1, 2)] == [True, True, True, False]


def test_a_tie_is_called_a_tie_and_a_difference_a_difference():
    rows = {
        "dense": row("dense", 95),
        "smarttrim": row("SmartTrim", 94, 2.0),
        "local-only": row("local scores only", 93, 2.02),
        "random": row("random dropping", 60, 2.5),
        "dense-pass": row("dense pass of SmartTrim's weights", 95),
    }
    found = report(rows)
    local, random = found["findings"][-4:-2]
    assert local == (
        "Local scores only, at equal compute (2.020x against 2.000x): 93.00%, 1.00 points below SmartTrim; two standard errors "
        "of the paired difference are 2.00 points, so they tie."
    )
    assert random.startswith(
        "Random dropping, NOT at equal compute (2.500x against 2.000x): 60.00%, 34.00 points below SmartTrim"
    )
    assert random.endswith("so it is worse.")
    assert found["against_smarttrim"]["local-only"]["ties"]
    assert not found["against_smarttrim"]["random"]["ties"]


def test_a_better_baseline_is_not_hidden():
    rows = {
        "dense": row("dense", 95),
        "smarttrim": row("SmartTrim", 60, 2.0),
        "random": row("random dropping", 95, 2.0),
        "dense-pass": row("dense pass of SmartTrim's weights", 95),
    }
    assert report(rows)["findings"][-3].endswith("so it is better.")


def test_sentences_about_compute_and_clock():
    findings = report()["findings"]
    assert findings[0].startswith(
        "SmartTrim answers 95.00% of 100 test questions right, the dense model 95.00%: as good as the dense"
    )
    assert findings[1] == (
        "A pair costs it 9.90 M multiply-adds in the mean, its trimmers included (7.43 at the 5th percentile, 12.38 at the "
        "95th), against 20.00 M dense: a whole-model ratio of 2.020."
    )
    assert findings[2] == (
        "At batch 1 on 2 threads SmartTrim is slower (0.80x) than the host model's own dense forward (middle half of 60 rounds "
        "0.70-0.90), with 2.00 times fewer multiply-adds on the same pairs; packed but untrimmed the model runs at 0.95x."
    )
    assert findings[3].startswith("At batch 32 on 2 threads SmartTrim is 1.50x as fast as the host model's own dense forward")
    assert findings[4] == (
        "A pair takes the dense model 4.00 ms at batch 1 and 2.00 ms at batch 32: at batch 1 50% of the time is overhead that "
        "a batch shares, and that trimming does not save."
    )


def test_overhead_is_only_spoken_of_where_it_was_measured():
    assert "overhead" not in " ".join(report(benchmark=benchmark(host_at_1=3.0))["findings"])


def test_longer_training_and_trimming_are_told_apart():
    rows = {
        "dense": row("dense model", 90),
        "dense-longer": row("dense model, trained on", 97),
        "smarttrim": row("SmartTrim", 95, 2.0),
        "dense-pass": row("dense pass of SmartTrim's weights", 96),
    }
    found = report(rows)
    longer, dense_pass = found["findings"][-2:]
    assert "the dense model, trained on, reaches 97.00%, and SmartTrim is 2.00 points below it" in longer
    assert "SmartTrim's weights answer 96.00%" in dense_pass
    assert "1.00 points below that" in dense_pass
    assert found["against_smarttrim"] == {}  # it is no baseline at equal compute
    assert "was not measured" in report()["findings"][-2]
    assert "dense model, trained on:" not in render(found)  # nothing of it is trimmed


def test_report_is_json_and_holds_what_was_measured():
    found = json.loads(json.dumps(report()))
    assert found["models"]["smarttrim"]["multiply_adds"]["p95"] == pytest.approx(25 / 2.02)
    assert found["models"]["smarttrim"]["kept"]["fusion.0/image"] == 0.25
    assert found["seeds"] == {"training": 3}
    assert found["seconds"] == 61.0


def test_markdown_shows_tables_commands_seeds_and_pictures():
    text = render(report())
    for expected in (
        "| SmartTrim ",
        "| +0.00 ± 0.00 ",
        "python tools/a.py",
        "Seeds: training 3.",
        "![pruned_patches](pictures/pruned_patches.png)",
        "a CPU, torch 2.13.0",
        "| do a  | 1:01 |",
        "reached",
    ):
        assert expected in text
    assert "smoke" not in text
    assert "numbers mean nothing" in render(report(smoke=True))
    assert "numbers mean nothing" in render_console(report(smoke=True))


def test_kept_table_has_a_row_a_layer_and_a_column_a_stream():
    lines = kept_table(report()["models"]["smarttrim"]).splitlines()
    cells = [[cell.strip() for cell in re.split(r"\|", line)[1:-1]] for line in lines if "--" not in line]
    assert cells == [
        ["layer", "image tokens", "text tokens", "heads"],
        ["text.0", "", "0.90", ""],
        ["image.0", "0.50", "", ""],
        ["fusion.0", "0.25", "0.80", "text.cross 0.75, image.self 1.00"],
    ]


def test_tables_are_aligned():
    assert len({len(line) for line in table(["a", "long header"], [["wide cell", "b"], ["c", ""]]).splitlines()}) == 1
