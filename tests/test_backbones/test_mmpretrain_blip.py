"""mmpretrain's BLIPs: dense, they predict and learn what mmpretrain's own models do, from texts."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import save_checkpoint
from mmpretrain.registry import MODELS as HOSTS
from mmpretrain.structures import DataSample
from torch.nn.utils.rnn import pad_sequence

from smarttrim_mm.backbones.mmpretrain import MMPretrainBackbone
from smarttrim_mm.inputs import TextTargets, VLMInputs
from smarttrim_mm.models.all_pairs import PairScorer
from smarttrim_mm.models.top_pairs import TopPairScorer
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import excite, random_inputs

EVERY = {case["model"]["type"]: case for case in MMPretrainBackbone.small_configs().values()}
CASES = {kind: EVERY[kind] for kind in ("BlipCaption", "BlipNLVR", "BlipRetrieval", "BlipVQA")}
WORDS = [f"w{i}" for i in range(113)]
PAD, CLS, SEP, DEC = 0, 2, 3, 118
QUESTIONS = ["w1 w2 w3", "w4 w5", "w6", "w7 w8 w9 w1 w2", "w11 w12", "w13 w14"]
ANSWERS = ["w7 w3", "w8", "w9 w5", "w11 w3 w1", "w12"]
NEEDED = {"BlipVQA": {"backbone": {"answers": ANSWERS}}, "BlipCaption": {"model": {"prompt": "w1 w2 "}}}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    return str(folder)


def own_ids(model):
    """The configuration with the ids of the tokenizer here."""
    model = copy.deepcopy(model)

    def walk(section):
        for value in section.values():
            if isinstance(value, dict):
                if "vocab_size" in value:
                    value.update(vocab_size=120, bos_token_id=CLS, eos_token_id=SEP, pad_token_id=PAD)
                walk(value)

    walk(model)
    return model


@pytest.fixture
def pair(tokenizer_folder):
    """A trimmed model and mmpretrain's own, of the same random weights, by a seed whose answers differ."""

    def make(kind, *, own=None, seed=2, **changes):
        config = own_ids({**CASES[kind]["model"], **changes.pop("model", {})})
        tokenizer = {"type": "PretrainedTokenizer", "name_or_path": tokenizer_folder}
        arguments = {name: value for name, value in CASES[kind].items() if name not in ("model", "answers")}
        texts = {"tokenizer": tokenizer} if kind in ("BlipVQA", "BlipCaption") else {}
        backbone = {"type": "MMPretrainBackbone", "model": config, **arguments, **texts, **changes.pop("backbone", {})}
        model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": {"type": "Dense"}, **changes}).eval()
        excite(model.backbone, seed)
        host = copy.deepcopy(config)
        host.update(_scope_="mmpretrain", tokenizer={"type": "BlipTokenizer", "name_or_path": tokenizer_folder})
        for name, value in (own or {}).items():
            host[name] = {**host[name], **value} if isinstance(value, dict) else value
        theirs = HOSTS.build(host).eval()
        assert len(theirs.tokenizer) == 120
        theirs.load_state_dict(model.backbone.host.state_dict())
        return model, theirs

    return make


def images_of(count, seed=0):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def tokens_of(texts):
    ids = [torch.tensor([CLS, *(5 + WORDS.index(word) for word in text.split()), SEP]) for text in texts]
    padded = pad_sequence(ids, batch_first=True, padding_value=PAD)
    return padded, padded != PAD


def inputs_of(images, texts, targets=None, each=1):
    ids, mask = tokens_of(texts)
    index = torch.arange(len(texts)).repeat_interleave(each) if each > 1 else None
    return VLMInputs(
        images=images,
        image_index=None,
        image_ids=torch.arange(len(images)),
        input_ids=ids,
        text_mask=mask,
        special_mask=torch.isin(ids, torch.tensor([CLS, SEP])),
        sample_ids=torch.arange(len(images)),
        targets=targets,
        text_index=index,
        text_ids=None if index is None else torch.arange(len(texts)),
        pairs_per_sample=each,
    )


def questions(texts):
    return [DataSample(questions=[text], question=text) for text in texts]


@torch.no_grad()
def test_ranked_answers_are_those_of_mmpretrain(pair, tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(ANSWERS), encoding="utf-8")
    head = {"inference_method": "rank", "answer_list_path": str(path), "num_ans_candidates": 3}
    model, theirs = pair("BlipVQA", backbone={"answers": ANSWERS, "num_candidates": 3}, own={"head": head})
    for seed in range(4):
        images = images_of(len(QUESTIONS), seed)
        expected = [sample.pred_answer for sample in theirs.predict(images, questions(QUESTIONS))]
        scores = model(inputs_of(images, QUESTIONS), mode="tensor")
        assert [ANSWERS[best] for best in scores.argmax(1)] == expected
        assert (scores.isinf().sum(1) == 2).all()
        if seed == 0:
            assert len(set(expected)) > 1


@torch.no_grad()
def test_written_answers_are_those_of_mmpretrain(pair):
    generation = {"num_beams": 3, "max_length": 10, "min_length": 1}
    model, theirs = pair("BlipVQA", backbone={"answers": ANSWERS, "generation": generation})
    with torch.no_grad():
        for one in (model.backbone.host, theirs):  # so that answers end
            one.vqa_head.decoder.cls.predictions.bias[SEP] += 3
    images = images_of(len(QUESTIONS))
    expected = [
        theirs.predict(images[i : i + 1], questions(QUESTIONS[i : i + 1]))[0].pred_answer for i in range(len(QUESTIONS))
    ]
    samples = model.predict(inputs_of(images, QUESTIONS), questions(QUESTIONS))
    assert [sample.pred_answers for sample in samples] == [[answer] for answer in expected]
    assert len(set(expected)) > 1 and all("pred_scores" not in sample for sample in samples)
    assert max(sample.trim["multiply_adds"].item() for sample in samples) > 0


@torch.no_grad()
def test_captions_are_those_of_mmpretrain(pair):
    generation = {"num_beams": 3, "max_length": 20, "min_length": 2}
    model, theirs = pair("BlipCaption", model={"prompt": "w1 w2 "}, backbone={"generation": generation})
    for one in (model.backbone.host, theirs):
        one.seq_gen_head.decoder.cls.predictions.bias[SEP] += 1
    assert model.backbone.host.prompt_length == theirs.prompt_length == 3
    images = images_of(5)
    expected = [theirs.predict(images[i : i + 1])[0].pred_caption for i in range(5)]
    samples = model.predict(inputs_of(images, ["w1 w2"] * 5), questions(["w1 w2"] * 5))
    assert [sample.pred_caption.strip() for sample in samples] == [caption.strip() for caption in expected]
    assert len(set(expected)) > 1


@torch.no_grad()
def test_pairs_of_images_are_judged_as_by_mmpretrain(pair):
    model, theirs = pair("BlipNLVR", seed=4)
    images, texts = images_of(12).view(6, 2, 3, 16, 16), QUESTIONS
    expected = theirs(images, [DataSample(text=text) for text in texts], mode="predict")
    logits = model(inputs_of(images.flatten(0, 1), texts, each=2), mode="tensor")
    torch.testing.assert_close(logits.softmax(1), torch.stack([sample.pred_score for sample in expected]))
    assert len(set(logits.argmax(1).tolist())) == 2


@torch.no_grad()
@pytest.mark.parametrize("top_k", [2, 6])
def test_rankings_are_those_of_mmpretrain(pair, top_k):
    model, theirs = pair("BlipRetrieval", own={"topk": top_k, "max_txt_len": 12})
    images = images_of(6)
    samples = [DataSample(text=text, gt_text_id=i, gt_image_id=[i]) for i, text in enumerate(QUESTIONS)]
    to_texts, to_images = theirs.predict(images, samples)
    inputs = inputs_of(images, QUESTIONS)
    texts = replace(inputs, images=images[:0], image_ids=inputs.image_ids[:0])
    scorer = TopPairScorer(PairScorer(model, [texts], pairs_per_batch=4), top_k, images=6)
    scorer.add(inputs, torch.arange(6))
    scorer.choose()
    (found,) = scorer.scores()
    torch.testing.assert_close(found.of_texts, torch.stack([sample.pred_score for sample in to_texts]))
    torch.testing.assert_close(found.of_images.t(), torch.stack([sample.pred_score for sample in to_images]))
    assert (found.of_texts == -100).sum() == 6 * (6 - top_k)


# ---- training


def answers_of(texts, weights, sample, samples):
    ids, mask = tokens_of(texts)
    return TextTargets(ids, mask, torch.tensor(weights), torch.tensor(sample), samples)


def same_gradients(ours, theirs):
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[name].grad
        if gradient is not None and name.startswith("vqa_head") and "word_embeddings" in name:
            for one in (gradient, parameter.grad):
                one[CLS] += one[DEC]
                one[DEC] = 0
        assert (parameter.grad is None) is (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4, msg=name)


def step(model, theirs, inputs, images, samples):
    """Losses of both, with the same random numbers; gradients are compared."""
    for one in (model, theirs):
        one.train().zero_grad()
    torch.manual_seed(5)
    expected = theirs.loss(images, samples)
    torch.manual_seed(5)
    losses = model.loss(inputs)
    sum(value for value in expected.values() if value.requires_grad).backward()
    sum(value for name, value in losses.items() if "loss" in name).backward()
    same_gradients(model.backbone.host, theirs)
    return losses, expected


def test_answers_are_learnt_as_by_mmpretrain(pair):
    """Two answers of one question, by their weights; dropout and drop path on.

    mmpretrain teaches answers that begin with [CLS], and tests answers that begin with [DEC]; here, as in BLIP's code, both
    begin with [DEC]. The two embeddings are made equal.
    """
    loss = {"type": "AnswerGeneration", "label_smoothing": 0.0}
    model, theirs = pair("BlipVQA", task_loss=loss, backbone={"answers": ANSWERS})
    with torch.no_grad():
        for one in (model.backbone.host, theirs):
            words = one.vqa_head.decoder.bert.embeddings.word_embeddings.weight
            words[DEC] = words[CLS]
    images, texts = images_of(3), QUESTIONS[:3]
    samples = [
        DataSample(question=texts[0], gt_answer=["w7 w3", "w8"], gt_answer_weight=[0.7, 0.3]),
        DataSample(question=texts[1], gt_answer=["w9 w5 w1"], gt_answer_weight=[1.0]),
        DataSample(question=texts[2], gt_answer=["w12"], gt_answer_weight=[0.2]),
    ]
    targets = answers_of(["w7 w3", "w8", "w9 w5 w1", "w12"], [0.7, 0.3, 1.0, 0.2], [0, 0, 1, 2], 3)
    losses, expected = step(model, theirs, inputs_of(images, texts, targets), images, samples)
    torch.testing.assert_close(losses["loss_task"], expected["vqa_loss"])


def test_two_images_are_learnt_as_by_mmpretrain(pair):
    model, theirs = pair("BlipNLVR")
    images = images_of(6).view(3, 2, 3, 16, 16)
    # in training mmpretrain's model takes the first images of all samples, and then the second ones
    samples = [DataSample(text=text, gt_label=label) for text, label in zip(QUESTIONS, [1, 0, 1], strict=False)]
    model.eval(), theirs.eval()
    expected = theirs(images, samples, mode="loss")["loss"]
    losses = model.loss(inputs_of(images.flatten(0, 1), QUESTIONS[:3], torch.tensor([1, 0, 1]), each=2))
    expected.backward()
    losses["loss_task"].backward()
    torch.testing.assert_close(losses["loss_task"], expected)
    same_gradients(model.backbone.host, theirs)


def test_captions_are_learnt_as_by_mmpretrain(pair):
    loss = {"type": "AnswerGeneration", "per_token": True}
    own = {"max_txt_len": 12}
    model, theirs = pair("BlipCaption", model={"prompt": "w1 w2 "}, task_loss=loss, own=own)
    images, texts = images_of(3), ["w3 w4", "w5", "w6 w7 w8"]
    samples = [DataSample(gt_caption=text) for text in texts]
    inputs = inputs_of(images, ["w1 w2"] * 3, answers_of(texts, [1.0] * 3, [0, 1, 2], 3))
    losses, expected = step(model, theirs, inputs, images, samples)
    torch.testing.assert_close(losses["loss_task"], expected["seq_gen_lm_loss"])


def test_two_steps_of_retrieval_are_those_of_mmpretrain(pair):
    """Losses, gradients, momentum copies and queue, with dropout on; two of four pairs are about one image."""
    loss = {"type": "ContrastAndMatching"}
    model, theirs = pair("BlipRetrieval", task_loss=loss, own={"max_txt_len": 7})
    host = model.backbone.host
    with torch.no_grad():
        for one in (host, theirs):
            one.temp.fill_(0.07)
            one.copy_params()
    assert theirs.head.temp is theirs.temp and host.head.temp is host.temp
    ids, texts = [7, 3, 7, 9], QUESTIONS[:4]
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.02) for one in (host, theirs)]
    for number in range(2):
        images = images_of(4, seed=number)
        samples = [DataSample(text=text, image_id=one, is_matched=True) for text, one in zip(texts, ids, strict=True)]
        inputs = replace(inputs_of(images, texts), image_ids=torch.tensor(ids))
        losses, expected = step(model, theirs, inputs, images, samples)
        torch.testing.assert_close(losses["loss_itc"], expected["itc_loss"])
        torch.testing.assert_close(losses["loss_itm"], expected["itm_loss"])
        for optimizer in optimizers:
            optimizer.step()
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(host.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert int(host.head.queue_ptr) == 8 and host.head.idx_queue[0, :9].tolist() == [*ids, *ids, -100]


# ---- public checkpoints


@pytest.mark.parametrize("kind", sorted(CASES))
def test_a_file_of_mmpretrain_is_loaded_whole(pair, kind, tmp_path):
    """As mmengine saves a training of mmpretrain's own model."""
    model, theirs = pair(kind, **NEEDED.get(kind, {}))
    excite(theirs, seed=1)
    save_checkpoint({"meta": {"epoch": 1}, "state_dict": theirs.state_dict()}, str(tmp_path / "public.pth"))
    found = model.backbone.load(str(tmp_path / "public.pth"))
    assert not found.initialised and not found.left_out and not found.changed
    torch.testing.assert_close(dict(model.backbone.host.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


def test_a_retrieval_file_without_copies_and_with_another_queue(pair, tmp_path):
    model, theirs = pair("BlipRetrieval")
    excite(theirs, seed=1)
    weights = {key: value for key, value in theirs.state_dict().items() if "_m." not in key}
    for name in ("image_queue", "text_queue", "idx_queue"):
        weights[f"head.{name}"] = weights[f"head.{name}"][:, :8]
    torch.save({"state_dict": weights}, tmp_path / "public.pth")
    host, queue = model.backbone.host, model.backbone.host.head.image_queue.clone()
    found = model.backbone.load(str(tmp_path / "public.pth"))
    assert set(found.left_out.values()) == {"contrastive queue of another size"}
    assert torch.equal(host.head.image_queue, queue) and torch.equal(host.temp, theirs.temp)
    for own, copied in host.model_pairs:
        for one, other in zip(own.parameters(), copied.parameters(), strict=True):
            assert torch.equal(one, other)
    name = "text_backbone.embeddings.word_embeddings.weight"
    assert torch.equal(host.state_dict()[name], weights[name])


def test_a_file_of_another_size_or_task(pair, tmp_path):
    model, theirs = pair("BlipNLVR")
    larger = pair("BlipNLVR", model={"vision_backbone": {**CASES["BlipNLVR"]["model"]["vision_backbone"], "img_size": 24}})[0]
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "public.pth")
    found = larger.backbone.load(str(tmp_path / "public.pth"))
    assert list(found.changed) == ["vision_backbone.pos_embed"]
    table = larger.backbone.host.vision_backbone.pos_embed
    assert table.shape == (1, 37, 24) and torch.equal(table[:, :1], theirs.vision_backbone.pos_embed[:, :1])
    before = copy.deepcopy(model.backbone.host.state_dict())
    torch.save({"state_dict": pair("BlipCaption", **NEEDED["BlipCaption"])[1].state_dict()}, tmp_path / "caption.pth")
    with pytest.raises(ValueError, match=r"nothing was loaded[\s\S]*missing[\s\S]*multimodal_backbone"):
        model.backbone.load(str(tmp_path / "caption.pth"))
    torch.testing.assert_close(model.backbone.host.state_dict(), before, rtol=0, atol=0)


# ---- what is refused


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "BlipVQA",
            {"vision_backbone": {"out_type": "cls_token"}},
            "the image encoder has out_type='cls_token'; expected 'raw'",
        ),
        ("BlipRetrieval", {"head": {"use_distill": False}}, "head has use_distill=False"),
        ("BlipNLVR", {"vision_backbone": {"final_norm": True, "layer_cfgs": {"ffn_type": "swiglu_fused"}}}, "SwiGLUFFNFused"),
    ],
)
def test_hosts_that_cannot_be_trimmed(kind, changes, message):
    model = CASES[kind]["model"]
    model = {**model, **{name: {**model[name], **value} for name, value in changes.items()}}
    with pytest.raises(ValueError, match=message):
        MODELS.build({**CASES[kind], "model": model})


@pytest.mark.parametrize(("kind", "part"), [("BlipNLVR", "multimodal_backbone"), ("BlipGrounding", "multimodal_encoder")])
def test_texts_that_read_no_image(kind, part):
    model = copy.deepcopy(EVERY[kind]["model"])
    model[part].get("med_config", model[part].get("config"))["add_cross_attention"] = False
    with pytest.raises(ValueError, match=r"no layer of the text encoder reads the image: .*add_cross_attention"):
        MODELS.build({**EVERY[kind], "model": model})


def test_retrieval_names_the_settings_of_mmpretrain(monkeypatch):
    """Each is there: mmpretrain's config has the one in the model, the other in its head."""
    backbone = MODELS.build(CASES["BlipRetrieval"])
    inputs = random_inputs(backbone.input_format, lengths=[3, 4])
    assert hasattr(backbone.host, "negative_all_rank") and hasattr(backbone.host.head, "queue_size")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"2 processes.*Set model\.backbone\.model\.negative_all_rank=False"):
        backbone.prepare(inputs)
    with pytest.raises(ValueError, match=r"Set model\.backbone\.model\.head\.queue_size to a multiple"):
        backbone.prepare(random_inputs(backbone.input_format, lengths=[3] * 5))


@pytest.mark.parametrize("kind", sorted(CASES))
def test_images_of_another_size_are_refused_by_the_name_of_the_setting(kind):
    backbone = MODELS.build(CASES[kind])
    inputs = random_inputs({**backbone.input_format, "image_size": 20}, lengths=[3, 4])
    with pytest.raises(ValueError, match=r"images are \(20, 20\) pixels.*or set the backbone's model\.") as caught:
        backbone.host_forward(inputs)
    found = CASES[kind]
    for name in str(caught.value).rpartition("backbone's ")[2].split("."):
        found = found[name]
    assert found == 16


def test_guidance_by_a_text_that_is_not_there():
    for kind in ("BlipRetrieval", "BlipCaption"):
        with pytest.raises(ValueError, match="text_first=True"):
            MODELS.build({**CASES[kind], "text_first": True})


def test_unknown_models_have_a_suggestion():
    with pytest.raises(KeyError, match=r"'BlipVqa' is not registered as a backbone for a model of mmpretrain.*'BlipVQA'"):
        MODELS.build({"type": "MMPretrainBackbone", "model": {"type": "BlipVqa"}})
    with pytest.raises(ValueError, match=r"model\.backbone\.model is a config of head; expected .* with its type"):
        MODELS.build({"type": "MMPretrainBackbone", "model": {"head": {}}})
    with pytest.raises(ValueError, match=r"model\.backbone\.model is None"):
        MODELS.build({"type": "MMPretrainBackbone"})


# ---- at native size, by mmpretrain's own config files


@pytest.mark.slow
@pytest.mark.parametrize("policy", [{"type": "Dense"}, {"type": "SmartTrim", "stable_init": False}], ids=lambda p: p["type"])
@pytest.mark.parametrize(
    ("task", "others"),
    [
        ("vqa", {"answers": [[101, 2000 + i, 3000 + i, 102] for i in range(8)], "text_first": True}),
        ("nlvr", {"text_first": True}),
        ("caption", {"tokenizer": {"type": "WordTokenizer", "words": ["a", "picture", "of"]}}),
        ("retrieval", {}),
    ],
)
def test_invariants_at_native_size(task, others, policy):
    """Dense equals mmpretrain's own modules, and masked equals packed, with random weights."""
    path = Path(mmpretrain.__file__).parent / ".mim" / "configs" / "blip" / f"blip-base_8xb32_{task}.py"
    host = Config.fromfile(path).model
    backbone = {"type": "MMPretrainBackbone", "model": host, **others}
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy}).eval()
    inputs = random_inputs(model.backbone.input_format, [30, 12], [0, 0])
    with torch.no_grad():
        (masked, record), (packed, _) = model.trace(inputs, "masked"), model.trace(inputs, "packed")
        compared = {"masked": masked}
        if policy["type"] == "Dense":
            compared["mmpretrain's own"] = model.host_forward(inputs)
        else:
            assert (record.multiply_adds() < 0.75 * record.dense_multiply_adds()).all()
    differences = ", ".join(f"{float((packed - other).abs().max()):.1e} from {name}" for name, other in compared.items())
    print(f"\n{host.type}, {policy['type']}: {differences}")  # for docs/mmpretrain.md, with -s
    for other in compared.values():
        torch.testing.assert_close(packed, other, atol=1e-4, rtol=0)
