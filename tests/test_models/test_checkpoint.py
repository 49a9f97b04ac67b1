import copy
import re

import pytest
import torch

from smarttrim_mm.models.checkpoint import check_state_dict, load_backbone


def weights_of(model):
    return copy.deepcopy(model.state_dict())


def assert_untouched(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_architecture_is_listed_and_not_loaded(make_model):
    model = make_model()
    before, theirs = weights_of(model), weights_of(make_model())
    theirs["backbone.token_type_embeddings.weight"] = torch.zeros(3, 64)
    theirs["backbone.pooler.weight"] = theirs.pop("backbone.vqa_classifier.3.weight")
    with pytest.raises(ValueError, match="of another architecture than the config's model; nothing was loaded") as error:
        model.load_state_dict(theirs, strict=False)
    message = str(error.value)
    assert "1 missing: backbone.vqa_classifier.3.weight" in message
    assert "1 unexpected: backbone.pooler.weight" in message
    assert "1 of another shape: backbone.token_type_embeddings.weight (3, 64), the model's (2, 64)" in message
    assert message.endswith("Use the config that the checkpoint was trained with, or convert the checkpoint first.")
    assert_untouched(model, before)


@pytest.mark.parametrize("alone", [False, True])
def test_another_task_is_told_by_the_heads(make_model, alone):
    """Of the whole model, and of a backbone alone, as for a frozen teacher."""
    model, other = make_model(), make_model(backbone={"num_classes": 9, "head_name": "snli_classifier"})
    before, theirs = weights_of(model), weights_of(other)
    theirs["backbone.token_type_embeddings.weight"] = torch.zeros(3, 64)
    with pytest.raises(ValueError, match="of another task than the config's model; nothing was loaded") as error:
        if alone:
            check_state_dict(model.backbone, theirs, "backbone.")
        else:
            model.load_state_dict(theirs, strict=False)
    message = str(error.value).replace("backbone.vqa", "vqa").replace("backbone.snli", "snli").replace("backbone.tok", "tok")
    assert "\n  its head is 'snli_classifier', the model's 'vqa_classifier'\n" in message
    assert "6 missing: vqa_classifier.0.bias" in message and "6 unexpected: snli_classifier.0.bias" in message
    assert "1 of another shape: token_type_embeddings.weight (3, 64), the model's (2, 64)" in message
    assert "Use a config of the checkpoint's task, or a checkpoint of the config's." in message
    assert_untouched(model, before)


def test_another_host_is_not_taken_for_another_task(make_model):
    theirs = {name.replace("backbone.", "backbone.host."): value for name, value in weights_of(make_model()).items()}
    with pytest.raises(ValueError, match="of another architecture"):
        make_model().load_state_dict(theirs, strict=False)


def test_long_lists_are_cut(make_model):
    model = make_model()
    number = len(model.state_dict())
    with pytest.raises(ValueError, match=f"{number} missing: .* and {number - 8} more"):
        check_state_dict(model, {})


@pytest.mark.parametrize("strict", [True, False])
def test_one_wrong_shape_spoils_all(make_model, strict):
    model = make_model()
    before = weights_of(model)
    theirs = {name: value + 1 if value.is_floating_point() else value for name, value in before.items()}
    theirs["backbone.vqa_classifier.3.weight"] = torch.zeros(9, 128)
    with pytest.raises(ValueError, match=re.escape("backbone.vqa_classifier.3.weight (9, 128), the model's (7, 128)")):
        model.load_state_dict(theirs, strict=strict)
    assert_untouched(model, before)


def test_fine_tuning_starts_from_a_dense_checkpoint(make_model):
    dense, trimmed = make_model("Dense"), make_model("SmartTrim")
    weights = {name: value * 2 for name, value in weights_of(dense).items()}
    policy = copy.deepcopy(trimmed.policy.state_dict())
    trimmed.load_state_dict(weights, strict=False)
    assert all(torch.equal(trimmed.state_dict()[name], value) for name, value in weights.items())
    assert all(torch.equal(value, policy[name]) for name, value in trimmed.policy.state_dict().items())


def test_a_trimmed_checkpoint_can_be_tested_dense(make_model):
    dense, trimmed = make_model("Dense"), make_model("SmartTrim")
    dense.load_state_dict(weights_of(trimmed), strict=False)
    assert torch.equal(dense.backbone.head[0].weight, trimmed.backbone.head[0].weight)


def test_another_policy_is_another_architecture(make_model):
    one, other = make_model("SmartTrim"), make_model({"type": "SmartTrim", "token_layers": {"text": []}})
    with pytest.raises(ValueError, match=r"unexpected: policy\.token_trimmers\.text_0/text"):
        other.load_state_dict(weights_of(one), strict=False)


def test_the_prefix_of_a_wrapper(make_model):
    wrapper = torch.nn.ModuleDict({"module": make_model()})
    state = copy.deepcopy(wrapper.state_dict())
    wrapper.load_state_dict(state)
    state["module.backbone.vqa_classifier.3.weight"] = torch.zeros(9, 128)
    with pytest.raises(ValueError, match=r"1 of another shape: backbone\.vqa_classifier\.3\.weight"):
        wrapper.load_state_dict(state)


def test_load_backbone(make_model, tmp_path):
    source, target = make_model("SmartTrim"), make_model("Dense").backbone
    torch.nn.init.normal_(source.backbone.head[0].weight)
    torch.save({"state_dict": source.state_dict()}, tmp_path / "good.pth")
    load_backbone(target, str(tmp_path / "good.pth"))
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.backbone.state_dict().items())
    before = copy.deepcopy(target.state_dict())
    torch.save({"state_dict": {"backbone.head": torch.ones(1), "policy.x": torch.ones(1)}}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="1 unexpected: head"):
        load_backbone(target, str(tmp_path / "bad.pth"))
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in before.items())
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_backbone(target, str(tmp_path / "none.pth"))
