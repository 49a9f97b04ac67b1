"""mmpretrain's classifiers beyond what the contracts ask."""

import copy

import numpy as np
import pytest
import torch
from mmengine.runner import save_checkpoint
from mmpretrain.structures import DataSample

from smarttrim_mm.backbones.mmpretrain_checkpoint import convert_public, plain_weights
from smarttrim_mm.backbones.mmpretrain_host import build_host
from smarttrim_mm.backbones.mmpretrain_vit import MMPretrainClassifier, mean_of_patches
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.inputs import VLMInputs
from smarttrim_mm.registry import MODELS
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import excite, random_inputs

SMALL = {name: {"type": "MMPretrainBackbone", **case} for name, case in MMPretrainClassifier.variants().items()}
BASE = {
    "type": "ImageClassifier",
    "backbone": {"type": "VisionTransformer", "arch": "b", "img_size": 224, "patch_size": 16, "drop_rate": 0.1},
    "head": {"type": "VisionTransformerClsHead", "num_classes": 1000, "in_channels": 768},
}


def changed(name: str = "class token", head: dict | None = None, **backbone: object) -> dict:
    config = copy.deepcopy(SMALL[name]["model"])
    config["backbone"].update(backbone)
    config["head"].update(head or {})
    return config


def trimmed(config: dict, policy: str = "Dense") -> torch.nn.Module:
    model = MODELS.build({"type": "TrimmedVLM", "backbone": config, "policy": {"type": policy}}).eval()
    excite(model.backbone)
    return model


@pytest.mark.parametrize("name", SMALL)
def test_predictions_are_mmpretrains(name):
    model = trimmed(SMALL[name])
    inputs = random_inputs(model.backbone.input_format, [0] * 5)
    with torch.no_grad():
        expected = model.backbone.host(inputs.images, [DataSample() for _ in range(5)], mode="predict")
        found = model(inputs, [DataSample() for _ in range(5)], mode="predict")
        assert torch.equal(model.host_forward(inputs), model.backbone.host(inputs.images))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.pred_label, theirs.pred_label)
        torch.testing.assert_close(ours.pred_score, theirs.pred_score, atol=1e-6, rtol=1e-5)
        assert ours.trim["multiply_adds"].shape == (1,)
        assert torch.equal(ours.trim["multiply_adds"], ours.trim["dense_multiply_adds"])


def test_images_of_another_size():
    """The position table is resized on the way, as mmpretrain does."""
    model = trimmed(SMALL["class token"])
    inputs = VLMInputs.of_images(torch.randn(2, 3, 32, 16), torch.arange(2))
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), model.host_forward(inputs), atol=1e-5, rtol=1e-5)


def test_the_mean_is_of_what_is_kept():
    x = torch.randn(2, 4, 3)
    keep = torch.tensor([[True, False, True, True], [True, False, False, False]])
    expected = torch.stack([(x[0, 2] + x[0, 3]) / 2, torch.zeros(3)])
    for stream in (TokenStream.start(x, ids=torch.arange(2)), TokenStream.start(x, ids=torch.arange(2)).pack()):
        torch.testing.assert_close(mean_of_patches(stream.select(stream.layout.from_grid(keep))), expected)


def test_guidance_is_local_and_of_the_class_token():
    model = trimmed(SMALL["class token"], "SmartTrim")
    trimmers = model.policy.token_trimmers
    assert list(trimmers) == ["image_0/image", "image_1/image", "image_2/image"]
    assert all(trimmer.guides == ("image",) and trimmer.fc1 is not None for trimmer in trimmers.values())


def test_frozen_stages_are_not_trained():
    model = trimmed({"type": "MMPretrainBackbone", "model": changed(frozen_stages=2)}, "SmartTrim").train()
    model.loss(random_inputs(model.backbone.input_format, [0] * 4))["loss_task"].backward()
    vit = model.backbone.host.backbone
    assert all(p.grad is None for layer in vit.layers[:2] for p in layer.parameters()) and vit.pos_embed.grad is None
    assert all(p.grad is not None for p in vit.layers[2].parameters())
    assert all(p.grad is not None for p in model.policy.parameters())


REFUSED = {
    "neck is GlobalAveragePooling; expected None": {**changed(), "neck": {"type": "GlobalAveragePooling"}},
    "backbone is DistilledVisionTransformer": changed(type="DistilledVisionTransformer"),
    "head is StackedLinearClsHead": changed("averaged", {"type": "StackedLinearClsHead", "mid_channels": [8]}),
    "with_cls_token is False": changed("averaged", with_cls_token=False),
    "out_type is 'raw'": changed(out_type="raw"),
    r"out_indices is \[0, 2\]; expected the last layer alone": changed(out_indices=[0, 2]),
    "train_cfg.augments is set": {**changed(), "train_cfg": {"augments": {"type": "Mixup", "alpha": 0.2}}},
    "model is VisionTransformer; expected ImageClassifier": changed()["backbone"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_trimmed_is_refused(message):
    with pytest.raises(ValueError, match=message):
        MMPretrainClassifier(model=REFUSED[message])


def test_texts_are_refused():
    model = trimmed(SMALL["class token"])
    shape = {**model.backbone.input_format, "vocab_size": 9, "begin_id": 0, "end_id": 1, "pad_id": 2}
    for forward in (model, model.host_forward):
        with pytest.raises(ValueError, match="the batch has 2 texts, and an image classifier reads none"):
            forward(random_inputs(shape, [4, 3]))


def test_a_checkpoint_of_mmpretrain_is_loaded(tmp_path):
    """As mmengine saves it, from another image size and with other classes."""
    theirs = build_host(changed(img_size=16))
    excite(theirs)
    save_checkpoint(
        {"meta": {"epoch": 3}, "state_dict": {**theirs.state_dict(), "data_preprocessor.mean": torch.zeros(3)}},
        str(tmp_path / "public.pth"),
    )
    ours = MMPretrainClassifier(model=changed(), checkpoint=str(tmp_path / "public.pth"))
    ours.init_weights()
    found, given = ours.host.state_dict(), theirs.state_dict()
    assert all(torch.equal(found[key], given[key]) for key in given if not key.endswith("pos_embed"))
    vit = theirs.backbone
    table = vit.resize_pos_embed(vit.pos_embed, (4, 4), (6, 6), "bicubic", 1)
    assert torch.equal(found["backbone.pos_embed"], table)
    report = ours.load(str(tmp_path / "public.pth"))
    assert report.left_out == {"data_preprocessor.mean": "pre-processing"} and not report.initialised
    assert report.changed == {"backbone.pos_embed": "resized (bicubic) from 4 x 4 to 6 x 6 patches, class row kept"}
    other = MMPretrainClassifier(model=changed(head={"num_classes": 3}))
    before = copy.deepcopy(other.host.head.state_dict())
    report = other.load(str(tmp_path / "public.pth"))
    assert {key.partition(".")[0] for key in report.initialised} == {"head"}
    assert all(torch.equal(value, other.host.head.state_dict()[key]) for key, value in before.items())
    assert torch.equal(other.host.backbone.cls_token, theirs.backbone.cls_token)


def test_a_checkpoint_that_does_not_fit_is_refused():
    host = build_host(changed())
    whole = host.state_dict()
    with pytest.raises(ValueError, match=r"1 missing: backbone\.cls_token"):
        convert_public({key: value for key, value in whole.items() if key != "backbone.cls_token"}, host)
    with pytest.raises(ValueError, match=r"1 unexpected: backbone\.mask_token"):
        convert_public({**whole, "backbone.mask_token": torch.zeros(1)}, host)
    with pytest.raises(ValueError, match=r"1 of another shape: backbone\.cls_token \(1, 1, 8\), the model's \(1, 1, 32\)"):
        convert_public({**whole, "backbone.cls_token": torch.zeros(1, 1, 8)}, host)


def test_our_checkpoints_are_told_apart_and_become_mmpretrains(tmp_path):
    model = trimmed(SMALL["averaged"], "SmartTrim")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "ours.pth")
    with pytest.raises(ValueError, match="is a checkpoint of this package"):
        model.backbone.load(str(tmp_path / "ours.pth"))
    host = build_host(SMALL["averaged"]["model"])
    host.load_state_dict(plain_weights(model.state_dict()))
    with pytest.raises(ValueError, match="no key begins with"):
        plain_weights({"backbone.vit": torch.zeros(1)})


@pytest.mark.parametrize("augments", [None, {"augments": [{"type": "Mixup", "alpha": 0.8}]}])
def test_pre_processing_is_mmpretrains(augments):
    options = {"mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0], "to_rgb": True, "num_classes": 7, "batch_augments": augments}
    ours = MODELS.build({"type": "ImagePreprocessor", **options})
    theirs = build_host({"type": "ClsDataPreprocessor", **options})
    images = [torch.randint(256, (3, 8, 8), dtype=torch.uint8) for _ in range(3)]

    def run(preprocessor):
        samples = [DataSample(metainfo={"sample_idx": 40 + i}).set_gt_label(i) for i in range(3)]
        torch.manual_seed(0)
        np.random.seed(0)
        return preprocessor({"inputs": images, "data_samples": samples}, True)

    found, expected = run(ours), run(theirs)
    inputs = found["inputs"]
    assert torch.equal(inputs.images, expected["inputs"]) and inputs.sample_ids.tolist() == [40, 41, 42]
    assert inputs.input_ids.numel() == 0 and inputs.select(torch.tensor([2, 0])).image_ids.tolist() == [42, 40]
    if augments is None:
        assert inputs.targets.tolist() == [0, 1, 2]
    else:
        assert torch.equal(inputs.targets, torch.stack([sample.gt_score for sample in expected["data_samples"]]))
    unlabelled = ours({"inputs": images, "data_samples": None}, False)["inputs"]
    assert unlabelled.targets is None and unlabelled.sample_ids.tolist() == [0, 1, 2]


@pytest.mark.slow
def test_native_size_is_mmpretrains():
    model = trimmed({"type": "MMPretrainBackbone", "model": BASE})
    inputs = random_inputs(model.backbone.input_format, [0])
    with torch.inference_mode():
        host = model.host_forward(inputs)
        for kind in ("masked", "packed"):
            torch.testing.assert_close(model.trace(inputs, kind)[0], host, atol=1e-4, rtol=1e-4)


def test_a_pure_python_config_names_classes(tmp_path):
    """As mmengine's lazy configs do, in mmpretrain's part too."""
    path = tmp_path / "lazy.py"
    path.write_text(
        "from mmpretrain.models import ImageClassifier, LinearClsHead, VisionTransformer\n"
        "from smarttrim_mm.backbones.mmpretrain import MMPretrainBackbone\n"
        "from smarttrim_mm.models.trimmed_vlm import TrimmedVLM\n"
        "from smarttrim_mm.policies.smarttrim import SmartTrim\n"
        "default_scope = 'smarttrim_mm'\n"
        "arch = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)\n"
        "vit = dict(type=VisionTransformer, arch=arch, img_size=16, patch_size=4)\n"
        "host = dict(type=ImageClassifier, backbone=vit, head=dict(type=LinearClsHead, num_classes=3, in_channels=32))\n"
        "model = dict(type=TrimmedVLM, backbone=dict(type=MMPretrainBackbone, model=host), policy=dict(type=SmartTrim))\n",
        encoding="utf-8",
    )
    model = build_model(read_config(str(path)))
    assert isinstance(model.backbone, MMPretrainClassifier) and len(model.backbone.steps["image"]) == 2
