import json
from pathlib import Path

import pytest

from smarttrim_mm.engine.cost import main, render
from smarttrim_mm.engine.cost_sheet import cost_sheet

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = str(CONFIGS / "meter" / "quickstart_smarttrim.py")


def test_tool_prints_saves_and_draws(tmp_path, capsys):
    paths = [tmp_path / "new" / "cost.json", tmp_path / "cost.png"]
    sheet = main([QUICKSTART, "--text-length", "8", "--json", str(paths[0]), "--plot", str(paths[1])])
    printed = capsys.readouterr().out
    assert "METER, 64 px, 8 text tokens, policy SmartTrim\nmultiply-adds in M per sample; counts, not times" in printed
    assert f"at 2.08x: wherever SmartTrim may cut, {100 * sheet.budget.share:.1f} %" in printed
    assert (
        f"{sheet.counted / 1e6:.3f} M counted by torch.utils.flop_counter on the same forward (FLOPs / 2), ratio 1.0000"
        in printed
    )
    saved = json.loads(paths[0].read_text())
    assert saved["config"] == QUICKSTART
    assert saved["budget"] == {"speedup": 2.08, "share": sheet.budget.share, "cuts": "SmartTrim"}
    assert [layer["left"] for layer in saved["layers"]] == [layer.left for layer in sheet.layers]
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_speed_up_and_settings_can_be_given(capsys):
    sheet = main([QUICKSTART, "--speedup", "3", "--cfg-options", "model.policy.type=Random", "model.policy._delete_=True"])
    assert (sheet.policy, sheet.budget.speedup) == ("Random", 3.0)
    assert "at 3x" in capsys.readouterr().out


def test_ranking_is_printed_if_asked_for(capsys):
    assert main([QUICKSTART, "--texts", "7"]).ranking.images == 1000
    printed = capsys.readouterr().out
    assert "1,000 images against 7 texts" in printed
    assert "each image and each text encoded once" in printed


def test_nothing_of_a_start_is_read():
    """init_from names what a training would start from; counting needs no weights."""
    main([QUICKSTART, "--cfg-options", "model.backbone.init_from.meter=no_such_file.ckpt"])


def test_rows_add_up_in_print(make_model):
    """As a reader would check it: the columns of the tables."""
    lines = render(cost_sheet(make_model("SmartTrim"), text_length=6, speedup=1.5)).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("part "))
    rows = lines[begin + 1 : begin + 7]
    assert [row.split()[0] for row in rows] == ["text", "image", "fusion", "head", "policy", "total"]
    dense, left = ([float(row[column : column + 10]) for row in rows] for column in (14, 44))
    assert sum(dense[:5]) == pytest.approx(dense[5], abs=0.003)
    assert sum(left[:5]) == pytest.approx(left[5], abs=0.003)
    assert left[5] == pytest.approx(dense[5] / 1.5, abs=0.001)
    (fusion,) = (line for line in lines if line.startswith("fusion.0 "))
    assert fusion.split()[1:6] == ["text", "6,", "image", "17", "16"]


def test_configs_without_such_a_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"vqav2\.py has no model; give a config of a model"):
        main([str(CONFIGS / "_base_" / "datasets" / "vqav2.py")])
    other = tmp_path / "other.py"
    other.write_text('model = dict(type="AnswerCrossEntropy")\n')
    with pytest.raises(TypeError, match="expected a TrimmedVLM"):
        main([str(other)])
