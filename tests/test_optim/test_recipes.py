"""What every recipe must have, whoever adds one."""

from pathlib import Path

import pytest
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEDULES = sorted((CONFIGS / "_base_" / "schedules").glob("*.py"))
# what is left out inherits from one of these and says nothing of its own
SHIPPED = [
    path
    for path in sorted(CONFIGS.glob("*/*.py"))
    if any(setting in path.read_text() for setting in ("_base_ = [", "optim_wrapper = ", "default_hooks = "))
]


def clips(cfg: Config) -> bool:
    return cfg.optim_wrapper.get("clip_grad", {}).get("max_norm", 0) > 0


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.stem)
def test_a_schedule_clips_gradients(path):
    assert clips(Config.fromfile(path))


def test_no_config_takes_anything_back():
    """Every config that trains clips its gradients, and watches its gates and losses."""
    assert len(SCHEDULES) > 4
    trained = [cfg for cfg in map(Config.fromfile, SHIPPED) if "optim_wrapper" in cfg]
    assert len(trained) > 20
    for cfg in trained:
        assert clips(cfg), cfg.filename
        assert cfg.default_hooks.gates.type == "GateCollapseHook", cfg.filename
        assert cfg.default_hooks.finite.type == "FiniteLossHook", cfg.filename
