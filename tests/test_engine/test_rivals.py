"""Rival executions: the same decisions give the same outputs; fixed counts are as planned, counted, and meet their target."""

import pytest
import torch

from smarttrim_mm.engine.fixed_count import FixedCount
from smarttrim_mm.engine.imposing import impose, random_rounds
from smarttrim_mm.engine.rivals import (
    FIXED_COUNT,
    MASK_ONLY,
    MERGING,
    PAD_TO_LONGEST,
    OutOfReach,
    fixed_count_at,
    merging_at,
    pad_to_longest,
    rival_contenders,
    run_fixed_count,
    run_merging,
)
from smarttrim_mm.engine.token_merging import TokenMerging
from smarttrim_mm.layers.token_wise import TokenWise
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, count_multiply_adds, excite, random_inputs

CASES = backbone_cases()
NAMES = [
    "METER/shared images",
    "METER/text first",
    "METER/two images",
    "LavisBackbone/blip_vqa text first",
    "LavisBackbone/blip_nlvr shared images",
    "LavisBackbone/blip_caption shared images",
    "LavisBackbone/blip2_image_text_matching text first",
    "MMPretrainBackbone/BlipVQA text first",
    "MMPretrainBackbone/ImageClassifier averaged",
]
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


def build(name, policy=SMARTTRIM):
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[name], "policy": policy}).eval()
    excite(model)
    return model


def batch(model, seed=0):
    """Pairs of an image and a text each; texts of several lengths."""
    shape = model.backbone.input_format
    inputs = random_inputs(shape, [9, 12, 7, 10], seed=seed)
    return inputs.unshared()


def image_counts(record):
    """Kept tokens of each image behind the decisions of each layer of the image encoder."""
    return [entry.tokens["image"].counts().tolist() for entry in record.steps if entry.step.stage == "image"]


def close(found, expected):
    assert torch.equal(found.isneginf(), expected.isneginf())  # an answer that is no candidate has minus infinity
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_the_same_decisions_give_the_same_outputs(name):
    model = build(name)
    inputs = batch(model)
    (imposed,) = impose(model, inputs, [1.25]).values()
    rivals = rival_contenders(model, imposed, inputs, 1.25, on_skip=lambda *_: None)
    expected, packed = model.trace(inputs, policy=imposed)
    (logits, record), counted = count_multiply_adds(lambda: rivals[PAD_TO_LONGEST](inputs))
    close(logits, expected)
    torch.testing.assert_close(record.multiply_adds(), packed.multiply_adds())
    torch.testing.assert_close(record.dense_multiply_adds(), packed.dense_multiply_adds())
    masked_logits, masked = rivals[MASK_ONLY](inputs)
    close(masked_logits, expected)
    assert record.executed_multiply_adds() == pytest.approx(counted / record.samples, rel=0.01)
    assert packed.multiply_adds().mean() < record.executed_multiply_adds() < masked.executed_multiply_adds()


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_decisions_of_a_live_policy_do_not_depend_on_the_layout(name):
    model = build(name)
    inputs = batch(model)
    expected, packed = model.trace(inputs)
    logits, record = pad_to_longest(model, model.policy, inputs)
    close(logits, expected)
    assert [entry.tokens["image"].kept_grid().tolist() for entry in record.steps if "image" in entry.tokens] == [
        entry.tokens["image"].kept_grid().tolist() for entry in packed.steps if "image" in entry.tokens
    ]


@torch.inference_mode()
def test_padding_is_no_wider_than_the_longest():
    model = build("METER/shared images")
    _, record = pad_to_longest(model, model.policy, batch(model))
    for entry in record.steps:
        for layout in entry.tokens.values():
            assert layout.held()[0] == layout.counts().max() or layout.counts().min() == layout.counts().max()


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_fixed_counts_reach_the_planned_compute(name):
    model = build(name, {"type": "Dense"})
    inputs = batch(model)
    dense = model.trace(inputs)[1]
    fixed, merging = fixed_count_at(model, dense, 1.1), merging_at(model, dense, 1.1)
    for run, policy in ((run_fixed_count, fixed), (run_merging, merging)):
        (_, record), counted = count_multiply_adds(lambda: run(model, policy, inputs))  # noqa: B023
        planned = sum(float((entry.own + entry.policy).sum()) for entry in dense.plan(policy, getattr(policy, "ratio", policy)))
        decided = float(record.multiply_adds().sum())
        assert decided == pytest.approx(planned, rel=1e-5)
        assert float(dense.dense_multiply_adds().sum()) / decided >= 1.1
        torch.testing.assert_close(record.dense_multiply_adds(), dense.dense_multiply_adds())
        assert record.executed_multiply_adds() == pytest.approx(counted / record.samples, rel=0.01)
        assert all(len(set(counts)) == 1 for counts in image_counts(record))


@torch.inference_mode()
@pytest.mark.parametrize("speedup", [1.2, 1.5])
def test_the_target_is_met_within_a_percent(speedup):
    case = {**CASES["METER/shared images"], "vision": {**CASES["METER/shared images"]["vision"], "image_size": 128}}
    model = MODELS.build({"type": "TrimmedVLM", "backbone": case, "policy": SMARTTRIM}).eval()
    rounds = list(random_rounds(model.backbone.input_format, text_length=10, batch_size=3, rounds=2))
    (imposed,) = impose(model, rounds[0], [speedup]).values()
    rivals = rival_contenders(model, imposed, rounds[0], speedup)
    for name in (FIXED_COUNT, MERGING):
        record = rivals[name](rounds[1])[1]
        assert float(record.dense_multiply_adds().sum() / record.multiply_adds().sum()) == pytest.approx(speedup, rel=0.01)
        assert record.executed_multiply_adds() == pytest.approx(float(record.multiply_adds().mean()), rel=1e-5)


@torch.inference_mode()
def test_counts_of_each_layer():
    model = build("METER/shared images")  # 17 tokens, 3 layers
    inputs, steps = batch(model), model.backbone.steps["image"]
    fixed = FixedCount.of(steps).at(0.5)
    assert image_counts(run_fixed_count(model, fixed, inputs)[1]) == [[9] * 4, [5] * 4, [3] * 4]
    merging = TokenMerging(steps=steps, tokens=17, per_layer=2.5)
    assert image_counts(run_merging(model, merging, inputs)[1]) == [[15] * 4, [12] * 4, [10] * 4]
    with_twelve = [steps[i * 3 // 12] for i in range(12)]
    assert list(FixedCount.of(with_twelve).ratio.powers.values()) == [1, 2, 3]


@torch.inference_mode()
@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_gives_the_dense_outputs(name):
    model = build(name, {"type": "Dense"})
    inputs, steps = batch(model), model.backbone.steps["image"]
    expected, dense = model.trace(inputs)
    logits, record = run_merging(model, TokenMerging(steps=steps, tokens=17, per_layer=0), inputs)
    close(logits, expected)
    torch.testing.assert_close(record.multiply_adds(), dense.multiply_adds())
    logits, record = run_fixed_count(model, FixedCount.of(steps), inputs)
    close(logits, expected)
    assert (record.multiply_adds() > dense.multiply_adds()).all()  # the predictors


@torch.inference_mode()
def test_the_best_tokens_stay_in_their_order():
    model = build("METER/shared images")
    inputs, steps = batch(model), model.backbone.steps["image"]
    fixed = FixedCount.of(steps).at(0.5)
    record = run_fixed_count(model, fixed, inputs)[1]
    x = model.backbone.trunk.embed(inputs.images)
    scores = fixed.predictor(steps[0])(x)
    scores[:, 0] = torch.inf
    (layout,) = record.steps[[entry.step.name for entry in record.steps].index("image.0")].tokens.values()
    assert torch.equal(layout.source, scores.topk(9, dim=1).indices.sort(dim=1).values)
    assert len({tuple(row) for row in layout.source.tolist()}) > 1


@torch.inference_mode()
@pytest.mark.parametrize("name", ["METER/shared images", "LavisBackbone/blip_vqa text first"])
def test_an_instance_does_not_depend_on_the_others(name):
    model = build(name)
    inputs, steps = batch(model), model.backbone.steps["image"]
    (imposed,) = impose(model, inputs, [1.15]).values()
    fixed, merging = FixedCount.of(steps).at(0.6), TokenMerging(steps=steps, tokens=17, per_layer=2)
    for run, policy in ((pad_to_longest, imposed), (run_fixed_count, fixed), (run_merging, merging)):
        together = run(model, policy, inputs)[0]
        close(run(model, policy, inputs.select(torch.tensor([2])))[0], together[2:3])


@torch.inference_mode()
def test_predictors_leave_the_random_state_alone():
    model = build("METER/shared images")
    before = torch.get_rng_state()
    one, other = (FixedCount.of(model.backbone.steps["image"], seed=seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [next(fixed.predictors.parameters()) for fixed in (one, other)]
    assert not torch.equal(*(list(fixed.predictors.parameters())[2] for fixed in (one, other)))
    assert all(not weight.requires_grad for weight in weights)


@torch.inference_mode()
def test_what_is_compiled_of_the_model_is_compiled_of_its_rivals():
    class Counted(TokenWise):
        def mlp_sublayer(self, *arguments):
            calls.append(1)
            return super().mlp_sublayer(*arguments)

    model, calls = build("METER/shared images"), []
    model.token_wise = Counted()
    inputs, layers = batch(model), sum(len(step.layers) for stage in model.backbone.steps.values() for step in stage)
    (imposed,) = impose(model, inputs, [1.15]).values()
    found = {}
    rivals = rival_contenders(model, imposed, inputs, 1.15)
    for name, run in rivals.items():
        calls.clear()
        run(inputs)
        found[name] = len(calls)
    merging = layers - len(model.backbone.steps["image"])  # the layers that merge are another code
    assert found == {MASK_ONLY: layers, PAD_TO_LONGEST: layers, FIXED_COUNT: layers, MERGING: merging}


def test_what_is_out_of_reach_is_told():
    model = build("METER/shared images")
    inputs = batch(model)
    (imposed,) = impose(model, inputs, [1.3]).values()
    told = {}
    rivals = rival_contenders(model, imposed, inputs, 5.0, on_skip=lambda name, reason: told.update({name: str(reason)}))
    assert list(rivals) == [MASK_ONLY, PAD_TO_LONGEST]
    assert set(told) == {FIXED_COUNT, MERGING}
    assert "speedup is 5, but the image encoder's tokens alone bring at most 2.06 here" in told[MERGING]
    with pytest.raises(OutOfReach, match=r"DynamicViT-style: speedup is 5, but .* at most 2\.97 here"):
        rival_contenders(model, imposed, inputs, 5.0)


def test_models_without_a_fitting_image_encoder_are_told():
    model = build("METER/shared images", {"type": "Dense"})
    with torch.inference_mode():
        record = model.trace(batch(model))[1]
    model.backbone.train()
    with pytest.raises(OutOfReach, match=r"ToMe-style: image\.0 is in training mode"):
        merging_at(model, record, 1.1)
    model.backbone.steps.pop("image")
    with pytest.raises(OutOfReach, match=r"stages are \['fusion', 'text'\]; expected 'image'"):
        fixed_count_at(model, record, 1.1)


def test_impossible_ratios():
    model = build("METER/shared images", {"type": "Dense"})
    with pytest.raises(ValueError, match=r"rho is 1\.5; expected a share in \[0, 1\]"):
        FixedCount.of(model.backbone.steps["image"]).at(1.5)
