"""Imposed decisions reach their speed-up, on models of every family; rounds and answers are random and new."""

import pytest
import torch

from smarttrim_mm.engine.imposing import impose, random_answers, random_rounds
from smarttrim_mm.registry import MODELS, POLICIES
from smarttrim_mm.testing import backbone_cases, excite

CASES = backbone_cases()
NAMES = [
    "METER/shared images",
    "METER/text first",
    "METER/two images",
    "LavisBackbone/albef_nlvr shared images",
    "LavisBackbone/blip_nlvr shared images",
    "LavisBackbone/blip_vqa text first",
    "LavisBackbone/blip_retrieval shared images",
    "LavisBackbone/blip_caption shared images",
    "LavisBackbone/blip2_image_text_matching text first",
]
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}


def build(name, policy=SMARTTRIM):
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[name], "policy": policy}).eval()
    excite(model)
    return model


def rounds_of(model, count=5, batch_size=4, seed=0):
    shape = model.backbone.input_format
    return list(random_rounds(shape, text_length=10, batch_size=batch_size, rounds=count, seed=seed))


@torch.inference_mode()
def reached(model, batches, policy):
    records = [model.trace(inputs, policy=policy)[1] for inputs in batches]
    dense, decided = (
        torch.cat([getattr(record, name)() for record in records]).double().sum().item()
        for name in ("dense_multiply_adds", "multiply_adds")
    )
    return dense / decided


@pytest.mark.parametrize("name", NAMES)
def test_the_speedup_is_reached(name):
    model = build(name)
    batches = rounds_of(model)
    found = impose(model, batches[0], [1.15, 1.3], rounds=range(1, 5))
    assert {s: reached(model, batches[1:], policy) for s, policy in found.items()} == pytest.approx(
        {1.15: 1.15, 1.3: 1.3}, rel=0.02
    )


def test_what_is_kept_is_new_every_round_and_seeded():
    model = build("METER/shared images")
    batches = rounds_of(model, batch_size=1)
    (policy,), (again,), (other,) = (impose(model, batches[0], [1.6], seed=seed).values() for seed in (0, 0, 1))
    shares = [policy.shares.of(inputs.sample_ids).item() for inputs in batches]
    assert len(set(shares)) == 5
    assert shares == [again.shares.of(inputs.sample_ids).item() for inputs in batches]
    assert shares != [other.shares.of(inputs.sample_ids).item() for inputs in batches]


def test_what_is_out_of_reach_says_what_is_not():
    model = build("METER/shared images")
    inputs = rounds_of(model, 1)[0]
    with pytest.raises(ValueError, match=r"speedup is 50, but SmartTrim reaches at most (\d+\.\d+)") as error:
        impose(model, inputs, [1.2, 50])
    most = float(str(error.value).split("at most ")[1].split()[0])
    (policy,) = impose(model, inputs, [most - 0.01]).values()
    assert reached(model, [inputs], policy) == pytest.approx(most, rel=0.02)
    with pytest.raises(ValueError, match=r"Dense reaches at most 1\.00"):
        impose(build("METER/shared images", {"type": "Dense"}), inputs, [2])


@pytest.mark.parametrize("name", ["METER/two images", "LavisBackbone/blip_vqa text first"])
def test_rounds_are_new_and_seeded(name):
    model = build(name)
    each = model.backbone.input_format["images_per_text"]
    first, again, other = rounds_of(model), rounds_of(model), rounds_of(model, seed=1)
    assert [inputs.sample_ids.tolist() for inputs in first[:2]] == [
        list(range(4 * each)),
        list(range(4 * each, 8 * each)),
    ]
    for inputs in first:
        assert torch.equal(inputs.image_ids, inputs.sample_ids)
        assert inputs.text_mask.all() and inputs.input_ids.shape == (4, 10)
        assert inputs.text_ids is None or torch.equal(inputs.text_ids, inputs.sample_ids[::each])
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a.images, b.images) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0].images, first[1].images)


def test_texts_of_unequal_lengths_are_padded_and_hardly_move_the_speedup():
    model = build("METER/shared images")
    shape = model.backbone.input_format
    batches = list(random_rounds(shape, text_length=(4, 12), batch_size=4, rounds=9))
    lengths = torch.cat([inputs.text_mask.sum(1) for inputs in batches])
    assert lengths.min() == 4 and lengths.max() == 12
    assert all(inputs.input_ids.shape[1] == inputs.text_mask.sum(1).max() for inputs in batches)
    mean = next(random_rounds(shape, text_length=8, batch_size=4, rounds=1))
    (policy,) = impose(model, mean, [1.3], rounds=range(1, 9)).values()
    assert reached(model, batches[1:], policy) == pytest.approx(1.3, rel=0.04)


def test_another_policy_than_the_models_is_imposed_on():
    model = build("METER/shared images")
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    other = POLICIES.build({"type": "Random"}, default_args={"steps": steps})
    inputs = rounds_of(model, 1)[0]
    (policy,) = impose(model, inputs, [1.2], policy=other).values()
    assert policy.policy is other
    assert reached(model, [inputs], policy) == pytest.approx(1.2, rel=0.02)
    with pytest.raises(ValueError, match="but Random reaches at most"):
        impose(model, inputs, [50], policy=other)


def test_answers_are_different_and_of_three_to_five_tokens():
    small = {"answers": [], "text": {"vocab_size": 120}}
    answers = random_answers(90, small)
    assert len(answers) == len({tuple(answer) for answer in answers}) == 90
    assert {len(answer) for answer in answers} == {3, 4, 5}
    assert all(answer[0] == 101 and answer[-1] == 102 for answer in answers)
    assert all(0 < word < 118 and word not in (101, 102) for answer in answers for word in answer[1:-1])
    assert answers == random_answers(90, small) != random_answers(90, small, seed=1)
    with pytest.raises(ValueError, match="--answers is 200; expected at most 115"):
        random_answers(200, small)
    with pytest.raises(ValueError, match="ranks no answers"):
        random_answers(5, {"arch": "blip_nlvr"})


def test_what_is_decided_within_layers_is_not_imposed():
    model = build("METER/shared images", {"type": "ToMe", "merge_ratio": 0.2})
    with pytest.raises(ValueError, match=r"policy ToMe decides within image\.0, .*calibrate\.py"):
        impose(model, rounds_of(model)[0], [2.0])
