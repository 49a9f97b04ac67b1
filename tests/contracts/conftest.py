"""Every test here runs on every registered backbone and policy: see smarttrim_mm/testing.py for where the cases come from."""

from collections.abc import Callable

import pytest

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, policy_cases, random_inputs

BACKBONES, POLICIES = backbone_cases(), policy_cases()
BATCHES = {
    "shared and padded": {"lengths": [9, 4, 2, 7, 9, 3], "image_index": [0, 0, 1, 1, 1, 2]},
    "one image each": {"lengths": [3, 8, 5]},
    "no padding": {"lengths": [6, 6, 6, 6], "image_index": [1, 0, 1, 0]},
    "one pair": {"lengths": [5]},
    "no words": {"lengths": [2, 2], "image_index": [0, 0]},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, cases in (("backbone", BACKBONES), ("policy", POLICIES), ("batch", BATCHES)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, list(cases.values()), ids=list(cases))


@pytest.fixture
def build() -> Callable[..., TrimmedVLM]:
    """Builds a model in evaluation mode; none of its host's parameters is small or zero."""

    def make(backbone: dict, policy: dict, **others: object) -> TrimmedVLM:
        model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy, **others}).eval()
        excite(model.backbone)
        return model

    return make


@pytest.fixture
def inputs_of() -> Callable[..., VLMInputs]:
    """Random inputs for a model; by default two texts share an image and lengths differ."""

    def make(model: TrimmedVLM, **batch: list[int]) -> VLMInputs:
        return random_inputs(model.backbone.input_format, **(batch or BATCHES["shared and padded"]))

    return make
