import pytest
import torch

from smarttrim_mm.engine import benchmark, calibration, visualize
from smarttrim_mm.engine.building import build_loader, build_model, model_batches, read_config


def test_model_has_the_checkpoint_s_weights_and_evaluates(small_config, small_checkpoint):
    config = small_config("smarttrim")
    source = small_checkpoint(config)
    model = build_model(read_config(config), source)
    assert not model.training
    weights = torch.load(source, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_trimmed_checkpoint_runs_in_a_dense_model(small_config, small_checkpoint):
    model = build_model(read_config(small_config("dense")), small_checkpoint(small_config("smarttrim")))
    assert not any(key.startswith("policy.") for key in model.state_dict())


def test_a_checkpoint_of_another_architecture_is_refused(small_config, small_checkpoint):
    cfg = read_config(small_config("dense"), {"model.backbone.vision.layers": 3})
    with pytest.raises(ValueError, match="another architecture"):
        build_model(cfg, small_checkpoint(small_config("dense")))


def test_options_change_the_config_and_batches_can_be_limited(small_config):
    cfg = read_config(small_config("dense"), {"val_dataloader.batch_size": 1})
    model = build_model(cfg)
    batches = list(model_batches(model, build_loader(cfg, "val"), limit=3))
    assert [len(inputs.images) for inputs in batches] == [1, 1, 1]


def test_missing_data_and_models_are_named(small_config):
    cfg = read_config(small_config("dense"))
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match="has no val_dataloader"):
        build_loader(cfg, "val")
    cfg.model = {"type": "METER", "num_classes": 3}
    cfg.pop("data_preprocessor")
    with pytest.raises(TypeError, match=r"model\.type is 'METER'"):
        build_model(cfg)


def test_data_with_other_answers_than_the_models_are_refused(small_config):
    cfg = read_config(small_config("dense"), {"model.backbone.num_classes": 5})
    model = build_model(cfg)
    with pytest.raises(ValueError, match=r"val_dataloader\.dataset is easy-VQA with 13 answers, and the model's head has 5"):
        build_loader(cfg, "val", model)


@pytest.mark.parametrize("tool", [benchmark, calibration, visualize])
def test_every_tool_refuses_them(tool, small_config, small_checkpoint, tmp_path):
    config = tmp_path / "five.py"
    config.write_text(f"_base_ = {small_config('random')!r}\nmodel = dict(backbone=dict(num_classes=5))\n")
    options = [] if tool is benchmark else ["--out", str(tmp_path / "new")]
    with pytest.raises(ValueError, match="the model's head has 5"):
        tool.main([str(config), small_checkpoint(str(config)), *options])
