import copy
import json
from pathlib import Path

import pytest
import torch

from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.engine import train_cost as tool
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.engine.train_cost import MODES, PARTS, PLAIN, build_steps, held_bytes, plain_model, table
from smarttrim_mm.losses.answers import AnswerGeneration
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import random_inputs
from smarttrim_mm.utils.random_inputs import random_targets

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = """
_base_ = {base!r}
model = dict(backbone=dict(
    vision=dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=4),
    text=dict(vocab_size=120, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers={layers}),
))
"""
RANDOM = ["--random-inputs", "--batch-size", "2", "--steps", "2", "--warmup", "1"]
QUICKSTART = str(CONFIGS / "meter" / "quickstart_smarttrim.py")


@pytest.fixture
def trained():
    """The quickstart's model, which has no dropout, in training mode, and its config."""
    torch.manual_seed(0)
    cfg = read_config(QUICKSTART)
    return build_model(cfg).train(), cfg


def test_the_plain_step_is_that_of_the_dense_config(trained):
    """The same loss and, by the same optimiser, the same weights; the policy's weights stay as they were."""
    model, cfg = trained
    dense_cfg = read_config(str(CONFIGS / "meter" / "quickstart_dense.py"))
    dense = build_model(dense_cfg).train()
    dense.backbone.load_state_dict(model.backbone.state_dict())
    policy = copy.deepcopy(model.policy.state_dict())
    inputs = random_inputs(model.backbone.input_format, [9, 12, 7])
    plain = build_steps(model, cfg, [])[PLAIN]
    plain.optim.optimizer.param_groups[:] = [{**group, "lr": 1e-3} for group in plain.optim.optimizer.param_groups]
    of_dense = tool.build_optim_wrapper(dense, dense_cfg.optim_wrapper)
    expected, found = dense.loss(inputs), plain.model.loss(inputs)
    assert found.keys() == expected.keys() and torch.equal(found["loss_task"], expected["loss_task"])
    assert [key for key in found if "loss" in key] == ["loss_task"] and found["speedup"] == 1
    of_dense.update_params(expected["loss_task"])
    plain(inputs)
    weights = dense.backbone.state_dict()
    for name, value in model.backbone.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=1e-6, rtol=1e-5)
    assert all(torch.equal(value, policy[name]) for name, value in model.policy.state_dict().items())


def test_plain_keeps_the_configs_loss():
    settings = {"type": "TrimmedVLM", "policy": {"type": "SmartTrim"}, "task_loss": {"type": "SoftTargetBCE"}}
    model = MODELS.build({**settings, "backbone": METER.small_configs()["shared images"]})
    plain = plain_model(model, settings)
    assert type(plain.task_loss).__name__ == "SoftTargetBCE" and plain.backbone is model.backbone
    with pytest.raises(ValueError, match=r"model\.policy is Dense, which is plain fine-tuning itself"):
        plain_model(plain, settings)


def test_parts_of_a_step_add_up_and_the_dense_pass_is_told_apart(trained):
    model, cfg = trained
    steps = build_steps(model, cfg, ["checkpointed"])
    assert list(steps) == [PLAIN, f"{PLAIN}, checkpointed", "SmartTrim", "SmartTrim, checkpointed"]
    inputs = random_inputs(model.backbone.input_format, [9, 7])
    passes: list[str] = []
    for name, step in steps.items():
        ticks = iter(range(100))
        step.clock = lambda own=ticks: float(next(own))
        calls = len(passes)
        handle = model.backbone.register_forward_hook(lambda _, args, __: passes.append(type(args[1].policy).__name__))
        spent = step(inputs)
        handle.remove()
        teaches = name.startswith("SmartTrim")
        assert passes[calls:] == (["Dense", "SmartTrim"] if teaches else ["Dense"])
        # a tick at the beginning and the end of each part; the dense pass lies inside the forward pass
        assert spent == {"dense pass": 1.0 * teaches, "forward": 1.0 + teaches, "backward": 1.0, "optimizer": 1.0}
        assert step.model.checkpoint_layers == name.endswith("checkpointed")
        assert all(parameter.grad is None for parameter in step.model.parameters())
    assert not model.backbone._forward_hooks and not model.backbone._forward_pre_hooks


def test_a_frozen_teacher_is_the_dense_pass(trained, tmp_path):
    model, _ = trained
    torch.save({"state_dict": model.state_dict()}, tmp_path / "teacher.pth")
    cfg = read_config(QUICKSTART, {"model.distillation.frozen_teacher": str(tmp_path / "teacher.pth")})
    model = build_model(cfg).train()
    step = build_steps(model, cfg, [])["SmartTrim"]
    inputs = random_inputs(model.backbone.input_format, [9, 7])
    without = held_bytes(step)
    step(inputs)  # loads it
    assert step(inputs)["dense pass"] > 0
    state = sum(p.numel() for p in model.parameters()) * 8  # AdamW's two averages
    frozen = sum(p.numel() for p in model.backbone.parameters()) * 4
    assert held_bytes(step) - without == pytest.approx(state + frozen, rel=0.01)


def test_tool_compares_all_modes_without_data(tmp_path, capsys):
    out = tmp_path / "cost.json"
    content = tool.main([QUICKSTART, *RANDOM, "--text-length", "8", "--out", str(out)])
    assert json.loads(out.read_text()) == content
    (result,) = content["results"]
    rows = result["contenders"]
    assert list(rows) == [name if mode == "fp32" else f"{name}, {mode}" for name in (PLAIN, "SmartTrim") for mode in MODES]
    assert (result["rounds"], result["batch_size"], result["policy"]) == (2, 2, "SmartTrim")
    assert rows[PLAIN]["ratio"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    for name, row in rows.items():
        assert row["parts"].keys() == set(PARTS)
        assert (row["parts"]["dense pass"]["median"] > 0) == name.startswith("SmartTrim")
        assert row["peak_mib"] > row["held_mib"] > 0
    assert rows["SmartTrim"]["held_mib"] > rows[PLAIN]["held_mib"]
    parameters = sum(p.numel() for p in build_model(read_config(QUICKSTART)).parameters())
    assert rows["SmartTrim"]["held_mib"] == pytest.approx(parameters * 12 / 2**20, rel=0.01)  # weights and two averages
    for name in (PLAIN, "SmartTrim"):
        assert rows[f"{name}, checkpointed"]["peak_mib"] < rows[name]["peak_mib"]
    printed = capsys.readouterr().out
    assert "x plain" in printed and "ETA" not in printed.splitlines()[-1]


def test_tool_takes_several_configs_and_targets_of_every_kind(tmp_path):
    paths = []
    for name, layers in (("blip_nlvr2_smarttrim-2x", 7), ("blip_vqav2_smarttrim-2x", 2)):
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(SMALL.format(base=str(CONFIGS / "lavis_blip" / f"{name}.py"), layers=layers))
    easier = ["model.budget.speedup=1.05", "model.backbone.answers=[[101,7,102],[101,8,102]]"]
    options = ["--text-length", "6", "--modes", "fp32", "--cfg-options", easier[0]]
    content = tool.main([str(paths[0]), *RANDOM, *options])
    content["results"] += tool.main([str(paths[1]), *RANDOM, *options, easier[1]])["results"]
    for result in content["results"]:
        assert list(result["contenders"]) == [PLAIN, "SmartTrim"]
        assert result["contenders"]["SmartTrim"]["peak_mib"] > 0


def test_tool_reads_the_trainings_data():
    content = tool.main([QUICKSTART, "--batch-size", "2", "--steps", "1", "--warmup", "0", "--modes", "fp32"])
    assert content["results"][0]["random_inputs"] is False


def test_random_targets_of_every_kind():
    shape = {"image_size": 8, "vocab_size": 30, "begin_id": 1, "end_id": 2, "pad_id": 0, "num_classes": 5}
    classes = random_targets("classes", shape, 6, length=4)
    assert classes.shape == (6,) and classes.max() < 5
    scores = random_targets("scores", shape, 6, length=4)
    assert scores.shape == (6, 5) and scores.min() >= 0 and scores.max() <= 1
    texts = random_targets("texts", shape, 3, length=4)
    assert texts.input_ids.shape == (3, 4) and texts.tokens.shape == (9,) and texts.samples == 3
    assert (texts.input_ids[:, 0] == 1).all() and (texts.input_ids[:, -1] == 2).all()
    assert AnswerGeneration()(torch.zeros(9, 30), texts).isfinite()
    with pytest.raises(ValueError, match="target_kind is 'boxes'"):
        random_targets("boxes", shape, 3, length=4)


def test_table_shows_every_contender():
    part = {"median": 0.25, "q1": 0.2, "q3": 0.3}
    row = {"ratio": {"median": 1.5, "q1": 1.4, "q3": 1.6}, "parts": dict.fromkeys(PARTS, part), "peak_mib": 123.4}
    lines = table("batch 2", {"contenders": {PLAIN: {**row, "ratio": {"median": 1.0}}, "SmartTrim": row}}).splitlines()
    assert lines[1].split() == [PLAIN, "1.00", "123", *["0.25"] * 4]
    assert lines[2].split() == ["SmartTrim", "1.50", "1.40", "-", "1.60", "123", *["0.25"] * 4]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps is 0; expected at least 1"),
        (["--answer-length", "1", "--random-inputs"], "--answer-length is 1; expected at least 2"),
        (["--text-length", "9"], "--text-length is 9 without --random-inputs"),
        (["--random-inputs", "--cfg-options", "data_preprocessor.rank_texts=True"], "this model is trained to rank several"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        tool.main([QUICKSTART, *options])
