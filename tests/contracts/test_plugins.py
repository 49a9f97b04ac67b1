"""What every registered backbone and policy offers, so that the other contracts can run on it."""

import copy

import pytest
import torch

from smarttrim_mm.layers import path_choice
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.registry import MODELS, POLICIES
from smarttrim_mm.structures import PackedLayout
from smarttrim_mm.testing import backbone_cases, policy_cases


def test_every_plugin_has_cases():
    assert {name.split("/")[0] for name in policy_cases()} == set(POLICIES.module_dict) >= {"Dense", "Random", "SmartTrim"}
    assert {name.split("/")[0] for name in backbone_cases()} >= {"METER"}
    for name, cls in POLICIES.module_dict.items():
        assert issubclass(cls, Policy)
        assert {} in cls.example_configs().values(), f"{name} must work without arguments"


def test_a_backbone_without_small_configs_is_reported():
    class Incomplete(torch.nn.Module):
        steps = host_forward = None

    MODELS.register_module("Incomplete", module=Incomplete)
    try:
        with pytest.raises(ValueError, match="Incomplete is a backbone without small_configs"):
            backbone_cases()
    finally:
        del MODELS.module_dict["Incomplete"]


def test_every_policy_runs_on_the_references(references):
    """METER, and BLIP's VQA by either library, refuse no policy that works on questions about images."""
    for policy in policy_cases().values():
        for name in references:
            MODELS.build({"type": "TrimmedVLM", "backbone": backbone_cases()[name], "policy": policy})


def test_a_copy_is_independent(build, inputs_of, backbone, policy):
    """Views of layers belong to the copy, not to what it was copied from."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad():
        logits = model(inputs)
        twin = copy.deepcopy(model)
        for parameter in model.backbone.parameters():
            parameter.zero_()
        torch.testing.assert_close(twin(inputs), logits)


def test_parameters_may_be_replaced(build, inputs_of, backbone, policy):
    """As happens when a model leaves the meta device, or loads a checkpoint by assignment."""
    model = build(backbone, policy)
    inputs = inputs_of(model)
    with torch.no_grad():
        logits = model(inputs)
        with torch.device("meta"):
            twin = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy}).eval()
        missing = [name for name, _ in twin.named_buffers() if name not in model.state_dict()]
        twin.to_empty(device="cpu")
        for name in missing:  # tables of positions, which no checkpoint holds
            twin.get_buffer(name).copy_(model.get_buffer(name))
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(twin(inputs), logits)
        empty = {name: torch.zeros_like(value) for name, value in model.backbone.state_dict().items()}
        model.backbone.load_state_dict(empty, assign=True)
        assert len(model(inputs).unique()) == 1  # the same for every input and answer


def test_weights_are_saved_under_the_hosts_names(build, inputs_of, backbone, policy):
    model = build(backbone, policy)
    keys = set(model.state_dict())
    assert {key.removeprefix("backbone.") for key in keys if key.startswith("backbone.")} == set(model.backbone.state_dict())
    assert all(key.startswith(("backbone.", "policy.", "data_preprocessor.")) for key in keys)


def test_a_saved_model_answers_the_same(build, inputs_of, backbone, policy):
    model, other = build(backbone, policy), build(backbone, policy)
    for parameter in [*other.parameters(), *model.policy.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)
    if model.policy.knob is not None:
        model.policy.set_knob(sum((model.policy.knob.low, model.policy.knob.high)) / 2)
    inputs = inputs_of(model)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(inputs), model(inputs))


def test_predictions_go_to_their_images(build, inputs_of, backbone, policy):
    from mmpretrain.structures import DataSample

    model = build(backbone, policy)
    model.packed_from = 1
    inputs = inputs_of(model)
    asks = "vocab_size" in model.backbone.input_format  # else a sample is an image, of which one thing is told
    samples = [DataSample(questions=["?"] * count) for count in (2, 3, 1)] if asks else [DataSample() for _ in range(6)]
    with torch.no_grad():
        logits, record = model.trace(inputs)
        results = model(inputs, samples, mode="predict")
    scores = [sample.pred_scores if asks else sample.pred_score[None] for sample in results]
    torch.testing.assert_close(torch.cat(scores), logits.softmax(-1))
    trim = {key: torch.cat([sample.trim[key] for sample in results]) for key in results[0].trim}
    torch.testing.assert_close(trim["multiply_adds"], record.multiply_adds())
    torch.testing.assert_close(trim["dense_multiply_adds"], record.dense_multiply_adds())
    assert trim["executed_multiply_adds"].mean() == pytest.approx(record.executed_multiply_adds())
    assert {key for key in trim if key.startswith("kept/")} == {f"kept/{key}" for key in record.kept()}
    assert {key for key in trim if key.startswith("heads/")} == {f"heads/{key}" for key in record.heads()}
    assert all(len(sample.trim["multiply_adds"]) == len(own) for sample, own in zip(results, scores, strict=True))
    assert [len(own) for own in scores] == ([2, 3, 1] if asks else [1] * 6)
    assert trim["packed"].all()


def test_small_batches_run_in_dense_shapes(build, inputs_of, backbone, policy):
    """Below ``packed_from`` the same is decided and answered by the other path, and the predictions say so."""
    from mmpretrain.structures import DataSample

    model = build(backbone, policy)
    inputs = inputs_of(model)
    pairs, found = len(inputs.sample_ids), []
    for least in (pairs, pairs + 1):
        model.packed_from = least
        samples = [DataSample(questions=["?"]) for _ in range(pairs // inputs.pairs_per_sample)]
        with torch.no_grad():
            found.append(model(inputs, samples, mode="predict"))
    for packed, dense in zip(*found, strict=True):
        assert packed.trim["packed"].item() == 1 and dense.trim["packed"].item() == 0
        torch.testing.assert_close(packed.trim["multiply_adds"], dense.trim["multiply_adds"])
        key = "pred_scores" if "pred_scores" in packed else "pred_score"
        torch.testing.assert_close(packed.get(key), dense.get(key), atol=1e-4, rtol=0)


@pytest.mark.parametrize("price", [1, 2**40])
def test_the_path_that_is_found_does_not_change_answers(build, inputs_of, backbone, policy, monkeypatch, price):
    """Packing pays with the first token that is dropped, or never; predictions say which it was."""
    from mmpretrain.structures import DataSample

    monkeypatch.setattr(path_choice, "_PER_LAYER", price)
    monkeypatch.setattr(path_choice, "_PER_CALL", 0)
    monkeypatch.setattr(path_choice, "_SURE", float("inf"))
    model = build(backbone, policy)
    assert model.packed_from == "auto"
    inputs = inputs_of(model)
    samples = [DataSample(questions=["?"]) for _ in range(len(inputs.sample_ids) // inputs.pairs_per_sample)]
    with torch.no_grad():
        expected, whole = model.trace(inputs, "packed")
        found, record = model.trace(inputs, None)
        results = model(inputs, samples, mode="predict")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(record.multiply_adds(), whole.multiply_adds())
    packed = any(isinstance(layout, PackedLayout) for entry in record.steps for layout in entry.tokens.values())
    assert packed is record.packed and (price == 1 or not packed)
    assert all(sample.trim["packed"].item() == packed for sample in results)
