"""Sliced hosts: smaller Linears under the old names, which the host's own forward runs too."""

import re

import pytest
import torch

from smarttrim_mm.layers.slices import Sites
from smarttrim_mm.models.slicing import Slices, read_plan, slice_backbone
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs

CASES = backbone_cases()


def plan_of(backbone) -> dict[str, torch.Tensor]:
    """Every second head and every third unit stay."""
    steps = [step for stage in backbone.steps.values() for step in stage]
    return {site.name: torch.arange(site.size) % (2 if "mlp" not in site.name else 3) == 0 for site in Sites.of(steps).all}


def test_linears_become_smaller_and_keep_their_names(make_model):
    backbone = make_model().backbone
    names = list(backbone.state_dict())
    slice_backbone(backbone, plan_of(backbone))
    assert list(backbone.state_dict()) == names
    block, layer = backbone.trunk.blocks[0], backbone.cross_modal_text_layers[0]
    assert block.attn.in_proj_weight.shape == (3 * 24, 48) and block.attn.in_proj_bias.shape == (3 * 24,)
    assert (block.attn.out_proj.in_features, block.attn.out_proj.out_features, block.attn.heads) == (24, 48, 2)
    assert block.mlp.c_fc.weight.shape == (64, 48) and block.mlp.c_fc.bias.shape == (64,) and block.mlp.c_fc.out_features == 64
    assert block.mlp.c_proj.weight.shape == (48, 64) and block.mlp.c_proj.bias.shape == (48,)
    cross = layer.crossattention.self
    assert cross.query.weight.shape == cross.value.weight.shape == (32, 64) and cross.key.bias.shape == (32,)
    assert (cross.num_attention_heads, cross.attention_head_size, cross.all_head_size) == (2, 16, 32)
    view = backbone.steps["fusion"][0].layers["text"].attentions[1]
    assert (view.heads, view.head_width, view.name) == (2, 16, "text.cross")


def test_which_rows_are_left(make_model):
    backbone = make_model().backbone
    attn, mlp = backbone.trunk.blocks[0].attn, backbone.trunk.blocks[0].mlp
    before = {name: p.detach().clone() for name, p in backbone.trunk.blocks[0].named_parameters()}
    heads, units = torch.tensor([False, True, False, True]), torch.arange(192) == 7
    slice_backbone(backbone, {"image_0/image_self": heads, "image_0/image_mlp": units})
    rows = [*range(12, 24), *range(36, 48)]
    assert torch.equal(
        attn.in_proj_weight, before["attn.in_proj_weight"][rows + [48 + r for r in rows] + [96 + r for r in rows]]
    )
    assert torch.equal(attn.out_proj.weight, before["attn.out_proj.weight"][:, rows])
    assert torch.equal(mlp.c_fc.weight, before["mlp.c_fc.weight"][7:8]) and torch.equal(
        mlp.c_fc.bias, before["mlp.c_fc.bias"][7:8]
    )
    assert torch.equal(mlp.c_proj.weight, before["mlp.c_proj.weight"][:, 7:8])


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith(("METER", "MMPretrainBackbone"))])
def test_the_hosts_own_forward_runs_what_is_left(case):
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[case], "policy": {"type": "Dense"}}).eval()
    excite(model.backbone)
    slice_backbone(model.backbone, plan_of(model.backbone))
    inputs = random_inputs(model.backbone.input_format, [9, 4, 2])
    with torch.no_grad():
        found, host = model.trace(inputs)[0], model.host_forward(inputs)
    torch.testing.assert_close(found, host, atol=1e-5, rtol=1e-5)


def test_a_host_that_cannot_run_without_heads_says_so():
    case = CASES["LavisBackbone/blip_vqa text first"]
    model = MODELS.build({"type": "TrimmedVLM", "backbone": case, "policy": {"type": "Dense"}}).eval()
    excite(model.backbone)
    plan = plan_of(model.backbone)
    model.slices = Slices(plan)
    slice_backbone(model.backbone, plan)
    inputs = random_inputs(model.backbone.input_format, [9, 4, 2])
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="the model is sliced, and the own forward of its host, in a BlipVQA"):
            model.host_forward(inputs)
        with model.backbone.with_sdpa():
            host = model.host_forward(inputs)
        torch.testing.assert_close(model.trace(inputs)[0], host, atol=1e-5, rtol=1e-5)


def test_a_sliced_backbone_can_be_trained_on(make_model, make_inputs):
    model = make_model(task_loss={"type": "AnswerCrossEntropy"}).train()
    slice_backbone(model.backbone, plan_of(model.backbone))
    model.loss(make_inputs(model))["loss_task"].backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.backbone.trunk.parameters())


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("image_9/image_self", [True], r"the plan slices ['image_9/image_self'], 1 in all that this backbone does not have"),
        ("image_0/image_self", [True] * 3, "torch.bool [3] for image_0/image_self; expected torch.bool [4]"),
        ("image_0/image_self", [1, 0, 0, 0], "torch.int64 [4] for image_0/image_self; expected torch.bool [4]"),
        ("text_1/text_self", [False] * 4, "the plan leaves none of the 4 of text_1/text_self"),
    ],
)
def test_plans_that_do_not_fit(make_model, name, keep, message):
    backbone = make_model().backbone
    shapes = {key: value.shape for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        slice_backbone(backbone, {"text_0/text_self": torch.tensor([True, False, True, True]), name: torch.tensor(keep)})
    assert {key: value.shape for key, value in backbone.state_dict().items()} == shapes


def test_checkpoints_of_sliced_and_whole_models_are_told_apart(make_model, make_inputs, tmp_path):
    whole, backbone = make_model(), make_model().backbone
    plan = plan_of(backbone)
    slice_backbone(backbone, plan)
    weights = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    weights |= {f"slices.{key}": value for key, value in plan.items()}
    path = str(tmp_path / "sliced.pth")
    torch.save({"state_dict": weights}, path)
    assert {key: keep.tolist() for key, keep in read_plan(path).items()} == {key: keep.tolist() for key, keep in plan.items()}
    sliced = make_model({"type": "UPop"}, sliced=path)
    assert type(sliced.policy).__name__ == "Dense"  # there is nothing to search for any more
    sliced.load_state_dict(weights)
    assert isinstance(sliced.slices, Slices)
    assert sliced.state_dict().keys() == weights.keys()
    trimmed = make_model({"type": "SmartTrim", "stable_init": False}, sliced=path)  # another policy fits what is left
    assert trimmed.trace(make_inputs(trimmed))[1].heads()["image.0/image.self"].min() < 1
    with pytest.raises(ValueError, match=re.escape("The checkpoint's model was sliced: name it in model.sliced too")):
        whole.load_state_dict(weights)
    with pytest.raises(ValueError, match=re.escape("The model is sliced, by model.sliced, and the checkpoint's is not")):
        sliced.load_state_dict(whole.state_dict())
    torch.save({"state_dict": whole.state_dict()}, path)
    with pytest.raises(ValueError, match=r"sliced is .*sliced\.pth, which is no checkpoint of a sliced model"):
        make_model(sliced=path)
