"""mmpretrain's BlipGrounding under no policy and under one; the reference is mmpretrain's own model with its own tokenizer."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmpretrain.structures import DataSample

from smarttrim_mm.backbones.given_tokens import CoordinateTokens
from smarttrim_mm.backbones.mmpretrain_grounding import BlipGrounding
from smarttrim_mm.backbones.mmpretrain_host import build_host
from smarttrim_mm.registry import METRICS, MODELS, TOKENIZERS
from smarttrim_mm.testing import Replay, count_multiply_adds, excite

WORDS = ["the", "left", "red", "dog", "person", "in", "front", "of", "table"]
TEXTS = ["the left dog", "person", "the red table in front of the person"]
BOXES = [[2.0, 3.0, 9.0, 16.0], [0.0, 0.0, 16.0, 16.0], [5.5, 1.0, 7.0, 2.25]]  # in images of 16 pixels
SCALES = [(0.5, 0.25), (2.0, 1.0), (1.0, 4.0)]


@pytest.fixture
def folder(tmp_path):
    """BERT's tokenizer with few words."""
    unused = [f"[unused{i}]" for i in range(994)]
    tokens = ["[PAD]", *unused[:99], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *unused[99:], *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return str(tmp_path)


@pytest.fixture
def host_config(folder):
    (case,) = BlipGrounding.variants().values()
    config = copy.deepcopy(case["model"])
    for part in (config["text_encoder"], config["multimodal_encoder"], config["head"]["decoder"]):
        part["med_config"]["vocab_size"] = 999 + len(WORDS) + 2
    return {**config, "tokenizer": {"type": "BlipTokenizer", "name_or_path": folder}}


@pytest.fixture
def build(host_config):
    def make(policy="Dense", text_first=False, **others):
        model = MODELS.build(
            {
                "type": "TrimmedVLM",
                "backbone": {"type": "MMPretrainBackbone", "model": host_config, "text_first": text_first},
                "policy": {"type": policy, **({"keep_ratio": 0.7} if policy == "Random" else {})},
                "task_loss": {"type": "BoxGeneration"},
                "data_preprocessor": {"type": "VisionLanguagePreprocessor", "pad_id": 0, "special_ids": (101, 102)},
                **others,
            }
        ).eval()
        excite(model.backbone)
        with torch.no_grad():  # so that what is written depends on what is read, and where
            model.backbone.decoder.bert.embeddings.position_embeddings.weight.mul_(4)
            for layer in model.backbone.decoder.bert.encoder.layer:
                layer.crossattention.self.query.weight.mul_(8)
                layer.crossattention.output.dense.weight.mul_(4)
        return model

    return make


@pytest.fixture
def official(host_config):
    """mmpretrain's model with the weights of one of ours."""

    def make(model):
        host = build_host(host_config).eval()
        buffers = dict(host.named_buffers())
        for name in ("prefix_ids", "target_ids", "bbox_prob_mask"):
            assert torch.equal(buffers[f"grounding_head.{name}"], getattr(model.backbone.host.grounding_head, name))
        host.load_state_dict(model.backbone.host.state_dict())
        return host

    return make


@pytest.fixture
def batch(folder):
    """Items as a pipeline gives them."""
    tokenizer = TOKENIZERS.build({"type": "PretrainedTokenizer", "name_or_path": folder})
    items = []
    for i, (text, box, scale) in enumerate(zip(TEXTS, BOXES, SCALES, strict=True)):
        sample = DataSample(
            text=text,
            questions=[text],
            input_ids=[tokenizer(text, 64).tolist()],
            question_ids=torch.tensor([i]),
            image_id=i,
            gt_bboxes=torch.tensor([box]),
            scale_factor=scale,
        )
        items.append({"inputs": torch.randint(256, (3, 16, 16), dtype=torch.uint8), "data_samples": sample})
    return pseudo_collate(items)


def of_mmpretrain(samples):
    """The samples as mmpretrain's model reads them."""
    given = copy.deepcopy(samples)
    for sample in given:
        sample.set_field(sample.gt_bboxes[0].numpy(), "box")
        sample.set_metainfo({"img_shape": (16, 16)})
    return given


def test_losses_and_a_steps_gradients_are_mmpretrains(build, official, batch):
    model = build()
    host = official(model)
    data = model.data_preprocessor(batch, True)
    expected = host.loss(data["inputs"].images, of_mmpretrain(data["data_samples"]))
    total, _ = host.parse_losses(dict(expected))
    losses = model(**data, mode="loss")
    found, _ = model.parse_losses(losses)
    torch.testing.assert_close(found, expected["loss_seq_init"])  # the others have no gradients
    for name, coefficient in (("box_l1", 4), ("box_giou", 2)):
        torch.testing.assert_close(coefficient * losses[name], expected[name])
    total.backward()
    found.backward()
    reference = {name: p.grad for name, p in host.named_parameters() if p.grad is not None}
    gradients = {name: p.grad for name, p in model.backbone.host.named_parameters() if p.grad is not None}
    assert gradients.keys() == reference.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    asked = {name for name, p in model.backbone.host.named_parameters() if p.requires_grad}
    assert asked == gradients.keys(), "processes that train together would wait for the others"


@pytest.mark.parametrize("text_first", [False, True])
def test_boxes_are_mmpretrains(build, official, batch, text_first):
    model = build(text_first=text_first)
    host = official(model)
    data = model.data_preprocessor(batch, False)
    assert data["inputs"].targets is None
    given = of_mmpretrain(data["data_samples"])
    with torch.no_grad():
        expected = host.predict(data["inputs"].images, given)
        found = model(**data, mode="predict")
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.pred_bboxes, theirs.pred_bboxes)
        torch.testing.assert_close(ours.gt_bboxes, theirs.gt_bboxes)
    torch.testing.assert_close(found[0].gt_bboxes, torch.tensor([[4.0, 12.0, 18.0, 64.0]]))
    assert torch.pdist(torch.cat([sample.pred_bboxes for sample in found])).min() > 0.1
    for samples in (found, expected):
        samples[1].gt_bboxes = samples[1].pred_bboxes.clone()
    scores = []
    for samples in (found, expected):
        metric = METRICS.build({"type": "mmpretrain.VisualGroundingMetric"})
        metric.process(None, [sample.to_dict() for sample in samples])
        scores.append(metric.evaluate(len(samples)))
    assert scores[0] == pytest.approx(scores[1]) and scores[0]["visual-grounding/acc"] >= 1 / 3


def test_texts_of_one_image_have_a_box_each(build, batch):
    model = build()
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        alone = model(**copy.deepcopy(data), mode="predict")
        inputs = replace(data["inputs"], images=data["inputs"].images[:2], image_index=torch.tensor([0, 0, 1]))
        samples = [DataSample(questions=TEXTS[:2]), DataSample(questions=TEXTS[2:])]
        together = model(replace(inputs, image_ids=inputs.image_ids[:2]), samples, mode="predict")
    assert [len(sample.pred_bboxes) for sample in together] == [2, 1]
    torch.testing.assert_close(together[0].pred_bboxes[0], alone[0].pred_bboxes[0] * torch.tensor([0.5, 0.25] * 2))


@pytest.mark.parametrize("text_first", [False, True])
@torch.no_grad()
def test_coordinates_under_a_policy(build, batch, text_first):
    """Masked and packed, in a batch and alone, agree on the same decisions; what is counted is what torch multiplied."""
    model = build("Random", text_first=text_first)
    inputs = model.data_preprocessor(batch, True)["inputs"]
    model.policy.train()
    masked, record = model.trace(inputs, "masked")
    assert masked.shape == (12, 641)
    assert float(record.multiply_adds().sum()) < 0.9 * float(record.dense_multiply_adds().sum())
    packed, again = model.trace(inputs, "packed", Replay(record))
    torch.testing.assert_close(packed, masked, atol=1e-4, rtol=0)
    torch.testing.assert_close(again.multiply_adds(), record.multiply_adds())
    for i in range(3):
        one = torch.tensor([i])
        (alone, own), counted = count_multiply_adds(
            lambda one=one: model.trace(inputs.select(one), "packed", Replay(record, one))
        )
        torch.testing.assert_close(alone, masked[4 * i : 4 * i + 4], atol=1e-4, rtol=0)
        assert float(own.multiply_adds()) == pytest.approx(counted, rel=0.01)


@torch.no_grad()
def test_given_the_written_coordinates_the_decoder_writes_them_again(build, batch):
    """What it is taught by is what it writes by."""
    model = build()
    data = model.data_preprocessor(batch, True)
    inputs = data["inputs"]
    _, steps = model.backbone._locate(
        3, model.backbone._decoder_of_both(inputs, model.execution(inputs, "packed", model.dense))
    )
    boxes = replace(inputs.targets, boxes=(steps + 0.5) / 640)
    logits = model(replace(inputs, targets=boxes))
    assert torch.equal(logits.argmax(-1).view(3, 4), steps) and len(steps.unique()) > 3
    torch.testing.assert_close(logits[::4], model(replace(inputs, targets=None)))
    torch.testing.assert_close(logits, model.host_forward(replace(inputs, targets=boxes)), atol=1e-4, rtol=0)


def test_distillation(build, batch):
    distillation = {"type": "SelfDistillation", "dense_task_weight": 0.5}
    dense, trimmed = (build(policy, distillation=distillation) for policy in ("Dense", "Random"))
    losses = dense.loss(dense.data_preprocessor(batch, True)["inputs"])
    assert float(losses["loss_distill"]) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(losses["loss_dense_task"], 0.5 * losses["loss_task"])
    trimmed.train()
    losses = trimmed.loss(trimmed.data_preprocessor(batch, True)["inputs"])
    assert float(losses["loss_distill"]) > 0.1 and losses["speedup"] > 1


def test_dropped_image_tokens_make_the_decoder_cheaper(build, batch):
    """Each token of either stream is one key and one value in each layer and run of the decoder, and read by its queries."""
    model = build("Random")
    inputs = model.data_preprocessor(batch, False)["inputs"]
    with torch.no_grad():
        model.policy.train()
        _, record = model.trace(inputs)
    runs = [entry for entry in record.entries if getattr(entry, "name", "") == "decoder.box"]
    assert [entry.stream for entry in runs] == ["image", "text"] * 4
    width, layers = 24, 2
    for number, entry in enumerate(runs):
        tokens = number // 2 + 1
        assert entry.multiply_adds.tolist() == [layers * (2 * width * width + 2 * tokens * width)] * 3
    assert (runs[0].layout.counts() < runs[0].layout.full()).all()


def test_ids_are_those_of_berts_vocabulary():
    tokens = CoordinateTokens(vocab_size=30524, pad_token_id=0)
    asked = ["[unused0]", "[unused98]", "[unused99]", "[unused339]", "[unused993]"]
    assert tokens.convert_tokens_to_ids(asked) == [1, 99, 104, 344, 998]
    for wrong in ("[unused994]", "[CLS]"):
        with pytest.raises(ValueError, match=r"expected \[unused0\] to \[unused993\]"):
            tokens.convert_tokens_to_ids([wrong])


def test_what_cannot_be_built_is_refused(host_config):
    small, narrow = copy.deepcopy(host_config), copy.deepcopy(host_config)
    for part in (small["text_encoder"], small["multimodal_encoder"], small["head"]["decoder"]):
        part["med_config"]["vocab_size"] = 120
    with pytest.raises(ValueError, match=r"vocab_size is 120, and \[unused339\] is number 344"):
        MODELS.build({"type": "MMPretrainBackbone", "model": small})
    narrow["visual_encoder"]["arch"]["embed_dims"] = 32
    for part in (narrow["multimodal_encoder"], narrow["head"]["decoder"]):
        part["med_config"]["encoder_width"] = 32
    with pytest.raises(ValueError, match="visual_encoder has width 32 and multimodal_encoder 24"):
        MODELS.build({"type": "MMPretrainBackbone", "model": narrow})


def test_it_starts_from_mmpretrains_file(build, official, host_config, tmp_path):
    host = official(build())
    torch.save({"state_dict": host.state_dict(), "meta": {}}, tmp_path / "public.pth")
    started = MODELS.build({"type": "MMPretrainBackbone", "model": host_config, "checkpoint": str(tmp_path / "public.pth")})
    started.init_weights()
    expected, found = host.state_dict(), started.host.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
