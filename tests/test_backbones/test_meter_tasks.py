"""METER where an answer is about several image-text pairs: two images of a sentence, captions ranked for an image."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.inputs import VLMInputs

TWO = {"num_classes": 2, "head_name": "nlvr2_classifier", "images_per_text": 2}
RANKING = {"num_classes": None, "head_name": "rank_output"}
POLICIES = ["Dense", {"type": "Random", "keep_ratio": 0.7}, {"type": "SmartTrim", "stable_init": False}]


@pytest.fixture
def captions(make_inputs):
    """Two images with three captions each, as three-way samples."""

    def make(model) -> VLMInputs:
        inputs = make_inputs(model, image_index=(0, 0, 0, 1, 1, 1))
        return replace(inputs, targets=torch.tensor([0, 2]), pairs_per_sample=3)

    return make


def test_heads_are_those_of_the_public_checkpoints(make_model):
    two, ranking = make_model(backbone=TWO).backbone, make_model(backbone=RANKING).backbone
    assert two.nlvr2_classifier[0].weight.shape == (128, 256) and two.nlvr2_classifier[3].weight.shape == (2, 128)
    assert len(two.token_type_embeddings.weight) == 3
    assert ranking.rank_output.weight.shape == (1, 128) and len(ranking.token_type_embeddings.weight) == 2


@pytest.mark.parametrize("policy", POLICIES, ids=["dense", "random", "smarttrim"])
def test_two_images_share_their_text(make_model, make_inputs, policy):
    """Encoded once or with each image, the text is the same; its compute counts once."""
    model = make_model(policy, TWO)
    inputs = make_inputs(model)
    assert inputs.text_index is not None
    with torch.no_grad():
        (logits, record), (apart, unshared) = model.trace(inputs), model.trace(inputs.unshared())
        torch.testing.assert_close(logits, apart, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.host_forward(inputs), model.host_forward(inputs.unshared()), atol=1e-5, rtol=0)
    assert logits.shape == (6, 2) == (record.samples, 2)
    first = model.backbone.steps["text"][0].layers["text"]
    width, tokens = first.width, inputs.text_mask.sum(1)
    layer = tokens * 4 * width**2 + 2 * tokens**2 * width + tokens * 2 * width * first.mlp.fc1.out_features
    text = 2 * layer + tokens * model.backbone.cross_modal_text_transform.weight.numel()
    torch.testing.assert_close(unshared.dense_multiply_adds() - record.dense_multiply_adds(), text.float())
    assert (unshared.multiply_adds() > record.multiply_adds()).all()


def test_the_order_of_two_images_matters(make_model, make_inputs):
    model = make_model(backbone=TWO)
    inputs = make_inputs(model).unshared()
    swapped = replace(inputs, images=inputs.images.unflatten(0, (-1, 2)).flip(1).flatten(0, 1))
    with torch.no_grad():
        assert ((model(swapped) - model(inputs)).abs().amax(1) > 1e-4).all()


def test_captions_are_ranked_for_their_image(make_model, captions):
    """A sample's scores are those of its pairs, and training reaches every part."""
    model = make_model(backbone=RANKING)
    inputs = captions(model)
    with torch.no_grad():
        scores, record = model.trace(inputs)
        alone = model(replace(inputs, pairs_per_sample=1))
        torch.testing.assert_close(model.host_forward(inputs), scores, atol=1e-5, rtol=1e-5)
    assert scores.shape == (2, 3) and alone.shape == (6, 1) and len(record.multiply_adds()) == 2
    torch.testing.assert_close(scores.flatten(), alone.flatten())
    cross_entropy(model.train()(inputs), inputs.targets).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.backbone.rank_output.parameters() if p.dim() > 1)


def test_an_image_counts_once_for_its_captions(make_model, captions):
    model = make_model(backbone=RANKING)
    inputs = captions(model)
    with torch.no_grad():
        shared, apart = model.trace(inputs)[1], model.trace(inputs.unshared())[1]
    vision = sum(entry.dense() for entry in shared.steps if entry.step.stage == "image")
    linear = model.backbone.trunk.conv1.weight.numel() * model.backbone.trunk.grid**2
    transform = 17 * model.backbone.cross_modal_image_transform.weight.numel()
    difference = apart.dense_multiply_adds() - shared.dense_multiply_adds()
    torch.testing.assert_close(difference, 2 * (vision + linear + transform))


def test_samples_of_another_size(make_model, make_inputs):
    model, two = make_model(), make_model(backbone=TWO)
    for one, inputs in ((model, make_inputs(two)), (two, make_inputs(model))):
        for forward in (one, one.host_forward):
            with pytest.raises(ValueError, match="image-text pairs, and the model answers about images_per_text="):
                forward(inputs)


def test_impossible_heads():
    with pytest.raises(ValueError, match="images_per_text is 0"):
        METER(num_classes=2, images_per_text=0)
    with pytest.raises(ValueError, match="a ranking head scores single images"):
        METER(num_classes=None, images_per_text=2)
