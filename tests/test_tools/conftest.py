"""The quickstart's SmartTrim config, cut to four iterations on a few images."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_CONFIG = """
_base_ = {base!r}
train_cfg = dict(max_iters=4, val_interval=4)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=3)]
train_dataloader = dict(batch_size=2, dataset=dict(num_images=6))
val_dataloader = dict(batch_size=2, dataset=dict(num_images=3))
test_dataloader = dict(batch_size=2, dataset=dict(num_images=5))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
log_level = "WARNING"
"""


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Writes the config with further lines and a name of its own, for mmengine shares state between runs of one name."""
    folder, numbers = tmp_path_factory.mktemp("configs"), count()

    def write(more: str = "", base: str = "quickstart_smarttrim.py") -> str:
        path = folder / f"small_{next(numbers)}.py"
        path.write_text(_CONFIG.format(base=str(ROOT / "configs" / "meter" / base)) + more)
        return str(path)

    return write


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Runner would ask compilers for their versions, for half a second."""
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)
