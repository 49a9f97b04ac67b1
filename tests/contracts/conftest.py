"""Every test here runs on every registered backbone and policy: see smarttrim_mm/testing.py for where the cases come from.

The policies of :data:`EVERYWHERE` run on every backbone; so do all others in the slow tier (``pytest -m slow
tests/contracts``). In the fast one those run on :data:`REFERENCES` with the last of their example configs, and on the first of
these with the others.
"""

from collections.abc import Callable

import pytest

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.models.trimmed_vlm import TrimmedVLM
from smarttrim_mm.policies.base import UnsupportedBackboneError
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, policy_cases, random_inputs

BACKBONES, POLICIES = backbone_cases(), policy_cases()
EVERYWHERE = ("Dense", "Random", "SmartTrim")
REFERENCES = ("METER/text first", "LavisBackbone/blip_vqa text first", "MMPretrainBackbone/BlipVQA text first")
BATCHES = {
    "shared and padded": {"lengths": [9, 4, 2, 7, 9, 3], "image_index": [0, 0, 1, 1, 1, 2]},
    "one image each": {"lengths": [3, 8, 5]},
    "no padding": {"lengths": [6, 6, 6, 6], "image_index": [1, 0, 1, 0]},
    "one pair": {"lengths": [5]},
    "no words": {"lengths": [2, 2], "image_index": [0, 0]},
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    of_pairs = {"backbone", "policy"} <= set(metafunc.fixturenames)
    for name, cases in (("backbone", BACKBONES), ("policy", POLICIES), ("batch", BATCHES)):
        if name in metafunc.fixturenames and not (of_pairs and name in ("backbone", "policy")):
            metafunc.parametrize(name, list(cases.values()), ids=list(cases))
    if of_pairs:
        pairs = [pair(backbone, policy) for backbone in BACKBONES for policy in POLICIES]
        metafunc.parametrize(("backbone", "policy"), pairs)


def pair(backbone: str, policy: str) -> object:
    """A backbone and a policy by their names, as a case."""
    kind = policy.split("/")[0]
    last = [name for name in POLICIES if name.split("/")[0] == kind][-1]
    on = BACKBONES if kind in EVERYWHERE else REFERENCES if policy == last else REFERENCES[:1]
    marks = () if backbone in on else (pytest.mark.slow,)
    return pytest.param(BACKBONES[backbone], POLICIES[policy], id=f"{backbone}-{policy}", marks=marks)


@pytest.fixture
def build() -> Callable[..., TrimmedVLM]:
    """Builds a model in evaluation mode; none of its host's parameters is small or zero."""

    def make(backbone: dict, policy: dict, **others: object) -> TrimmedVLM:
        try:
            model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy, **others}).eval()
        except UnsupportedBackboneError as error:
            pytest.skip(f"refused when it is built: {error}")
        excite(model.backbone)
        return model

    return make


@pytest.fixture
def references() -> tuple[str, ...]:
    """Names of the backbones that every policy runs on in the fast tier."""
    return REFERENCES


@pytest.fixture
def inputs_of() -> Callable[..., VLMInputs]:
    """Random inputs for a model; by default two texts share an image and lengths differ."""

    def make(model: TrimmedVLM, **batch: list[int]) -> VLMInputs:
        return random_inputs(model.backbone.input_format, **(batch or BATCHES["shared and padded"]))

    return make
