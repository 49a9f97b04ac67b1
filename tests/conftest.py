import os
import random
from collections.abc import Callable, Iterator

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach a network

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def scope() -> Iterator[None]:
    """Configs name classes of this package without a prefix, as under a Runner."""
    with DefaultScope.overwrite_default_scope("smarttrim_mm"):
        yield


@pytest.fixture
def make_model() -> Callable:
    """Builds a small METER under a policy, in evaluation mode, with host weights that are neither small nor zero."""
    from smarttrim_mm.backbones.meter import METER
    from smarttrim_mm.registry import MODELS
    from smarttrim_mm.testing import excite

    def make(policy: dict | str = "Dense", backbone: dict | None = None, **others: object) -> torch.nn.Module:
        policy = {"type": policy} if isinstance(policy, str) else policy
        backbone = {**METER.small_configs()["shared images"], **(backbone or {})}
        model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy, **others}).eval()
        excite(model.backbone)
        return model

    return make


@pytest.fixture
def make_inputs() -> Callable:
    """Random inputs of a small METER; by default six texts of unequal length about three images."""
    from smarttrim_mm.testing import random_inputs

    def make(model: torch.nn.Module, lengths: tuple = (9, 4, 2, 7, 9, 3), image_index: tuple | None = (0, 0, 1, 1, 1, 2)):
        return random_inputs(model.backbone.input_format, lengths, image_index)

    return make
