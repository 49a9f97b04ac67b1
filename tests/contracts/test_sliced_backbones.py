"""Slicing is no decision: what is sliced off every registered backbone is what a scale of 0 takes out of it."""

import pytest
import torch

from smarttrim_mm.layers.slices import Sites
from smarttrim_mm.models.slicing import Slices, slice_backbone
from smarttrim_mm.pairs import parts_of
from smarttrim_mm.policies.upop import UPop
from smarttrim_mm.testing import count_multiply_adds, random_inputs


def random_plan(sites: Sites) -> dict[str, torch.Tensor]:
    """About half of everything, at least the last of each site."""
    generator = torch.Generator().manual_seed(1)
    plan = {site.name: torch.rand(site.size, generator=generator) < 0.5 for site in sites.all}
    for keep in plan.values():
        keep[-1] = True
    return plan


@pytest.fixture
def searched(build, backbone):
    """A model whose search is over, with its plan."""
    model = build(backbone, {"type": "UPop"})
    policy: UPop = model.policy
    plan = random_plan(policy.sites)
    policy.scales.copy_(torch.cat([keep.float() for keep in plan.values()]))
    policy.found.fill_(True)
    return model, plan


def test_the_sliced_model_is_the_masked_one(searched, inputs_of):
    model, plan = searched
    inputs, parameters = inputs_of(model), sum(p.numel() for p in model.backbone.parameters())
    assert {name: keep.tolist() for name, keep in model.policy.plan().items()} == {n: k.tolist() for n, k in plan.items()}
    with torch.no_grad():
        masked, record = model.trace(inputs, "masked")
        packed, _ = model.trace(inputs, "packed")
        whole = record.dense_multiply_adds()  # now, as it is counted on the views, whose parameters become smaller
        slice_backbone(model.backbone, plan)
        for kind, wanted in (("masked", masked), ("packed", packed)):
            found, after = model.trace(inputs, kind, policy=model.dense)
            for one, other in zip(parts_of(found), parts_of(wanted), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in model.backbone.parameters()) < 0.95 * parameters
    assert (after.dense_multiply_adds() < whole).all()


def test_scales_between_0_and_1_agree_in_both_executions(build, backbone, inputs_of):
    model = build(backbone, {"type": "UPop"})
    model.policy.scales.copy_(torch.rand(len(model.policy.scales)))
    inputs = inputs_of(model)
    with torch.no_grad():
        masked, packed, dense = (
            model.trace(inputs, kind, policy)[0]
            for kind, policy in (("masked", None), ("packed", None), ("packed", model.dense))
        )
    for one, other, whole in zip(parts_of(packed), parts_of(masked), parts_of(dense), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        assert (one - whole).abs().max() > 1e-3  # the scales act, and only under the policy


def test_what_slicing_saves_is_counted(searched, inputs_of):
    model, plan = searched
    inputs = random_inputs(model.backbone.input_format, [5])
    with torch.no_grad():
        before = model.trace(inputs, policy=model.dense)[1].dense_multiply_adds()
        slice_backbone(model.backbone, plan)
        (_, record), counted = count_multiply_adds(lambda: model.trace(inputs, policy=model.dense))
    torch.testing.assert_close(Slices(plan).unsliced_multiply_adds(record, model.layer_steps), before)
    assert record.dense_multiply_adds().sum().item() == pytest.approx(counted, rel=0.01)
