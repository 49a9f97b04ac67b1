import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from smarttrim_mm.engine import benchmark as tool
from smarttrim_mm.engine import contest
from smarttrim_mm.engine.contenders import COMPILED, HOST, HOST_SDPA, PACKED
from smarttrim_mm.engine.precision import PRECISIONS
from smarttrim_mm.engine.stopwatch import Stopwatch
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies import imposed

CONFIGS = Path(__file__).parents[2] / "configs" / "lavis_blip"
SMALL_NLVR2 = """
_base_ = {base!r}
model = dict(backbone=dict(
    vision=dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=4),
    text=dict(vocab_size=120, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=7),
))
"""
SMALL_VQA = SMALL_NLVR2.replace("num_hidden_layers=7", "num_hidden_layers=2")


@pytest.fixture
def native(tmp_path):
    """A config of a task, at a small size; its data are not there."""

    def write(name: str, text: str) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(text.format(base=str(CONFIGS / f"{name}.py")))
        return str(path)

    return write


def test_tool_reaches_speedups_without_data_or_weights(native, tmp_path, capsys):
    config, out = native("blip_nlvr2_smarttrim-2x", SMALL_NLVR2), tmp_path / "benchmark.json"
    arguments = [config, "--speedups", "1.1", "1.25", "--text-length", "8", "--batch-sizes", "1", "3", "--rounds", "3"]
    content = tool.main([*arguments, "--warmup", "1", "--out", str(out)])
    assert json.loads(out.read_text()) == content
    assert (content["random_inputs"], content["text_length"], content["speedups"]) == (True, 8, [1.1, 1.25])
    assert (content["checkpoint"], content["spread"], content["policy"]) == (None, 0.1, "SmartTrim")
    for result, size in zip(content["results"], (1, 3), strict=True):
        rows = result["contenders"]
        assert list(rows) == [HOST, HOST_SDPA, PACKED, "SmartTrim at 1.1x", "SmartTrim at 1.25x"]
        assert (result["batch_size"], result["rounds"], result["pairs"]) == (size, 3, 3 * size)
        assert rows["SmartTrim at 1.1x"]["dense_over_decided"] == pytest.approx(1.1, rel=0.02)
        assert rows["SmartTrim at 1.25x"]["dense_over_decided"] == pytest.approx(1.25, rel=0.02)
    printed = capsys.readouterr().out
    assert "over SDPA" in printed and HOST_SDPA in printed
    assert "what is kept is imposed: SmartTrim decides live and is overruled" in printed


def test_tool_makes_up_answers(native):
    config = native("blip_vqav2_smarttrim-2x", SMALL_VQA)
    arguments = [config, "--random-inputs", "--answers", "9", "--batch-sizes", "2", "--rounds", "1", "--warmup", "0"]
    content = tool.main([*arguments, "--cfg-options", "model.backbone.num_candidates=4"])
    (result,) = content["results"]
    assert list(result["contenders"]) == [HOST, HOST_SDPA, PACKED, "SmartTrim"]
    assert (content["answers"], content["speedups"], content["spread"]) == (9, None, None)
    assert 0 <= result["largest_logit_difference_of_dense_forwards"] < 1e-3


def test_tool_compares_policies_at_the_same_speedups_and_rivals_in_the_same_rounds(native, tmp_path, monkeypatch, capsys):
    config, asked = native("blip_nlvr2_smarttrim-2x", SMALL_NLVR2), []

    def rival_contenders(model, imposed, first, speedup, on_skip):
        on_skip("merging", ValueError("too fast"))
        asked.append((type(imposed.policy).__name__, len(first.sample_ids), speedup))
        return {"mask-only": lambda inputs: model.trace(inputs, kind="masked", policy=imposed)}

    monkeypatch.setattr(contest, "rival_contenders", rival_contenders)
    arguments = ["--policies", "SmartTrim", "Random", "--speedups", "1.1", "--rivals", "--text-lengths", "5", "9"]
    sizes = ["--batch-sizes", "2", "--rounds", "2", "--warmup", "1", "--dtype", "bf16", "--out", str(tmp_path / "out")]
    content = tool.main([config, *arguments, *sizes])
    assert asked == [("SmartTrim", 4, 1.1)]  # two images a sample
    (result,) = content["results"]
    rows = result["contenders"]
    assert list(rows) == [HOST, HOST_SDPA, PACKED, "SmartTrim at 1.1x", "mask-only at 1.1x", "Random at 1.1x"]
    assert rows["mask-only at 1.1x"]["path"] == "dense shapes"
    assert rows["mask-only at 1.1x"]["decided_multiply_adds"] == rows["SmartTrim at 1.1x"]["decided_multiply_adds"]
    assert rows["Random at 1.1x"]["dense_over_decided"] == pytest.approx(1.1, rel=0.05)
    assert (content["dtype"], content["text_lengths"], content["policies"]) == ("bf16", [5, 9], ["SmartTrim", "Random"])
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == content
    assert "| 2 | Random at 1.1x | dense shapes |" in (tmp_path / "out" / "benchmark.md").read_text()
    assert (tmp_path / "out" / "benchmark.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "SmartTrim and Random decide live and are overruled" in printed
    assert "merging at 1.1x: left out: too fast" in printed


def test_tool_compiles_the_dense_baseline(small_config, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    arguments = ["--random-inputs", "--compile", "--text-length", "6", "--batch-sizes", "1", "--rounds", "1", "--warmup", "1"]
    (result,) = tool.main([small_config("smarttrim"), *arguments])["results"]
    assert list(result["contenders"]) == [HOST, PACKED, COMPILED, "SmartTrim"]
    assert "host dense, CUDA graph: left out, as the model is on the cpu" in capsys.readouterr().out


def test_tool_finds_crossovers_and_prints_settings_that_configs_take(native, tmp_path, capsys):
    config, out = native("blip_nlvr2_smarttrim-2x", SMALL_NLVR2), tmp_path / "out"
    arguments = [
        "--crossover",
        "--speedups",
        "1.1",
        "--text-length",
        "6",
        "--batch-sizes",
        "3",
        "--rounds",
        "2",
        "--warmup",
        "1",
    ]
    content = tool.main([config, *arguments, "--out", str(out)])
    found = content["crossover"]
    assert json.loads((out / "crossover.json").read_text()) == content
    assert list(found["sizes"]) == ["1", "2", "3"] and list(found["sizes"]["1"]) == ["1.1"]
    assert found["packed_from"] in (None, 1, 2, 3)
    layers = found["decisions"]["1.1"]["layers"]
    assert [row["layer"] for row in layers][:2] == ["image.0", "image.1"]
    assert all(row["tokens_ms"] > 0 for row in layers if row["tokens_ms"] is not None)
    lines = [line for line in found["settings"] if line.startswith("model.policy")]
    printed = capsys.readouterr().out
    assert lines and all(line in printed for line in lines)
    assert found["threads"] == torch.get_num_threads()
    options = tool.parser().parse_args([config, "--cfg-options", *lines]).cfg_options
    tool.build_model(tool.read_config(config, options))


@pytest.mark.parametrize(("mode", "seed"), [("--rivals", "91"), ("--crossover", "92")])  # draws of no other test
def test_no_contender_draws_what_another_can_use(native, monkeypatch, mode, seed):
    """With one round of warm-up, in which the sizes of streams are seen."""
    config, draws, timing = native("blip_nlvr2_smarttrim-2x", SMALL_NLVR2), [], []
    own, trace = imposed.hash_uniform, TrimmedVLM.trace
    monkeypatch.setattr(imposed, "hash_uniform", lambda *keys: draws.append(len(timing)) or own(*keys))

    def timed(self, inputs, *args, **settings):
        timing.append(inputs.sample_ids.min().item())
        before = len(draws)
        result = trace(self, inputs, *args, **settings)
        if timing[-1] > 0 and not isinstance(settings.get("policy"), Stopwatch):  # not of the first round
            assert len(draws) == before
        return result

    monkeypatch.setattr(TrimmedVLM, "trace", timed)
    arguments = ["--speedups", "1.1", "1.2", "--text-lengths", "5", "9", "--batch-sizes", "2", "--rounds", "3", "--warmup", "1"]
    tool.main([config, mode, *arguments, "--seed", seed])
    assert max(timing) > 0 and draws


def test_tool_says_what_can_be_reached(native, capsys):
    config = native("blip_nlvr2_smarttrim-2x", SMALL_NLVR2)
    with pytest.raises(ValueError, match=r"speedup is 90, but SmartTrim reaches at most \d+\.\d+ here"):
        tool.main([config, "--speedups", "1.1", "90", "--rounds", "1"])
    assert "host dense" not in capsys.readouterr().out  # nothing is timed first


def test_tool_writes_ratios_machine_and_command(small_config, small_checkpoint, tmp_path, capsys, monkeypatch):
    threads: list[int] = []
    config = small_config("smarttrim")
    out = tmp_path / "new" / "benchmark.json"
    arguments = [config, small_checkpoint(config), "--batch-sizes", "1", "3", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.append(count))
    content = tool.main([*arguments, "--threads", "2", "1", "--seed", "5"])
    assert json.loads(out.read_text()) == content
    found = [tuple(result[key] for key in ("threads", "batch_size", "rounds", "pairs")) for result in content["results"]]
    assert found == [(2, 1, 2, 2), (2, 3, 2, 6), (1, 1, 2, 2), (1, 3, 2, 6)]
    assert threads == [2, 1]
    assert content["policy"] == "SmartTrim"
    assert content["seed"] == 5
    assert content["machine"]["torch"] == torch.__version__
    assert config in content["command"]
    assert content["load_average"].keys() == {"before", "after"}
    printed = capsys.readouterr().out
    assert "batch 3, 2 threads, 2 rounds" in printed
    assert "packed dense" in printed


def test_what_was_measured_outlives_what_breaks_later(small_config, tmp_path, monkeypatch):
    own, out = tool.compare_clocks, tmp_path / "out"
    sizes = []

    def break_at_two(model, contenders, batches, **settings):
        sizes.append(1)
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return own(model, contenders, batches, **settings)

    monkeypatch.setattr(tool, "compare_clocks", break_at_two)
    arguments = ["--random-inputs", "--batch-sizes", "1", "2", "--rounds", "1", "--warmup", "0", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        tool.main([small_config("smarttrim"), *arguments])
    assert [result["batch_size"] for result in json.loads((out / "benchmark.json").read_text())["results"]] == [1]


class OneImage(list):
    """On a GPU, as far as is asked."""

    device = torch.device("cuda")

    def __init__(self):
        super().__init__([None])


def test_a_forward_that_no_graph_holds_leaves_the_others(small_model, monkeypatch, capsys):
    def refuse(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(tool, "graphed_contender", refuse)
    first = SimpleNamespace(images=OneImage(), pairs_per_sample=1)
    alone = SimpleNamespace(first=first, contenders={}, text_length=5)
    found = tool._contenders(SimpleNamespace(compile=False), small_model({"type": "Dense"}), alone, PRECISIONS["fp32"])
    assert list(found) == [HOST, PACKED]
    expected = "CUDA graph: left out, as the host's forward is not captured: operation not permitted when stream is capturing\n"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--rounds", "0"], "--rounds is 0"),
        (["--crossover", "--policies", "Random"], "--policies Random is given with --crossover"),
        (["--crossover", "--rivals"], "--rivals is given with --crossover"),
        (["--crossover", "--compile"], "--compile is given with --crossover"),
        (["--crossover", "--threads", "1", "2"], r"--threads is \[1, 2\] with --crossover; expected one number"),
        (["--batch-sizes", "1", "-2"], "--batch-sizes is -2"),
        (["--threads", "0"], "--threads is 0"),
        (["--split", "dev"], "split is 'dev'"),
        (["--warmup", "-1"], "--warmup is -1"),
        (["--speedups", "0.5"], r"--speedups is 0\.5"),
        (["--speedups", "2", "--spread", "0.7"], r"spread is 0\.7"),
        (["--speedups", "2"], r"Dense reaches at most 1\.00"),
        (["--policies", "Random", "--speedups", "0.2"], r"--speedups is 0\.2"),
        (["--rivals"], "--rivals is given without --speedups"),
        (["--crossover"], "Dense has no setting of the layers"),
        (["--text-lengths", "5", "9"], r"--text-lengths is \[5, 9\] without --random-inputs"),
        (["--random-inputs", "--text-lengths", "9", "5"], r"--text-lengths is \[9, 5\]; expected the least first"),
        (["--random-inputs", "--text-lengths", "1", "5"], "text length is 1"),
        (["--random-inputs", "--text-length", "5", "--text-lengths", "5", "9"], "--text-length is 5 and --text-lengths"),
        (["--spread", "0.2"], r"--spread is 0\.2 without --speedups"),
        (["--text-length", "9"], "--text-length is 9 without --random-inputs"),
        (["--random-inputs", "--text-length", "1"], "text length is 1"),
        (["--answers", "9"], "--answers is 9 without --random-inputs"),
        (["--random-inputs", "--answers", "9"], r"model\.backbone\.answers is not set"),
        (["some.pth", "--random-inputs"], "checkpoint is 'some.pth', and the inputs are to be random"),
    ],
)
def test_wrong_numbers_are_refused(small_config, option, message):
    with pytest.raises(ValueError, match=message):
        tool.main([small_config("dense"), *option])
