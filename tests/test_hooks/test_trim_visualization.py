"""The hook in real trainings of the quickstart's model, cut to four iterations."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from smarttrim_mm.engine.building import read_config
from smarttrim_mm.hooks.trim_visualization import TrimVisualizationHook, _undisturbed

CONFIG = str(Path(__file__).parents[2] / "configs" / "meter" / "quickstart_smarttrim.py")
HOOK = {"default_hooks.visualization": {"type": "TrimVisualizationHook", "num": 2, "max_inputs": 30}}
NAMES = ["compute", "head_map", "head_scores", "keep_scores", "pruned_patches"]


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)

    def run(name: str, **changes) -> Runner:
        cfg = read_config(CONFIG)
        cfg.merge_from_dict(
            {
                "work_dir": str(tmp_path / name.partition("-")[0]),
                "experiment_name": f"{tmp_path.name}_{name}",
                "log_level": "WARNING",
                "train_cfg": {"max_iters": 4, "val_interval": 2},
                "param_scheduler": [{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 3}],
                "train_dataloader": {"batch_size": 2, "dataset": {"num_images": 6}},
                "val_dataloader": {"batch_size": 2, "dataset": {"num_images": 3}},
                "default_hooks.logger.interval": 1,
                "default_hooks.checkpoint.interval": 2,
                **changes,
            }
        )
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    return run


def pictures(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob("*/vis_data/vis_image/*.png"))


def test_training_is_the_same_with_the_hook(train, tmp_path):
    plain, drawn = train("plain"), train("drawn", **HOOK)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, drawn.model.state_dict()[name]), name
    assert pictures(tmp_path / "plain") == []
    assert pictures(tmp_path / "drawn") == sorted(f"val_{name}_{step}.png" for name in NAMES for step in (2, 4))


def test_a_resumed_training_draws_the_inputs_chosen_first(train, tmp_path):
    first = train("one", **HOOK, **{"train_cfg.max_iters": 2})
    chosen = first.message_hub.runtime_info["drawn_val_inputs"]
    assert len(chosen) == 2 and all(len(pair) == 2 for pair in chosen)
    again = train("one-more", **HOOK, resume=True, **{"default_hooks.visualization.seed": 5})
    assert again.iter == 4
    assert again.message_hub.runtime_info["drawn_val_inputs"] == chosen


def test_modes_and_generators_are_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    model.train()
    model[0].eval()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with _undisturbed(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        random.random(), np.random.rand(), torch.rand(1)
    assert [module.training for module in model.modules()] == [True, False, True]
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_only_the_main_process_draws(monkeypatch):
    monkeypatch.setattr("smarttrim_mm.hooks.trim_visualization.is_main_process", lambda: False)
    TrimVisualizationHook()._draw(None, None, "val")  # it would fail on a runner that is None


def test_settings_and_runs_that_do_not_fit_are_refused(toy_run):
    with pytest.raises(ValueError, match="num is 0"):
        TrimVisualizationHook(num=0)
    with pytest.raises(ValueError, match="max_inputs is 3; expected at least num=4"):
        TrimVisualizationHook(max_inputs=3)
    hook = {"custom_hooks": [{"type": "TrimVisualizationHook"}]}
    with pytest.raises(TypeError, match="the model is a ToyVLM; TrimVisualizationHook expects a TrimmedVLM"):
        toy_run("model", **hook)
    with pytest.raises(TypeError, match="visualizer is a Visualizer; TrimVisualizationHook expects"):
        toy_run("visualizer", **hook, **{"visualizer.type": "Visualizer"})
