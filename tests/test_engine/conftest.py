"""Small models with excited weights, and the quickstart's configs cut to a few images."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.testing import excite, random_inputs

CONFIGS = Path(__file__).parents[2] / "configs" / "meter"
_CONFIG = """
_base_ = {base!r}
val_dataloader = dict(batch_size=2, dataset=dict(num_images=4))
test_dataloader = dict(batch_size=2, dataset=dict(num_images=6))
"""


@pytest.fixture
def small_model() -> Callable[..., TrimmedVLM]:
    def build(policy: Mapping[str, Any]) -> TrimmedVLM:
        model = TrimmedVLM(backbone=METER.small_configs()["shared images"], policy=policy)
        excite(model)
        return model.eval()

    return build


@pytest.fixture
def batches() -> Callable[[TrimmedVLM], list[VLMInputs]]:
    def draw(model: TrimmedVLM) -> list[VLMInputs]:
        shape = model.backbone.input_format
        return [random_inputs(shape, [9, 12, 7, 10], seed=seed) for seed in range(3)]

    return draw


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Writes a quickstart config cut to a few images."""
    folder = tmp_path_factory.mktemp("configs")

    def write(name: str) -> str:
        path = folder / f"small_{name}.py"
        path.write_text(_CONFIG.format(base=str(CONFIGS / f"quickstart_{name}.py")))
        return str(path)

    return write


@pytest.fixture
def small_checkpoint(tmp_path: Path) -> Callable[[str], str]:
    """Saves a config's model with excited weights, as a training would."""

    def save(config: str) -> str:
        model = build_model(read_config(config))
        excite(model)
        path = tmp_path / f"{Path(config).stem}.pth"
        meta = {"iter": 7, "epoch": 0, "seed": 3, "time": "20260101_000000"}
        torch.save({"meta": meta, "state_dict": model.state_dict(), "optimizer": {}, "message_hub": {}}, path)
        return str(path)

    return save
