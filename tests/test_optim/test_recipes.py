"""What every recipe must have, whoever adds one."""

from pathlib import Path

import pytest
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEDULES = sorted((CONFIGS / "_base_" / "schedules").glob("*.py"))
SHIPPED = sorted(path for path in CONFIGS.glob("*/*.py") if path.parent.name != "_base_")


def clips(cfg: Config) -> bool:
    return cfg.optim_wrapper.get("clip_grad", {}).get("max_norm", 0) > 0


@pytest.mark.parametrize("path", SCHEDULES, ids=lambda path: path.stem)
def test_a_schedule_clips_gradients(path):
    assert clips(Config.fromfile(path))


def test_no_config_takes_anything_back():
    """Every config that trains clips its gradients, and watches its gates and losses."""
    assert len(SCHEDULES) > 4
    trained = [cfg for cfg in map(Config.fromfile, SHIPPED) if "optim_wrapper" in cfg]
    assert len(trained) > 50
    for cfg in trained:
        assert clips(cfg), cfg.filename
        assert cfg.default_hooks.gates.type == "GateCollapseHook", cfg.filename
        assert cfg.default_hooks.finite.type == "FiniteLossHook", cfg.filename
