"""BLIP through LAVIS and through mmpretrain: the same weights and the same trimmers decide and answer the same."""

import re
from dataclasses import replace

import pytest
import torch

from smarttrim_mm.backbones.fusion_answers import SMALL_ANSWERS
from smarttrim_mm.backbones.lavis_host import small
from smarttrim_mm.backbones.mmpretrain import MMPretrainBackbone
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import excite, random_inputs

CASES = {case["model"]["type"]: case for case in MMPretrainBackbone.small_configs().values()}
SIZES = {**small(2), "vision": {**small(2)["vision"], "drop_path_rate": 0.0}}
LAVIS = {
    "BlipVQA": {"arch": "blip_vqa", **SIZES, "answers": SMALL_ANSWERS},
    "BlipNLVR": {"arch": "blip_nlvr", **small(7, vision={"depth": 1}), "num_classes": 2},
    "BlipCaption": {"arch": "blip_caption", **SIZES, "prompt": [101, 7, 9, 102]},
    "BlipRetrieval": {"arch": "blip_retrieval", **SIZES, "queue_size": 24, "embed_dim": 12},
}
TEXT_FIRST = {"text_first": True}
# LAVIS's names of parameters, and mmpretrain's
NAMES = {
    r"visual_encoder(_m)?\.blocks\.(\d+)\.norm(\d)": r"vision_backbone\1.layers.\2.ln\3",
    r"visual_encoder(_m)?\.blocks\.(\d+)\.attn": r"vision_backbone\1.layers.\2.attn",
    r"visual_encoder(_m)?\.blocks\.(\d+)\.mlp\.fc1": r"vision_backbone\1.layers.\2.ffn.layers.0.0",
    r"visual_encoder(_m)?\.blocks\.(\d+)\.mlp\.fc2": r"vision_backbone\1.layers.\2.ffn.layers.1",
    r"visual_encoder(_m)?\.norm\.": r"vision_backbone\1.ln1.",
    r"visual_encoder(_m)?\.patch_embed\.proj\.": r"vision_backbone\1.patch_embed.projection.",
    r"visual_encoder(_m)?\.": r"vision_backbone\1.",
    r"vision_proj(_m)?\.": r"vision_neck\1.",
    r"text_proj(_m)?\.": r"text_neck\1.",
    r"itm_head\.": "multimodal_head.fc.",
    r"cls_head\.": "head.",
    r"((image|text|idx)_queue|queue_ptr)": r"head.\1",
}
PARTS = {
    "BlipVQA": {"text_encoder.": "multimodal_backbone.", "text_decoder.": "vqa_head.decoder."},
    "BlipNLVR": {"text_encoder.": "multimodal_backbone."},
    "BlipCaption": {"text_decoder.": "seq_gen_head.decoder.", "vision_backbone.": "visual_encoder."},
    "BlipRetrieval": {"text_encoder.": "text_backbone.", "text_encoder_m.": "text_backbone_m."},
}


def renamed(kind, key):
    """mmpretrain's name of a parameter of LAVIS."""
    for pattern, name in NAMES.items():
        if re.match(pattern, key):
            key = re.sub("^" + pattern, name, key)
            break
    for theirs, own in PARTS[kind].items():
        if key.startswith(theirs):
            return own + key.removeprefix(theirs)
    return key


def converted(kind, weights):
    found = {renamed(kind, key): value for key, value in weights.items()}
    if "temp" in found:
        found["head.temp"] = found["temp"]
    return found


def as_lavis_has_it(model):
    name = "vision_encoder" if "vision_encoder" in model else "vision_backbone"
    return {**model, name: {**model[name], "drop_path_rate": 0.0, "pre_norm": False}}


def both(kind, **others):
    policy = {"type": "SmartTrim", "stable_init": False}
    lavis = MODELS.build(
        {"type": "TrimmedVLM", "backbone": {"type": "LavisBackbone", **LAVIS[kind], **others}, "policy": policy}
    )
    case = {key: value for key, value in CASES[kind].items() if key != "text_first"}
    backbone = {**case, "model": as_lavis_has_it(case["model"]), **others}
    mmpretrain = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy})
    excite(lavis.backbone)
    excite(lavis.policy)
    mmpretrain.backbone.host.load_state_dict(converted(kind, lavis.backbone.host.state_dict()))
    mmpretrain.policy.load_state_dict(lavis.policy.state_dict())
    return lavis.eval(), mmpretrain.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["packed", "masked"])
@pytest.mark.parametrize(
    ("name", "others"),
    [("BlipVQA", {}), ("BlipVQA", TEXT_FIRST), ("BlipNLVR", TEXT_FIRST), ("BlipCaption", {}), ("BlipRetrieval", {})],
)
def test_decisions_and_outputs(name, others, kind):
    lavis, mmpretrain = both(name, **others)
    inputs = random_inputs(lavis.backbone.input_format, (9, 4, 2, 7), (0, 1, 2, 2))
    given = inputs
    if name == "BlipNLVR":  # LAVIS replaces [CLS] by [ENC] there, and mmpretrain does not
        given = replace(inputs, input_ids=inputs.input_ids.clone())
        given.input_ids[:, 0] = lavis.backbone.enc_token_id
        mmpretrain.backbone.embed_text = first_embedded(mmpretrain.backbone, inputs)
    expected, decided = lavis.trace(inputs, kind)
    found, record = mmpretrain.trace(given, kind)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    cut = 0
    for one, other in zip(record.steps, decided.steps, strict=True):
        assert one.step.name == other.step.name
        for stream, layout in other.tokens.items():
            assert torch.equal(one.tokens[stream].kept_grid(), layout.kept_grid()), (one.step.name, stream)
            cut += int((~layout.kept_grid()).sum())
        for attention, heads in other.heads.items():
            assert torch.equal(one.heads[attention] > 0, heads > 0), (one.step.name, attention)
            cut += int((heads == 0).sum())
    assert cut > 20
    torch.testing.assert_close(record.multiply_adds(), decided.multiply_adds())
    if name == "BlipRetrieval":
        return
    # and so do the hosts themselves, untrimmed
    torch.testing.assert_close(mmpretrain.host_forward(given), lavis.host_forward(inputs), atol=1e-5, rtol=1e-5)


def first_embedded(backbone, inputs):
    """mmpretrain's [CLS] guides the image encoder in LAVIS too."""
    own = backbone.embed_text

    def embed(given, first, encodes):
        ahead = embed.calls == 0
        embed.calls += 1
        return own(inputs if ahead else given, first, encodes)

    embed.calls = 0
    return embed


def test_a_training_step_of_retrieval():
    """Losses of both, momentum copies and queues included."""
    lavis, mmpretrain = both("BlipRetrieval")
    with torch.no_grad():
        for one in (lavis, mmpretrain):
            one.backbone.host.temp.fill_(0.07)
            one.backbone.host.copy_params()
    mmpretrain.backbone.queue.alpha = lavis.backbone.queue.alpha
    inputs = replace(random_inputs(lavis.backbone.input_format, (9, 4, 2, 7)), image_ids=torch.tensor([7, 3, 7, 9]))
    losses = []
    for one in (lavis, mmpretrain):
        one.task_loss = MODELS.build({"type": "ContrastAndMatching"})
        torch.manual_seed(0)
        losses.append(one.loss(inputs))
    for name in ("loss_itc", "loss_itm"):
        torch.testing.assert_close(losses[0][name], losses[1][name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        mmpretrain.backbone.host.state_dict(),
        converted("BlipRetrieval", lavis.backbone.host.state_dict()),
        atol=1e-5,
        rtol=1e-5,
    )
