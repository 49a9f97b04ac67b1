import json

import pytest
import torch

from smarttrim_mm.attention.base import AttentionBackend, HeadPlan, Sequences
from smarttrim_mm.engine import attention_benchmark as tool
from smarttrim_mm.engine.attention_benchmark import Case, Shape, compare, table

CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--batch", "3", "--mean-length", "5", "--spread", "2", "--heads", "4", "--width", "8"]
SMALL += ["--rounds", "2", "--warmup", "1"]


def draw(seed=0, **settings):
    shape = Shape(**{"batch": 200, "mean_length": 50, "spread": 5, "heads": 4, "width": 8, **settings})
    return shape.draw(torch.float32, CPU, torch.Generator().manual_seed(seed))


def test_lengths_are_spread_around_their_mean():
    lengths = torch.tensor(draw().of.lengths).float()
    assert lengths.mean().item() == pytest.approx(50, abs=1.5) and lengths.std().item() == pytest.approx(5, abs=1)
    assert min(draw(mean_length=1, spread=9).of.lengths) == 1
    assert draw(1).of.lengths != draw(2).of.lengths and draw(1).of.lengths == draw(1).of.lengths


def test_tensors_are_views_of_a_fused_projection():
    case = draw(batch=2)
    assert case.q.shape == case.k.shape == (sum(case.of.lengths), 4, 8)
    assert case.q.stride() == (3 * 4 * 8, 8, 1)


def test_heads_are_drawn_per_instance():
    assert draw().heads is None
    heads = draw(heads_on=0.75).heads
    assert {len(on) for on in heads.on} == {3} and len(set(heads.on)) == 4
    assert draw(heads_on=0.0).heads.pairs == 0


def test_least_multiply_adds():
    q = torch.zeros(5, 4, 8)
    of, heads = Sequences.of([2, 3]), HeadPlan.of(torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]))
    assert Case(q, q, q, of, None).least() == 2 * 8 * 4 * (4 + 9)
    assert Case(q, q, q, of, heads).least() == 2 * 8 * (4 + 2 * 9)


def test_backends_are_compared_on_the_same_cases():
    class Twice(AttentionBackend):
        seen = ()

        def __call__(self, q, k, v, of_q, of_k, heads=None):
            self.seen += (of_q.lengths,)
            return v, 2 * Case(q, k, v, of_q, heads).least()

    one, other = Twice(), Twice()
    runs = []
    result = compare(
        {"one": one, "other": other},
        iter([draw(seed, batch=2) for seed in range(4)]),
        reference="other",
        warmup=1,
        on_run=lambda: runs.append(1),
    )
    assert one.seen == other.seen and len(set(one.seen)) == 4
    assert len(runs) == 6 and result["rounds"] == 3 and result["reference"] == "other"
    assert result["backends"]["one"]["executed_over_least"] == 2
    assert result["backends"]["other"]["speedup"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}


def test_table():
    spread = {"median": 1.25, "q1": 1.0, "q3": 1.5}
    row = {"ms": spread, "speedup": spread, "executed_over_least": 1.1}
    rows = {"A": row, "B": {**row, "executed_over_least": None}}
    lines = table("cases", {"reference": "A", "backends": rows}).splitlines()
    assert lines[1].split() == ["A", "1.250", "1.000", "-", "1.500", "1.25", "1.10"]
    assert lines[2].split() == ["B", "1.250", "1.000", "-", "1.500", "1.25", "1.00", "-", "1.50"]


def test_tool_runs_all_that_can_run(tmp_path, capsys):
    out = tmp_path / "attention.json"
    options = ["--dtype", "fp32", "bf16", "--heads-on", "1", "0.5", "--out", str(out)]
    content = tool.main([*SMALL, *options])
    assert json.loads(out.read_text()) == content
    assert [(r["dtype"], r["shape"]["heads_on"]) for r in content["results"]] == [
        (dtype, share) for dtype in ("fp32", "bf16") for share in (1.0, 0.5)
    ]
    for result in content["results"]:
        assert result["reference"] == "AdaptiveSDPA" and result["rounds"] == 2
        assert {"PerSequenceSDPA", "BucketedSDPA", "NestedAttention", "FlexAttention"} < result["backends"].keys()
        assert "VarlenAttention" not in result["backends"], "it cannot run on a CPU"
        assert all(row["ms"]["median"] > 0 for row in result["backends"].values())
    assert content["results"][1]["backends"]["PerSequenceSDPA"]["executed_over_least"] == 1
    printed = capsys.readouterr().out
    assert "fp32, 50% of 4 heads on" in printed and "3 instances of 5 +- 2 tokens" in printed


def test_settings_of_backends():
    names = ["--backends", "NestedAttention", "PerSequenceSDPA", "--heads-on", "0.5"]
    work = []
    for price in (0, 1000):
        content = tool.main([*SMALL, *names, "--options", f"NestedAttention.multiply_adds_per_move={price}"])
        (result,) = content["results"]
        assert list(result["backends"]) == ["NestedAttention", "PerSequenceSDPA"] and result["reference"] == "NestedAttention"
        work.append(result["backends"]["NestedAttention"]["executed_over_least"])
    assert work == [1, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--rounds", "0"], ValueError, "--rounds is 0; expected at least 1"),
        (["--mean-length", "0.5"], ValueError, "--mean-length is 0.5; expected at least 1"),
        (["--spread", "-1"], ValueError, "--spread is -1.0; expected at least 0"),
        (["--heads-on", "75"], ValueError, "--heads-on is 75.0; expected a share of heads, 0 to 1"),
        (["--options", "compiled=True"], ValueError, "--options has 'compiled'; expected NAME.KEY=VALUE"),
        (["--options", "Flex.compiled=True"], KeyError, "'Flex' is not registered"),
        (
            ["--options", "FlexAttention.compiled=True", "--backends", "BucketedSDPA"],
            ValueError,
            "but --backends are BucketedSDPA",
        ),
        (["--backends", "VarlenAttention"], ValueError, "attention is 'VarlenAttention', which cannot run on cpu"),
        (["--backends", "SDPA"], KeyError, "'SDPA' is not registered as a attention backend"),
    ],
)
def test_options_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        tool.main([*SMALL, *options])
