"""LAVIS's own models, trimmed, in LAVIS's registry."""

import copy
import subprocess
import sys

import pytest
import torch
from small_lavis import ANSWERS, SIZES, TEXTS
from transformers import BatchEncoding

import smarttrim_mm.lavis as plugin
from smarttrim_mm.registry import LAVIS_ARCHS
from smarttrim_mm.testing import count_multiply_adds

ARCHS = sorted(LAVIS_ARCHS.module_dict)
CLASSIFIERS = [arch for arch in ARCHS if arch.endswith(("nlvr", "classification"))]
VQA = [arch for arch in ARCHS if arch.endswith("vqa")]
TEXTLESS = ["blip_caption"]  # no text that could guide the image encoder
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}
HALF = {"type": "Random", "keep_ratio": 0.5}


def test_every_architecture_is_a_class_of_lavis():
    assert {"blip_vqa", "blip_nlvr", "albef_vqa", "albef_classification", "blip_image_text_matching"} <= set(ARCHS)
    for arch in ARCHS:
        found = plugin.registry.get_model_class(f"smarttrim_{arch}")
        assert issubclass(found, plugin.TrimmedModel) and issubclass(found, LAVIS_ARCHS.get(arch).lavis_class(arch))
        assert getattr(plugin, found.__name__) is found


def test_lavis_is_imported_by_the_plugin_only():
    code = "import sys; from smarttrim_mm.testing import backbone_cases; backbone_cases(); print('lavis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("arch", ARCHS)
def test_names_of_weights_are_lavis_own(build, lavis_own, arch):
    model = build(arch, SMARTTRIM)
    ours = {key for key in model.state_dict() if not key.startswith("policy.")}
    copies = {key for key in ours if "_m." in key}
    assert ours - copies == {key for key in lavis_own(model).state_dict() if "_m." not in key}
    assert bool(copies) is arch.endswith("retrieval")
    assert len(model.state_dict()) > len(ours)
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.trimmed.parameters()}


# ---- under the dense policy


@pytest.mark.parametrize("arch", CLASSIFIERS)
@torch.no_grad()
def test_predictions_of_lavis(build, lavis_own, batch, arch):
    model = build(arch)
    ours, theirs = (each.predict(batch(model)) for each in (model, lavis_own(model)))
    torch.testing.assert_close(ours["predictions"], theirs["predictions"])
    assert torch.equal(ours["targets"], theirs["targets"])


@pytest.mark.parametrize("arch", CLASSIFIERS + VQA)
def test_loss_and_gradients_of_lavis(build, lavis_own, batch, monkeypatch, arch):
    model = build(arch).train()
    own = lavis_own(model)
    if arch == "blip_classification":  # cannot be trained with LAVIS's own: its output has no such field
        monkeypatch.setattr("lavis.models.blip_models.blip_classification.BlipIntermediateOutput", lambda **_: None)
    losses = [each(batch(model)) for each in (model, own)]
    assert type(losses[0]) in (type(losses[1]), *type(losses[1]).__subclasses__())
    for output in losses:
        output["loss"].backward()
    torch.testing.assert_close(losses[0].loss, losses[1].loss)
    expected = {name: p.grad for name, p in own.named_parameters() if "_m." not in name}
    found = {name: p.grad for name, p in model.named_parameters()}
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_matching(build, lavis_own, batch):
    model = build("blip_image_text_matching")
    own = lavis_own(model)
    for head in ("itm", "itc"):
        torch.testing.assert_close(model(batch(model), match_head=head), own(batch(model), match_head=head))
    with torch.enable_grad():
        output = model.train()(batch(model))
    expected = torch.nn.functional.cross_entropy(own(batch(model)), batch(model)["label"])
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("candidates", [2, 5])
@pytest.mark.parametrize("arch", VQA)
@torch.no_grad()
def test_ranked_answers_of_lavis(build, lavis_own, batch, arch, candidates):
    model = build(arch)
    own = lavis_own(model)
    for seed in range(4):
        asked = {"answer_list": ANSWERS, "num_ans_candidates": candidates}
        ours, theirs = (each.predict_answers(batch(model, seed), **asked) for each in (model, own))
        assert ours == theirs and set(ours) <= set(ANSWERS)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_written_answers_of_lavis(build, lavis_own, batch, expand_once, beams):
    """LAVIS's question by question, as its mask shows padding to the decoder; and without its second expansion."""
    model = build("blip_vqa")
    own = lavis_own(model)
    expand_once(own.text_decoder)
    seen = set()
    for seed in range(3):
        samples = batch(model, seed)
        alone = [{"image": samples["image"][i : i + 1], "text_input": [TEXTS[i]]} for i in range(3)]
        asked = {"inference_method": "generate", "num_beams": beams}
        theirs = [own.predict_answers(one, **asked)[0] for one in alone]
        ours = model.predict_answers(samples, **asked)
        assert ours == theirs
        seen |= set(ours)
    assert len(seen) > 3


@torch.no_grad()
def test_drawn_answers_of_lavis(build, lavis_own, batch):
    """Questions of one length, whose padding LAVIS's mask would show to the decoder; from equal random state."""
    model = build("blip_vqa")
    own = lavis_own(model)
    seen = set()
    for seed in range(3):
        samples = batch(model, seed, texts=["two dogs play", "a cat dog", "the left image"])
        states = own.forward_encoder({"image": samples["image"], "text_input": samples["text_input"]})[0].last_hidden_state
        begin = BatchEncoding({"input_ids": torch.full((3, 1), own.tokenizer.bos_token_id)})
        length = {"max_length": 8, "min_length": 3}
        torch.manual_seed(seed)
        ends = own.tokenizer.sep_token_id, own.tokenizer.pad_token_id
        ids = own.text_decoder.generate_from_encoder(begin, states, *ends, use_nucleus_sampling=True, top_p=0.8, **length)
        torch.manual_seed(seed)
        asked = {"inference_method": "generate", "use_nucleus_sampling": True, "top_p": 0.8, "max_len": 8, "min_len": 3}
        ours = model.predict_answers(samples, **asked)
        assert ours == own.tokenizer.batch_decode(ids, skip_special_tokens=True)
        seen |= set(ours)
    assert len(seen) > 6
    with pytest.raises(ValueError, match="use_nucleus_sampling is set; expected inference_method='generate'"):
        model.predict_answers(samples, answer_list=ANSWERS, use_nucleus_sampling=True)


# ---- captions


def test_loss_and_gradients_of_lavis_captioner(build, lavis_own, batch):
    """With dropout, under equal random state; captions of unequal length, and one that is cut."""
    texts = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = build("blip_caption", text={**SIZES["text"], **texts}, max_txt_len=9).train()
    own = lavis_own(model, text={**SIZES["text"], **texts}, max_txt_len=9)
    samples = batch(model)
    assert model.prompt == "a picture of " and model.prompt_length == 4
    assert [len(ids) for ids in model.tokenizer(samples["text_input"]).input_ids] == [11, 7, 11]
    found = []
    for each in (model, own):
        torch.manual_seed(5)
        output = each({**samples})
        output["loss"].backward()
        torch.testing.assert_close(output["loss_lm"], output["loss"])
        found.append((output["loss"].detach(), {name: p.grad for name, p in each.named_parameters()}))
    (ours, gradients), (theirs, expected) = found
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    samples["text_input"][1] = "a cat"
    with pytest.raises(ValueError, match="text_input 'a cat' ends within the prompt, which is 'a picture of '"):
        model(samples)


@pytest.mark.parametrize(
    "asked", [{"num_beams": 1}, {}, {"num_beams": 2, "max_length": 8, "min_length": 5, "repetition_penalty": 2.0}]
)
@torch.no_grad()
def test_captions_of_lavis(build, lavis_own, batch, expand_once, asked):
    """Image by image: transformers may search a batch on for images that were done."""
    model = build("blip_caption")
    own = lavis_own(model)
    expand_once(own.text_decoder)
    seen = set()
    for seed in range(3):
        samples = batch(model, seed)
        theirs = [own.generate({"image": image[None]}, **asked)[0] for image in samples["image"]]
        assert model.generate({"image": samples["image"]}, **asked) == theirs
        seen |= set(theirs)
    assert len(seen) > 3
    assert model.generate({"image": samples["image"]}, num_captions=2, **asked) == [text for text in theirs for _ in range(2)]


@pytest.mark.parametrize("captions", [1, 3])
@torch.no_grad()
def test_drawn_captions_of_lavis(build, lavis_own, batch, captions):
    model = build("blip_caption")
    own = lavis_own(model)
    seen = []
    for seed in range(2):
        samples = {"image": batch(model, seed)["image"]}
        drawn = []
        for each in (model, own):
            torch.manual_seed(seed)
            drawn.append(each.generate(samples, use_nucleus_sampling=True, min_length=5, top_p=0.8, num_captions=captions))
        assert drawn[0] == drawn[1] and len(drawn[0]) == 3 * captions
        seen += drawn[0]
    assert len(set(seen)) > captions * 2
    assert model.compute_report()["samples"] == 6


def test_a_captioner_has_no_text_to_begin_with(build):
    with pytest.raises(ValueError, match="text_first=True: blip_caption has no text"):
        build("blip_caption", SMARTTRIM, {"text_first": True})


# ---- trimmed


@pytest.mark.parametrize(
    ("arch", "text_first"),
    [
        (arch, first)
        for arch in ARCHS
        for first in (False, True)
        if not (first and arch in TEXTLESS) and not arch.endswith("retrieval")
    ],
)
@torch.no_grad()
def test_less_is_spent_and_a_text_alone_has_the_same_answer(build, batch, arch, text_first):
    model = build(arch, SMARTTRIM, {"text_first": text_first})
    samples = batch(model)
    alone = {key: value[1:2] for key, value in samples.items() if key.startswith(("image", "text"))}
    samples = {key: samples[key] for key in alone}
    if arch in VQA:
        asked = {"answer_list": ANSWERS}
        answers, own = (model.predict_answers(each, **asked) for each in (samples, alone))
        assert answers[1] == own[0]
        states = model.forward_encoder(samples)[0].last_hidden_state
        mask, ids = samples["tokenized_text"].attention_mask, samples["tokenized_text"].input_ids
        assert states.shape[:2] == mask.shape == ids.shape and (ids[mask == 0] == 0).all() and (ids[:, 0] == 101).all()
        torch.testing.assert_close(states[1][mask[1] > 0], model.forward_encoder(alone)[0].last_hidden_state[0])
        model.predict_answers(samples, **asked)
    elif arch in TEXTLESS:
        own, answers = (model.generate(each, min_length=5) for each in (alone, samples))
        assert answers[1] == own[0]
    else:
        answers, own = model.predict(alone)["predictions"], model.predict(samples)["predictions"]
        torch.testing.assert_close(answers[0], own[1])
    record = model.last_record
    assert (record.multiply_adds() < record.dense_multiply_adds()).all() and record.samples == 3
    assert bool(model.backbone.text_first) is text_first


@pytest.mark.parametrize(
    "asked",
    [
        {"answer_list": ANSWERS},
        {"inference_method": "generate", "num_beams": 2},
        {"inference_method": "generate", "use_nucleus_sampling": True},
    ],
    ids=["rank", "beams", "nucleus"],
)
@torch.no_grad()
def test_all_runs_of_the_decoder_are_counted(build, batch, asked):
    """At batch 1 by torch's own counter."""
    model = build("blip_vqa", HALF)
    samples = batch(model, texts=TEXTS[:1])
    _, counted = count_multiply_adds(lambda: model.predict_answers(samples, **asked))
    assert model.last_record.executed_multiply_adds() == pytest.approx(counted, rel=0.01)
    assert [entry.name for entry in model.last_record.entries[-2:]] == ["decoder.answers"] * 2


@torch.no_grad()
def test_the_report_adds_up_and_begins_anew(build, batch):
    model = build("blip_nlvr", HALF)
    assert model.compute_report() == {}
    for seed in range(2):
        model.predict(batch(model, seed))
    record = model.last_record
    report = model.compute_report()
    assert report["samples"] == 6
    dense = record.dense_multiply_adds().mean().item() / 1e6  # the texts are the same in both batches
    assert report["dense_multiply_adds"] == pytest.approx(dense)
    assert report["speedup"] == pytest.approx(report["dense_multiply_adds"] / report["multiply_adds"]) and report["speedup"] > 1
    model.before_evaluation(dataset=None, task_type=None)
    assert model.compute_report() == {}


@pytest.mark.parametrize("arch", ["blip_nlvr", "albef_vqa", "blip_image_text_matching", "blip_caption"])
def test_all_losses_are_in_the_loss(build, batch, arch):
    trimming = {
        "distillation": {"type": "SelfDistillation", "weight": 0.5, "dense_task_weight": 0.3},
        "budget": {"type": "RatioBudget", "token_ratio": 0.5, "head_ratio": 0.5},
        "text_first": arch not in TEXTLESS,
    }
    model = build(arch, SMARTTRIM, trimming).train()
    output = model(batch(model))
    parts = {name: value for name, value in model.last_losses.items() if "loss_" in name}
    assert parts.keys() == {"loss_task", "loss_distill", "loss_dense_task", "loss_budget_tokens", "loss_budget_heads"}
    torch.testing.assert_close(output.loss.detach(), sum(parts.values()))
    assert not any(value.requires_grad for value in model.last_losses.values())
    output.loss.backward()
    trimmers = [p.grad for p in model.policy.parameters()]
    assert len(trimmers) > 15 and all(gradient is not None for gradient in trimmers)


@torch.no_grad()
def test_a_copy_is_another_model(build, batch):
    model = build("blip_vqa", SMARTTRIM)
    other = copy.deepcopy(model)
    assert other.backbone.host is other and other.trimmed.policy is other.policy is not model.policy
    for parameter in other.parameters():
        parameter.zero_()
    answers = [each.predict_answers(batch(model), answer_list=ANSWERS) for each in (model, other)]
    assert answers[0] != answers[1]


# ---- schedules


def test_schedules_follow_the_training(build, batch):
    hooks = [{"type": "CurriculumHook", "end": 0.5}, {"type": "NoiseHook", "start": 1.0, "end": 0.0}]
    model = build("blip_nlvr", SMARTTRIM, {"schedules": hooks, "epochs": 2}).train()
    seen = []
    for epoch, iters in ((0, 0), (0, 2), (1, 0), (1, 3)):
        model({**batch(model), "epoch": epoch, "iters": iters, "num_iters_per_epoch": 4})
        seen.append((model.policy.progress, model.policy.noise))
    assert seen == [(0.0, 1.0), (0.5, 0.75), (1.0, 0.5), (1.0, 0.125)]
    model.before_evaluation(dataset=None, task_type=None)  # eight iterations are done
    assert model.policy.noise == 0.0
    model.eval()(batch(model))
    assert model.policy.noise == 0.0


def test_schedules_need_the_place(build, batch):
    model = build("blip_nlvr", SMARTTRIM, {"schedules": [{"type": "CurriculumHook"}], "epochs": 1}).train()
    samples = batch(model)
    del samples["iters"]
    with pytest.raises(ValueError, match=r"the batch has no iters.*set_curriculum"):
        model(samples)
    model.eval()(samples)
