"""BLIP-2's Q-Former in LAVIS's registry: LAVIS's own methods, trimmed."""

import pytest
import torch
from small_lavis import TEXTS

from smarttrim_mm.testing import count_multiply_adds

QFORMER, MATCHING = "blip2_qformer", "blip2_image_text_matching"
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}
HALF = {"type": "Random", "keep_ratio": 0.5}


@pytest.fixture
def pair(build, lavis_own):
    """A small model with four queries, and LAVIS's own with its weights."""

    def make(arch, *args, **kwargs):
        model = build(arch, *args, num_query_token=4, **kwargs)
        own = lavis_own(model, num_query_token=4)
        assert model.query_tokens.shape == (1, 4, 32) and len(model.tokenizer) == 119
        return model, own

    return make


@pytest.mark.parametrize("mode", ["image", "text", "multimodal"])
def test_features_of_lavis(pair, batch, mode):
    model, own = pair(QFORMER)
    for training in (False, True):
        ours, theirs = (each.train(training).extract_features(batch(model), mode) for each in (model, own))
        found = {name: value for name, value in vars(theirs).items() if value is not None}
        assert found.keys() == {name for name, value in vars(ours).items() if value is not None} and found
        for name, value in found.items():
            torch.testing.assert_close(getattr(ours, name), value)


@torch.no_grad()
def test_parts_of_lavis(pair, batch):
    model, own = pair(QFORMER)
    samples = batch(model)
    for ours, theirs in zip(model.forward_image(samples["image"]), own.forward_image(samples["image"]), strict=True):
        torch.testing.assert_close(ours, theirs)
    words = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    arguments = {"text_ids": words.input_ids, "text_atts": words.attention_mask}
    tokens = own.forward_image(samples["image"])[1]
    torch.testing.assert_close(model.compute_itm(tokens, **arguments), own.compute_itm(tokens, **arguments))
    torch.testing.assert_close(model.predict(samples)["predictions"][:, 1], own.compute_itm(tokens, **arguments))


@torch.no_grad()
def test_matching_of_lavis(pair, batch):
    """Text by text, as LAVIS does not pad them."""
    model, own = pair(MATCHING)
    samples = batch(model)
    alone = [{"image": samples["image"][i : i + 1], "text_input": [TEXTS[i]]} for i in range(3)]
    for head, shape in (("itm", (3, 2)), ("itc", (3, 1))):
        ours = model(samples, match_head=head)
        assert ours.shape == shape
        torch.testing.assert_close(ours, torch.cat([own(one, match_head=head) for one in alone]))


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_of_lavis(pair, batch, monkeypatch, beams):
    """Without LAVIS's own repetition for the beams, which transformers does too."""
    model, own = pair(QFORMER)
    asked = {"num_beams": beams, "max_length": 12, "min_length": 3}
    if beams > 1:
        with pytest.raises(RuntimeError, match="Expected size 27 but got size 9"):
            own.generate(batch(model), **asked)
        monkeypatch.setattr(torch.Tensor, "repeat_interleave", _once(torch.Tensor.repeat_interleave))
    seen = set()
    for seed in range(3):
        theirs = own.generate(batch(model, seed), **asked)
        assert model.generate(batch(model, seed), **asked) == theirs
        seen |= set(theirs)
    assert len(seen) > 2


def _once(repeat):
    """LAVIS repeats the images' tokens by dimension; transformers likewise, but within its own method."""
    import inspect

    def repeated(self, count, dim=None):
        by_lavis = inspect.stack()[1].filename.endswith("blip2_qformer.py")
        return self if by_lavis else repeat(self, count, dim=dim)

    return repeated


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("policy", ["Dense", SMARTTRIM, HALF], ids=["dense", "smarttrim", "random"])
@torch.no_grad()
def test_a_caption_and_its_compute_are_those_of_its_image_alone(build, batch, policy, beams):
    torch.manual_seed(0)
    model = build(QFORMER, policy, num_query_token=4)
    samples = {**batch(model), "instance_id": ["7", "11", "5"]}
    asked = {"num_beams": beams, "max_length": 12, "min_length": 2}
    some_end_early = False
    for _ in range(8):
        model.Qformer.cls.predictions.bias[model.tokenizer.sep_token_id] += 0.35  # the end is likelier each time
        together, costs = model.generate(samples, **asked), model.last_record.multiply_adds()
        words = set()
        for i in range(3):
            one = {"image": samples["image"][i : i + 1], "instance_id": samples["instance_id"][i : i + 1]}
            assert model.generate(one, **asked) == together[i : i + 1]
            torch.testing.assert_close(model.last_record.multiply_adds(), costs[i : i + 1])
            words.add(len(model.last_record.entries))
        some_end_early |= len(words) > 1
    assert some_end_early


@torch.no_grad()
def test_what_is_dropped_stays_out(pair, batch):
    model, _ = pair(QFORMER, HALF)
    samples = batch(model)
    queries, tokens = model.forward_image(samples["image"])
    kept = tokens.any(-1)
    assert torch.equal(kept, model.last_record.steps[1].tokens["image"].kept_grid()) and not kept.all()
    words = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    scores = model.compute_itm(tokens, words.input_ids, words.attention_mask)
    first = model.compute_itm(tokens[:1, kept[0]], words.input_ids[:1], words.attention_mask[:1])
    assert scores.shape == (3,) and first.shape == (1,)
    before = model.last_record.steps[0].before["image"]
    assert before.counts().tolist() == [float(kept[0].sum())]
    assert not torch.allclose(queries, pair(QFORMER)[0].forward_image(samples["image"])[0])


@pytest.mark.parametrize("asked", ["image", "multimodal", "generate", "itc"])
@torch.no_grad()
def test_all_compute_is_counted(build, batch, asked):
    """At batch 1 by torch's own counter."""
    model = build(MATCHING if asked == "itc" else QFORMER, HALF, num_query_token=4)
    samples = batch(model, texts=TEXTS[:1])

    def run():
        if asked == "generate":
            return model.generate(samples, num_beams=2, max_length=6, min_length=2)
        return model(samples, match_head="itc") if asked == "itc" else model.extract_features(samples, asked)

    _, counted = count_multiply_adds(run)
    record = model.last_record
    assert record.executed_multiply_adds() == pytest.approx(counted, rel=0.01)
    assert (record.multiply_adds() < record.dense_multiply_adds()).all()
    assert model.compute_report()["samples"] == 1


@torch.no_grad()
def test_heads_and_words_are_trimmed_too(build, batch):
    model = build(MATCHING, SMARTTRIM, num_query_token=4)
    samples = batch(model)
    scores = model.predict(samples)["predictions"]
    alone = model.predict({key: value[1:2] for key, value in samples.items() if key in ("image", "text_input")})["predictions"]
    torch.testing.assert_close(alone[0], scores[1])
    heads = model.last_record.heads()
    assert {"image.0/image.self", "fusion.0/text.self", "fusion.0/text.cross", "fusion.1/text.self"} <= heads.keys()
    assert "fusion.1/text.cross" not in heads and "fusion.1/image" not in model.last_record.kept()


def test_matching_is_trained(build, batch):
    model = build(MATCHING, SMARTTRIM, {"budget": {"type": "RatioBudget", "token_ratio": 0.5, "head_ratio": 0.5}}).train()
    assert not model.visual_encoder.training
    model(batch(model)).loss.backward()
    assert all(weight.grad is None for weight in model.visual_encoder.parameters())
    assert model.query_tokens.grad.abs().max() > 0
    assert all(weight.grad is not None for weight in model.policy.parameters())


def test_errors(build, batch):
    model = build(QFORMER, SMARTTRIM, {"text_first": True})
    with pytest.raises(ValueError, match="mode is 'words'; expected one of"):
        model.extract_features(batch(model), "words")
    with pytest.raises(ValueError, match="mode is 'multimodal', and the batch has no text_input"):
        model.extract_features({"image": batch(model)["image"]})
    for run in (lambda: model.extract_features(batch(model), "image"), lambda: model.generate(batch(model))):
        with pytest.raises(ValueError, match=r"text_first is True, and there are images without texts"):
            run()
    assert model.extract_features(batch(model)).multimodal_embeds.shape == (3, 32, 32)
