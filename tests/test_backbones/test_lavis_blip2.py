"""BLIP-2's matching models of LAVIS: what the contract tests do not see."""

import re
from dataclasses import replace

import pytest
import torch

from smarttrim_mm.backbones.lavis_checkpoint import plain_weights
from smarttrim_mm.engine import lavis_conversion
from smarttrim_mm.models.all_pairs import PairScorer
from smarttrim_mm.registry import LAVIS_ARCHS, MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs

CASES = {name.partition("/")[2]: case for name, case in backbone_cases().items() if name.startswith("LavisBackbone/blip2")}
EVA, CLIP = "blip2_image_text_matching text first", "blip2_qformer shared images"
SMARTTRIM = {"type": "SmartTrim", "stable_init": False}
BLOCK = {EVA: "blocks", CLIP: "transformer.resblocks"}


def build(name, seed=0, **changes):
    backbone = MODELS.build({**CASES[name], **changes}).eval()
    excite(backbone, seed)
    return backbone


@pytest.fixture
def files(tmp_path):
    """What LAVIS saves of a model with a frozen image encoder, and the encoder's own file with more layers."""

    def make(name, **changes):
        host = build(name, seed=1, **changes).host
        weights = host.state_dict()
        vision = {key: value.clone() for key, value in host.visual_encoder.state_dict().items()}
        block = next(key for key in vision if key.startswith(f"{BLOCK[name]}.0."))
        vision[block.replace(".0.", ".7.")] = vision["norm.weight"] = torch.zeros(2)
        torch.save(vision, tmp_path / "vision.pth")
        kept = {key: value for key, value in weights.items() if not key.startswith("visual_encoder.")}
        torch.save({"model": kept}, tmp_path / "public.pth")
        return weights, {"checkpoint": str(tmp_path / "public.pth"), "vision_checkpoint": str(tmp_path / "vision.pth")}

    return make


def test_names_of_lavis():
    names = {"blip2_qformer": "Blip2Qformer", "blip2_image_text_matching": "Blip2ITM"}
    for arch, name in names.items():
        assert LAVIS_ARCHS.get(arch).lavis_class(arch).__name__ == name
        assert set(LAVIS_ARCHS.get(arch).lavis_class(arch).PRETRAINED_MODEL_CONFIG_DICT) == {
            "pretrain",
            "pretrain_vitL",
            "coco",
        }


def test_sizes_are_those_of_lavis():
    """The paper (arXiv 2301.12597) states 188 M parameters of the Q-Former."""
    backbone = MODELS.build({"type": "LavisBackbone", "arch": "blip2_qformer", "vision": {"depth": 1}})
    host = backbone.host
    assert sum(weight.numel() for weight in host.Qformer.bert.parameters()) == pytest.approx(188e6, rel=0.015)
    assert host.query_tokens.shape == (1, 32, 768) and host.vision_proj.out_features == 256
    shape = backbone.input_format
    assert (shape["image_size"], shape["vocab_size"], shape["begin_id"], shape["end_id"]) == (224, 30523, 101, 102)
    assert host.tokenizer.bos_token_id == 30522 and len(host.tokenizer) == 30523
    block = host.visual_encoder.blocks[0]
    assert (block.attn.num_heads, block.mlp.fc1.weight.shape) == (16, (6144, 1408)) and block.norm1.eps == 1e-6
    assert [len(step.memories) for step in backbone.steps["fusion"]] == [1, 0] * 6
    assert {weight.dtype for weight in host.parameters()} == {torch.float32}


@pytest.mark.parametrize(("model_type", "size", "frozen"), [("pretrain", 224, True), ("coco", 364, False)])
def test_settings_are_those_of_the_config_file(model_type, size, frozen):
    case = {key: value for key, value in CASES[EVA].items() if key != "freeze_vit"}
    vision = {**case["vision"], "patch_size": 28}
    del vision["img_size"]
    host = MODELS.build({**case, "vision": vision, "model_type": model_type}).host
    assert host.visual_encoder.image_size == size
    assert all(weight.requires_grad is not frozen for weight in host.visual_encoder.parameters())


def test_half_precision_is_for_who_asks():
    vit = MODELS.build({**CASES[CLIP], "vit_precision": "fp16"}).host.visual_encoder
    assert vit.conv1.weight.dtype == torch.float16 and vit.ln_pre.weight.dtype == torch.float32


def test_a_frozen_image_encoder_is_trimmed_all_the_same():
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[CLIP], "policy": SMARTTRIM}).train()
    excite(model.backbone)
    vit = model.backbone.host.visual_encoder
    assert not any(module.training for module in vit.modules()) and model.backbone.host.Qformer.training
    model.loss(random_inputs(model.backbone.input_format, [9, 4, 7], [0, 0, 1]))["loss_task"].backward()
    assert all(weight.grad is None for weight in vit.parameters())
    trimmers = [weight.grad for name, weight in model.policy.named_parameters() if ".image_" in name]
    assert len(trimmers) > 10 and all(gradient is not None for gradient in trimmers)


def test_the_guide_is_the_text_alone(monkeypatch):
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[EVA], "policy": SMARTTRIM}).eval()
    excite(model.backbone)
    inputs = random_inputs(model.backbone.input_format, [9, 4, 7], [0, 0, 1])
    seen = []
    before_layer = model.policy.before_layer
    monkeypatch.setattr(model.policy, "before_layer", lambda *args: seen.append(args[2]) or before_layer(*args))
    with torch.no_grad():
        model(inputs)
        words = model.backbone.samples_of(inputs)["text_input"]
        torch.testing.assert_close(seen[0]["text"], model.backbone.host.forward_text(words))


# ---- checkpoints


@pytest.mark.parametrize("name", [EVA, CLIP])
def test_an_image_encoder_in_a_file_of_its_own(files, name):
    expected, paths = files(name)
    backbone = build(name, **paths)
    backbone.init_weights()
    own = backbone.host.state_dict()
    assert all(torch.equal(own[key], expected[key]) for key in expected)
    left_out = backbone.load(paths["checkpoint"]).left_out
    assert len(left_out) == 2 and set(left_out.values()) == {"part of the image encoder's file that LAVIS leaves out"}


def test_without_it_nothing_is_loaded(files):
    _, paths = files(CLIP)
    backbone = build(CLIP)
    before = {key: value.clone() for key, value in backbone.host.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing.*(.|\n)*no image encoder.*vision_checkpoint.*eva_vit_g\.pth"):
        backbone.load(paths["checkpoint"])
    assert all(torch.equal(value, before[key]) for key, value in backbone.host.state_dict().items())


def test_a_fine_tuned_image_encoder_comes_first(files, tmp_path):
    expected, paths = files(EVA)
    torch.save(
        {"model": {**expected, "visual_encoder.cls_token": torch.full_like(expected["visual_encoder.cls_token"], 3.0)}},
        paths["checkpoint"],
    )
    backbone = build(EVA, **paths)
    backbone.init_weights()
    assert (backbone.host.visual_encoder.cls_token == 3).all()


@pytest.mark.parametrize(("name", "table"), [(EVA, "pos_embed"), (CLIP, "positional_embedding")])
def test_positions_are_resized(files, name, table):
    vision = CASES[name]["vision"]
    size = next(key for key in ("img_size", "input_resolution") if key in vision)
    expected, paths = files(name)
    backbone = build(name, vision={**vision, size: 24}, **paths)
    found = backbone.load(paths["checkpoint"])
    assert found.changed == {f"visual_encoder.{table}": "resized bicubically from 4 x 4 to 6 x 6 patches, class row kept"}
    resized = getattr(backbone.host.visual_encoder, table).flatten(0, -2)
    assert len(resized) == 37 and torch.equal(resized[0], expected[f"visual_encoder.{table}"].flatten(0, -2)[0])


def test_there_and_back(files, tmp_path):
    expected, paths = files(CLIP)
    case = {**CASES[CLIP], "vision_checkpoint": paths["vision_checkpoint"]}
    config, ours, theirs = (str(tmp_path / name) for name in ("small.py", "ours.pth", "theirs.pth"))
    (tmp_path / "small.py").write_text(f"model = dict(type='TrimmedVLM', backbone={case!r}, policy=dict(type='SmartTrim'))\n")
    lavis_conversion.main(["import", config, paths["checkpoint"], ours])
    content = torch.load(ours, weights_only=True)["state_dict"]
    assert plain_weights(content).keys() == expected.keys()
    lavis_conversion.main(["export", ours, theirs])
    weights = torch.load(theirs, weights_only=True)["model"]
    assert all(torch.equal(weights[key], expected[key]) for key in expected) and weights.keys() == expected.keys()


# ---- errors


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        (EVA, {"vit_model": "clip_B"}, ValueError, "vit_model is 'clip_B'; expected one of ['eva_clip_g', 'clip_L']"),
        (EVA, {"queries": 3}, TypeError, "LAVIS's Blip2ITM has no queries; it has vit_model, img_size"),
        (EVA, {"decoder": {"num_hidden_layers": 2}}, ValueError, "LAVIS's blip2_image_text_matching has no decoder"),
        (CLIP, {"model_type": "caption"}, ValueError, "LAVIS's blip2_qformer has 'pretrain', 'pretrain_vitL', 'coco'"),
        (EVA, {"share_images": True}, ValueError, "text_first=True and share_images=True exclude each other"),
        (EVA, {"ranks_texts": True}, ValueError, "text_first=True and ranks_texts=True exclude each other"),
    ],
    ids=["image encoder", "option", "decoder", "model type", "sharing", "ranking"],
)
def test_errors_of_the_config(name, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        MODELS.build({**CASES[name], **changes})


@pytest.mark.parametrize(
    "part", [{"use_shared_rel_pos_bias": True}, {"use_rel_pos_bias": True}, {"init_values": 0.1}, {"use_abs_pos_emb": False}]
)
def test_parts_that_views_do_not_cover(part):
    (name,) = part
    with pytest.raises(ValueError, match=rf"vision has {name}.*; expected absolute positions, no relative ones"):
        build(EVA, vision={**CASES[EVA]["vision"], **part})


def test_images_of_another_size():
    backbone = build(CLIP)
    inputs = random_inputs({**backbone.input_format, "image_size": 24}, [3])
    with pytest.raises(ValueError, match=r"images are \(24, 24\) pixels; expected 16 by 16"):
        backbone.host_forward(inputs)


# ---- retrieval


@pytest.mark.parametrize("policy", [{"type": "Dense"}, {"type": "Random", "keep_ratio": 0.7}, SMARTTRIM])
@torch.no_grad()
def test_all_pairs(policy):
    """Each text and each image encoded once gives the scores of every pair on its own: its matching and its cosine."""
    preprocessor = {"type": "VisionLanguagePreprocessor", "pad_id": 0, "special_ids": [101, 102]}
    config = {"backbone": {**CASES[CLIP], "ranks_texts": True}, "policy": policy, "data_preprocessor": preprocessor}
    model = MODELS.build({"type": "TrimmedVLM", **config}).eval()
    excite(model.backbone)
    inputs = random_inputs(model.backbone.input_format, [9, 4, 2, 7, 9, 3], [0, 0, 1, 1, 1, 2])
    texts = [ids[mask].tolist() for ids, mask in zip(inputs.input_ids, inputs.text_mask, strict=True)]
    batches = [model.data_preprocessor.texts(texts[i : i + 4], inputs.sample_ids[i : i + 4]) for i in (0, 4)]
    scorer = PairScorer(model, batches, pairs_per_batch=4)
    scores, trim = scorer.score(inputs, images=3)
    every = inputs.all_pairs()
    for kind in ("packed", "masked"):
        together, record = model.trace(every, kind)
        torch.testing.assert_close(scores, together, atol=1e-4, rtol=1e-4)
    near = scorer.similarities(scorer.encode(inputs))
    assert near.shape == scores.shape == (3, 6) and scores.std() > 0.1 and near.std() > 0.005 and near.abs().max() < 1
    pairs = replace(every.unshared(), pairs_per_sample=1, targets=None)
    fits = model.trace(pairs)[0]
    assert fits.shape == (18, 2)
    torch.testing.assert_close(fits[:, 1].view(3, 6) + near, scores, atol=1e-4, rtol=1e-4)
    # an image's sample has its encoding, all fusions, and the texts, which three images share
    texts = [entry for entry in record.steps if entry.step.stage == "ahead"]
    share = sum(float(entry.dense().sum()) for entry in texts) + 6 * 32 * 256
    saved = record.dense_multiply_adds().double() - trim["dense_multiply_adds"]
    torch.testing.assert_close(saved, torch.full((3,), share * 2 / 3, dtype=torch.double), rtol=1e-5, atol=1)


@torch.no_grad()
def test_alternatives_are_for_a_model_that_ranks():
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[CLIP], "policy": {"type": "Dense"}}).eval()
    inputs = random_inputs(model.backbone.input_format, [3, 4])
    with pytest.raises(ValueError, match="a sample of the batch has 2 image-text pairs"):
        model.trace(inputs.all_pairs())
    with pytest.raises(TypeError, match=r"no ranking head.*BLIP-2: ranks_texts=True"):
        PairScorer(model, [inputs])
