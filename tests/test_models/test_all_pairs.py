"""Scores of all pairs from one encoding of each text and image are those of every pair on its own."""

from dataclasses import replace

import pytest
import torch

from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.layers.token_wise import TokenWise
from smarttrim_mm.models.all_pairs import PairScorer
from smarttrim_mm.testing import count_multiply_adds

RANKING = {"num_classes": None, "head_name": "rank_output"}
POLICIES = {
    "dense": "Dense",
    "random": {"type": "Random", "keep_ratio": 0.7},
    "smarttrim": {"type": "SmartTrim", "stable_init": False},
}


def texts_of(model, inputs) -> list[VLMInputs]:
    """The texts of a batch, in batches of four."""
    texts = [ids[mask].tolist() for ids, mask in zip(inputs.input_ids, inputs.text_mask, strict=True)]
    begins = range(0, len(texts), 4)
    return [model.data_preprocessor.texts(texts[i : i + 4], inputs.sample_ids[i : i + 4]) for i in begins]


@pytest.fixture
def make_ranking(make_model):
    return lambda policy: make_model(policy, RANKING, data_preprocessor={"type": "VisionLanguagePreprocessor"})


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@torch.no_grad()
def test_scores_are_those_of_each_pair_alone(make_ranking, make_inputs, policy):
    model = make_ranking(policy)
    inputs = make_inputs(model)  # 3 images, 6 texts
    scores, trim = PairScorer(model, texts_of(model, inputs), pairs_per_batch=4).score(inputs, images=3)
    assert scores.shape == (3, 6) and scores.std() > 0.1
    for i in range(3):
        for m in range(6):
            alone = replace(
                inputs,
                images=inputs.images[i : i + 1],
                image_index=None,
                image_ids=inputs.image_ids[i : i + 1],
                input_ids=inputs.input_ids[m : m + 1],
                text_mask=inputs.text_mask[m : m + 1],
                special_mask=inputs.special_mask[m : m + 1],
                sample_ids=inputs.sample_ids[m : m + 1],
            )
            torch.testing.assert_close(scores[i, m], model(alone)[0, 0], atol=1e-4, rtol=1e-4)
    together, record = model.trace(inputs.all_pairs())
    torch.testing.assert_close(scores, together, atol=1e-4, rtol=1e-4)
    for name, ratios in record.summary().items():
        if "/" in name and not name.startswith("kept/text"):  # of the texts, each image's sample has the same six
            torch.testing.assert_close(trim[name].float(), ratios, msg=name)


@torch.no_grad()
def test_each_encoding_is_counted_once(make_ranking, make_inputs):
    """An image bears its own encoding, all fusions, and its share of the texts."""
    model = make_ranking(POLICIES["smarttrim"])
    inputs = make_inputs(model)
    scorer = PairScorer(model, texts_of(model, inputs), pairs_per_batch=4)
    once, thrice = scorer.score(inputs, images=1)[1], scorer.score(inputs, images=3)[1]
    record = model.trace(inputs.all_pairs())[1]
    for name in ("multiply_adds", "dense_multiply_adds"):
        torch.testing.assert_close(once[name].float(), record.summary()[name])  # a sample has all texts, once
        assert (thrice[name] < once[name]).all()
    apart = model.trace(inputs.all_pairs().unshared())[1].dense_multiply_adds()
    assert (apart > 1.5 * once["dense_multiply_adds"]).all()


@torch.no_grad()
def test_what_runs_is_what_is_counted(make_ranking, make_inputs):
    """Of the dense model, by an independent count of what torch dispatches."""
    model = make_ranking("Dense")
    inputs = make_inputs(model, lengths=(6,) * 6)  # attention pads texts of unequal length

    def rank():
        scorer = PairScorer(model, texts_of(model, inputs), pairs_per_batch=4)
        return scorer.score(inputs, images=3)[1]

    trim, counted = count_multiply_adds(rank)
    for name in ("multiply_adds", "dense_multiply_adds", "executed_multiply_adds"):
        assert trim[name].sum().item() == pytest.approx(counted, rel=0.01)


@torch.no_grad()
def test_progress_counts_texts_and_pairs(make_ranking, make_inputs):
    model = make_ranking("Dense")
    inputs = make_inputs(model)
    texts, pairs = [], []
    scorer = PairScorer(model, texts_of(model, inputs), pairs_per_batch=4, on_batch=texts.append)
    scorer.score(inputs, on_batch=pairs.append)
    assert texts == [4, 2] and pairs == [4, 4, 4, 4, 2]


def test_what_cannot_rank(make_model, make_ranking, make_inputs):
    answering = make_model()
    with pytest.raises(TypeError, match="a METER, has no ranking head"):
        PairScorer(answering, [])
    model = make_ranking("Dense")
    with pytest.raises(ValueError, match="texts is empty"):
        PairScorer(model, [])
    with pytest.raises(ValueError, match="pairs_per_batch=0"):
        PairScorer(model, texts_of(model, make_inputs(model)), pairs_per_batch=0)
    inputs = make_inputs(model)
    with pytest.raises(ValueError, match=r"scores \[6, 1\], from which nothing can be chosen.*AllPairsValLoop"):
        model.predict(inputs, [])
    with pytest.raises(ValueError, match="rank_texts=True"):
        model.loss(replace(inputs, targets=torch.zeros(6, dtype=torch.long)))


def test_guidance_by_the_text_excludes_ranking(make_model):
    with pytest.raises(ValueError, match="text_first=True with num_classes=None"):
        make_model(backbone={**RANKING, "text_first": True})


@torch.inference_mode()
def test_every_layer_runs_as_the_model_says(make_ranking, make_inputs):
    """Two batches of texts, one of images, and five of the 18 pairs."""
    calls = []

    class Counted(TokenWise):
        def mlp_sublayer(self, *args):
            calls.append(args)
            return super().mlp_sublayer(*args)

    model = make_ranking("Dense")
    model.token_wise = Counted()
    inputs = make_inputs(model)
    PairScorer(model, texts_of(model, inputs), pairs_per_batch=4).score(inputs, images=3)
    layers = {stage: sum(len(step.layers) for step in steps) for stage, steps in model.backbone.steps.items()}
    assert len(calls) == 2 * layers["text"] + layers["image"] + 5 * layers["fusion"]
