"""LAVIS's captioner: words behind a trimmed image encoder, taught and written."""

import copy
from dataclasses import replace

import pytest
import torch
from mmpretrain.structures import DataSample
from torch.nn.functional import cross_entropy
from transformers import BatchEncoding

from smarttrim_mm.backbones.given_tokens import encoding
from smarttrim_mm.backbones.writing import Writing
from smarttrim_mm.inputs import TextTargets
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, count_multiply_adds, excite, random_inputs

CASE = backbone_cases()["LavisBackbone/blip_caption shared images"]
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}
HALF = {"type": "Random", "keep_ratio": 0.7}
PROMPT = [101, 7, 9, 102]
WORDS = {"type": "WordTokenizer", "words": [f"w{i}" for i in range(110)]}
AS_WORDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}  # ids of a WordTokenizer
SHORT = {"num_beams": 3, "max_length": 12, "min_length": 6}


@pytest.fixture
def build():
    def make(policy="Dense", **changes):
        policy = {"type": policy} if isinstance(policy, str) else policy
        parts = {name: {**CASE[name], **changes.get(name, {})} for name in ("vision", "text")}
        backbone = {**CASE, **changes, **parts}
        loss = {"type": "AnswerGeneration", "per_token": True}
        model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy, "task_loss": loss}).eval()
        excite(model.backbone)
        with torch.no_grad():  # so that some texts end before others
            model.backbone.host.text_decoder.cls.predictions.bias[102] += 3
        return model

    return make


@pytest.fixture
def inputs_of():
    """Four captions about three images behind one prompt."""

    def make(model, **others):
        inputs = random_inputs(model.backbone.input_format, (4, 4, 4, 4), (0, 0, 1, 2), **others)
        inputs.input_ids[:] = torch.tensor(PROMPT)
        mask = torch.arange(5) < torch.tensor([4, 3, 5, 3])[:, None]
        ids = torch.tensor([[101, 17, 19, 102, 0], [101, 18, 102, 0, 0], [101, 17, 15, 16, 102], [101, 21, 102, 0, 0]])
        return replace(inputs, targets=TextTargets(ids, mask, torch.ones(4), torch.arange(4), samples=4))

    return make


def as_lavis(inputs) -> dict:
    """The batch as LAVIS's own task passes it: whole texts, padded."""
    texts = inputs.targets
    ids = [[*PROMPT[:-1], *row[1:][real[1:]].tolist()] for row, real in zip(texts.input_ids, texts.mask, strict=True)]
    length = max(map(len, ids))
    padded = torch.tensor([row + [0] * (length - len(row)) for row in ids])
    return {"image": inputs.unshared().images, "text_input": encoding(padded, padded != 0)}


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_the_loss_and_gradients_of_lavis(build, inputs_of, kind):
    """In training mode with dropout and drop path under equal random state; each caption with its image."""
    model = build(vision={"drop_path_rate": 0.3}).train()
    host = model.backbone.host
    assert host.prompt_length == 3 and host.text_decoder.config.hidden_dropout_prob > 0
    inputs = inputs_of(model)
    alone = inputs.unshared()

    def ours():
        return model.task_loss(model.trace(alone, kind)[0], alone.targets)

    found = []
    for loss in (ours, lambda: host(as_lavis(inputs)).loss, lambda: model.loss(alone)["loss_task"]):
        model.zero_grad()
        torch.manual_seed(3)
        value = loss()
        value.backward()
        found.append((value.detach(), {name: p.grad for name, p in host.named_parameters()}))
    (_, _), (expected, gradients), _ = found
    for value, others in found:
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    with torch.no_grad():
        assert not torch.allclose(model.loss(alone)["loss_task"], expected)  # other random numbers


@torch.no_grad()
def test_the_prompt_is_given_and_not_learnt(build, inputs_of):
    """By hand, caption by caption: only what follows the prompt is counted."""
    model = build()
    inputs = inputs_of(model)
    logits = model(inputs)
    host = model.backbone.host
    expected = []
    for row in range(4):
        own = inputs.targets.input_ids[row][inputs.targets.mask[row]][1:]
        ids = torch.tensor([[118, 7, 9, *own.tolist()]])  # [DEC] is the last but one of 120
        image = host.visual_encoder(inputs.unshared().images[row : row + 1])
        all_of_it = host.text_decoder(ids, encoder_hidden_states=image, return_dict=True).logits[0]
        expected.append(all_of_it[2 : 2 + len(own)])
    assert [len(each) for each in expected] == [3, 2, 4, 2]
    torch.testing.assert_close(logits, torch.cat(expected))
    loss = cross_entropy(logits, torch.tensor([17, 19, 102, 18, 102, 17, 15, 16, 102, 21, 102]), label_smoothing=0.1)
    torch.testing.assert_close(model.loss(inputs)["loss_task"], loss)


@torch.no_grad()
def test_prompts_of_unequal_length(build, inputs_of):
    model = build(SMARTTRIM)
    inputs = inputs_of(model)
    mixed = random_inputs(model.backbone.input_format, (2, 6, 4, 3), (0, 0, 1, 2))
    mixed = replace(mixed, targets=inputs.targets)
    for batch in (mixed, replace(mixed, targets=None)):
        logits = model(batch)
        parts = [model(batch.select(torch.tensor([row]))) for row in range(4)]
        torch.testing.assert_close(torch.cat(parts), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", [SMARTTRIM, HALF], ids=["smarttrim", "random"])
@torch.no_grad()
def test_both_executions_give_the_same_words(build, inputs_of, policy):
    model = build(policy)
    inputs = inputs_of(model)
    (masked, record), (packed, other) = (model.trace(inputs, kind) for kind in ("masked", "packed"))
    torch.testing.assert_close(masked, packed, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(record.multiply_adds(), other.multiply_adds())
    assert (record.multiply_adds() < record.dense_multiply_adds()).all()


@torch.no_grad()
def test_a_dropped_patch_makes_the_decoder_cheaper(build, inputs_of):
    """By hand: 2 layers, width 32, image width 24, 17 tokens of the image."""
    model = build(HALF)
    entry = model.trace(inputs_of(model))[1].entries[-1]
    kept, real = entry.layout.counts(), entry.layout.full()
    assert entry.name == "decoder.captions" and entry.stream == "image" and (kept < real).all() and (real == 17).all()
    lengths = torch.tensor([6.0, 5.0, 7.0, 5.0])  # [DEC], the prompt's two words, and the caption with its end
    width, image, head = 32, 24, 32 * 32 + 32 * 120
    texts = 4 * lengths * width**2 + 2 * lengths**2 * width + 2 * lengths * width**2 + 2 * lengths * width * 48
    for tokens, found in ((kept, entry.cost(lambda lay: lay.counts(), None)), (real, entry.cost(lambda lay: lay.full(), None))):
        read = tokens * (2 * width * image + 2 * lengths * width)  # keys and values, scores and sums
        torch.testing.assert_close(found, 2 * (texts + read) + lengths * head)


def test_learning_the_words(build, inputs_of):
    model = build({"type": "SmartTrim"}).train()
    inputs = inputs_of(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        found = model.loss(inputs)
        found["loss_task"].backward()
        optimizer.step()
        losses.append(found["loss_task"].item())
    assert min(losses[-5:]) < 0.5 * losses[0]
    assert all(p.grad is not None for p in model.policy.parameters())


# ---- writing


def written(model, inputs, how, captions=1, policy=None):
    execution = Execution(policy or model.policy, sample_ids=inputs.sample_ids, kind="packed")
    return model.backbone.generate(inputs, execution, how, captions), execution.record


def of_lavis(model, inputs, **asked) -> torch.Tensor:
    """LAVIS's own; transformers repeats for the beams what LAVIS has repeated, so that one of the two has to stay out."""
    decoder = model.backbone.host.text_decoder
    expand = type(decoder)._expand_inputs_for_generation

    def once(expand_size=1, is_encoder_decoder=False, input_ids=None, **others):
        read = {name: others.pop(name) for name in list(others) if name.startswith("encoder_")}
        ids, others = expand(expand_size, is_encoder_decoder, input_ids, **others)
        return ids, {**others, **read}

    images = model.backbone.host.forward_encoder({"image": inputs.unshared().images})
    prompts = torch.tensor([[118, *PROMPT[1:-1]]]).repeat(len(images), 1)
    decoder._expand_inputs_for_generation = once
    try:
        ids = BatchEncoding({"input_ids": prompts})
        return decoder.generate_from_encoder(ids, images, sep_token_id=102, pad_token_id=0, **asked)
    finally:
        del decoder._expand_inputs_for_generation


def texts_of(ids):
    """Without what lies behind their ends."""
    rows = ids.tolist()
    return [row[: row.index(102) + 1] if 102 in row else row for row in rows]


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 3, "max_length": 12, "min_length": 6},
        {"num_beams": 1, "max_length": 12, "min_length": 6},
        {"num_beams": 2, "max_length": 11, "min_length": 8, "repetition_penalty": 3.0},
        {},
    ],
    ids=["beams", "greedy", "penalty", "as LAVIS"],
)
@torch.no_grad()
def test_what_lavis_writes(build, inputs_of, asked):
    model = build(text={"max_position_embeddings": 32})
    least, most = asked.get("min_length", 10), asked.get("max_length", 30)
    seen = set()
    for seed in range(3):
        inputs = replace(inputs_of(model, seed=seed), targets=None)
        alone = [inputs.select(torch.tensor([row])) for row in range(4)]
        theirs = [texts_of(of_lavis(model, one, **asked))[0] for one in alone]
        ids, _ = written(model, inputs, Writing(**asked))
        assert texts_of(ids) == theirs
        assert all(text[:3] == [118, 7, 9] and least <= len(text) <= most for text in theirs)
        seen |= {tuple(text) for text in theirs}
    assert len(seen) > 3  # they are not all the same


@pytest.mark.parametrize("captions", [1, 2])
@torch.no_grad()
def test_what_lavis_draws(build, inputs_of, captions):
    """From equal random state; LAVIS's own penalty cannot be set."""
    model = build()
    inputs = replace(inputs_of(model), targets=None)
    drawn = []
    for seed in range(3):
        torch.manual_seed(seed)
        repeated = inputs.select(torch.arange(4).repeat_interleave(captions))
        theirs = of_lavis(model, repeated, use_nucleus_sampling=True, top_p=0.7, max_length=12, min_length=5)
        torch.manual_seed(seed)
        how = Writing(nucleus=True, top_p=0.7, max_length=12, min_length=5, repetition_penalty=1.1)
        ours, record = written(model, inputs, how, captions)
        assert texts_of(ours) == texts_of(theirs) and len(ours) == 4 * captions and record.samples == 4
        drawn += texts_of(ours)
    assert len({tuple(text) for text in drawn}) > 8


@pytest.mark.parametrize("policy", [{"type": "Dense"}, SMARTTRIM, HALF], ids=["dense", "smarttrim", "random"])
@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_what_is_written_does_not_depend_on_the_batch(build, inputs_of, policy, beams):
    """Nor does what it costs; each seed is another batch."""
    model = build(policy)
    how = Writing(num_beams=beams, max_length=14, min_length=4)
    lengths = set()
    for seed in range(4):
        inputs = replace(inputs_of(model, seed=seed), targets=None)
        ids, record = written(model, inputs, how)
        for row in range(4):
            own, alone = written(model, inputs.select(torch.tensor([row])), how)
            assert texts_of(own)[0] == texts_of(ids)[row]
            torch.testing.assert_close(alone.multiply_adds()[0], record.multiply_adds()[row])
            torch.testing.assert_close(alone.dense_multiply_adds()[0], record.dense_multiply_adds()[row])
            lengths.add(len(texts_of(own)[0]))
    assert len(lengths) > 1


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 1}, {"nucleus": True}], ids=["beams", "greedy", "nucleus"])
@pytest.mark.parametrize("policy", [SMARTTRIM, HALF], ids=["smarttrim", "random"])
@torch.no_grad()
def test_all_runs_of_the_decoder_are_counted(build, inputs_of, policy, how):
    """Executed compute by torch's own counter, in a batch of images of which unequal parts are left; decided compute alone."""
    model = build(policy)
    inputs = replace(inputs_of(model), targets=None)
    how = Writing(**how, max_length=12, min_length=4)
    (_, record), counted = count_multiply_adds(lambda: written(model, inputs, how))
    assert record.executed_multiply_adds() == pytest.approx(counted / 4, rel=0.01)
    kept = record.entries[-1].layout.counts()
    assert (len(kept.unique()) > 1) is (policy is SMARTTRIM)
    one = inputs.select(torch.tensor([2]))
    (_, record), counted = count_multiply_adds(lambda: written(model, one, how))
    assert float(record.multiply_adds()) == pytest.approx(counted, rel=0.01)


@torch.no_grad()
def test_predictions_are_texts(build, inputs_of):
    """The words behind the prompt, by the pipeline's tokenizer, with what writing them took."""
    model = build(HALF, tokenizer=WORDS, prompt="w3 w4", generation=SHORT, text=AS_WORDS)
    assert model.backbone.host.prompt_length == 3
    inputs = random_inputs(model.backbone.input_format, (4, 4, 4))
    inputs.input_ids[:] = model.backbone.tokenizer("w3 w4", 8)
    samples = [DataSample(questions=["w3 w4"]) for _ in range(3)]
    found = model(inputs, samples, mode="predict")
    ids, record = written(model, inputs, Writing(**SHORT))
    for row, sample in enumerate(found):
        tokens = [each for each in ids[row, 3:].tolist() if 3 <= each < 114]
        words = ["<unk>" if each == 3 else f"w{each - 4}" for each in tokens]
        assert sample.pred_caption == " ".join(words) and "pred_scores" not in sample
        torch.testing.assert_close(sample.trim["multiply_adds"], record.multiply_adds()[row : row + 1])
    assert any(sample.pred_caption for sample in found)
    again = model(inputs, copy.deepcopy(samples), mode="predict")
    assert [sample.pred_caption for sample in again] == [sample.pred_caption for sample in found]
    with pytest.raises(ValueError, match=r"images of the batch have \[2, 1\] texts to continue; expected one each"):
        model(inputs, [DataSample(questions=["w3 w4"] * count) for count in (2, 1)], mode="predict")


def test_one_prompt_for_all_that_is_written(build):
    model = build()
    inputs = random_inputs(model.backbone.input_format, (4, 3))
    with pytest.raises(ValueError, match=r"texts of a batch have \[4, 3\] tokens; expected one prompt"):
        written(model, inputs, Writing())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_first": True}, "text_first=True: blip_caption has no text to guide the image encoder by"),
        ({"prompt": "a picture of "}, "prompt is 'a picture of ' and tokenizer is None"),
        ({"generation": SHORT}, "generation is set and tokenizer is None: what it writes are texts"),
        ({"generation": {"beams": 3}}, "generation has 'beams'; expected settings of num_beams, max_length"),
        ({"generation": {"num_beams": 0}}, "generation has num_beams=0; expected at least 1"),
        ({"generation": {"min_length": 12, "max_length": 9}}, "min_length=12; expected 0 to max_length, which is 9"),
        ({"generation": {"nucleus": True, "top_p": 1.5}}, r"top_p=1.5; expected more than 0, at most 1"),
        ({"generation": {"repetition_penalty": 0}}, "repetition_penalty=0; expected more than 0"),
        ({"generation": {"nucleus": True, "num_beams": 3}}, "generation has num_beams, which has no effect with nucleus=True"),
        ({"generation": {"top_p": 0.5}}, "generation has top_p, which has no effect with nucleus=False"),
        (
            {"generation": {"max_length": 99}, "tokenizer": WORDS},
            "generation has max_length=99; the decoder has 24 positions",
        ),
    ],
)
def test_errors_of_the_config(build, change, message):
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_an_image_of_another_size(build, inputs_of):
    model = build()
    inputs = inputs_of(model)
    with pytest.raises(ValueError, match=r"images are .8, 8. pixels; expected 16 by 16"):
        model(replace(inputs, images=inputs.images[..., :8, :8]))
