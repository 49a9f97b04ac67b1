"""Public files of METER, CLIP and RoBERTa: every key has its place, and the model computes what theirs would."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import torch
from public_checkpoints import CLIP_CONFIG, PATCH, ROBERTA_CONFIG, clip_weights, meter_shapes, meter_weights, write_lightning
from torch.nn.functional import gelu, interpolate, layer_norm, linear
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, RobertaForMaskedLM, RobertaModel

from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.backbones.meter_checkpoint import convert_clip, convert_meter, convert_roberta, resize_positions
from smarttrim_mm.utils.checkpoint_io import CheckpointError, UnsafeCheckpointError, load_checkpoint_file

CLASSES = {"pretrain": 7, "vqa": 7, "nlvr2": 2, "snli": 3, "flickr": 7}
POSITIONS = "vit_model.visual.positional_embedding"
TOKEN_TYPES = "token_type_embeddings.weight"


def small_meter(task: str = "vqa", image_size: int = 32, **others) -> METER:
    config = {**METER.small_configs()["shared images"], "num_classes": CLASSES[task], **others}
    config["vision"] = {**config["vision"], "image_size": image_size}
    if task in ("nlvr2", "snli"):
        config["head_name"] = f"{task}_classifier"
    del config["type"]
    return METER(**config).eval()


TWO = {"num_classes": 2, "head_name": "nlvr2_classifier", "images_per_text": 2}
RANKING = {"num_classes": None, "head_name": "rank_output"}


def weights_of(model):
    return copy.deepcopy(model.state_dict())


def assert_equal_weights(a, b):
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


# ---- what the model computes, composed here from the public weights, without our modules


def compose(public, images, ids, mask, kind=1):
    """Pooled features of pairs, [B, 2 D]: CLIP and RoBERTa are the library's, the fusion is written out.

    ``kind`` is the token type of the images.
    """
    with torch.no_grad():
        x = roberta(public)(ids, mask.long()).last_hidden_state
        y = clip_features(public, images)
        kinds = public[TOKEN_TYPES]
        x = affine(public, "cross_modal_text_transform", x) + kinds[0]
        y = affine(public, "cross_modal_image_transform", y) + kinds[kind]
        words, patches = torch.where(mask, 0.0, -1e9)[:, None, None, :], torch.zeros(len(images), 1, 1, y.shape[1])
        for i in range(2):
            x, y = (
                fusion_layer(public, f"cross_modal_text_layers.{i}", x, words, y, patches),
                fusion_layer(public, f"cross_modal_image_layers.{i}", y, patches, x, words),
            )
        pooled = [
            torch.tanh(affine(public, "cross_modal_text_pooler.dense", x[:, 0])),
            torch.tanh(affine(public, "cross_modal_image_pooler.dense", y[:, 0])),
        ]
        return torch.cat(pooled, -1)


def classify(public, head, features):
    return affine(public, f"{head}.3", gelu(normalise(public, f"{head}.1", affine(public, f"{head}.0", features), 1e-5)))


def roberta(public):
    model = RobertaModel(ROBERTA_CONFIG).eval()
    prefix, buffer = "text_transformer.", "embeddings.position_ids"
    model.load_state_dict({k.removeprefix(prefix): v for k, v in public.items() if k.startswith(prefix) and buffer not in k})
    return model


def clip(public):
    """The library's four layers; the last, which METER drops, is random."""
    model = CLIPVisionModel(CLIP_CONFIG).eval()
    kept = model.load_state_dict(clip_weights(public), strict=False)
    assert all(".layers.3." in name for name in kept.missing_keys) and not kept.unexpected_keys
    return model


def clip_features(public, images):
    model = clip(public)
    with torch.no_grad():
        before_the_last = model(images, output_hidden_states=True).hidden_states[3]
        return model.vision_model.post_layernorm(before_the_last)


def affine(public, name, x):
    return linear(x, public[f"{name}.weight"], public[f"{name}.bias"])


def normalise(public, name, x, eps=1e-12):
    return layer_norm(x, x.shape[-1:], public[f"{name}.weight"], public[f"{name}.bias"], eps)


def fusion_layer(public, name, x, x_mask, y, y_mask):
    """Post-norm: self-attention, cross-attention, MLP."""
    x = attend(public, f"{name}.attention", x, x, x_mask)
    x = attend(public, f"{name}.crossattention", x, y, y_mask)
    hidden = gelu(affine(public, f"{name}.intermediate.dense", x))
    return normalise(public, f"{name}.output.LayerNorm", x + affine(public, f"{name}.output.dense", hidden))


def attend(public, name, x, y, mask, heads=4):
    split = lambda z: z.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = (split(affine(public, f"{name}.self.{part}", z)) for part, z in (("query", x), ("key", y), ("value", y)))
    shares = ((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5 + mask).softmax(-1)
    out = affine(public, f"{name}.output.dense", (shares @ v).transpose(1, 2).flatten(2))
    return normalise(public, f"{name}.output.LayerNorm", x + out)


def assert_model_gives(model, inputs, expected):
    with torch.no_grad():
        for logits in (model.host_forward(inputs), model(inputs)):
            assert (logits - expected).abs().max() < 1e-5
    assert expected.std() > 0.1


@pytest.fixture
def vqa_file(tmp_path):
    return str(write_lightning(tmp_path / "vqa.ckpt", meter_weights("vqa")))


@pytest.mark.parametrize("task", ["vqa", "snli"])
def test_a_public_checkpoint_answers_as_the_composition_does(make_model, make_inputs, tmp_path, task):
    public, head = meter_weights(task), f"{task}_classifier"
    path = write_lightning(tmp_path / "public.ckpt", public)
    model = make_model(backbone={"num_classes": CLASSES[task], "head_name": head, "init_from": {"meter": str(path)}})
    model.init_weights()
    inputs = make_inputs(model)
    features = compose(public, inputs.images[inputs.image_index], inputs.input_ids, inputs.text_mask)
    assert_model_gives(model, inputs, classify(public, head, features))


def test_a_public_nlvr2_checkpoint_answers_about_two_images(make_model, make_inputs, tmp_path):
    public = meter_weights("nlvr2", token_types=3)
    path = write_lightning(tmp_path / "public.ckpt", public)
    model = make_model(backbone={**TWO, "init_from": {"meter": str(path)}})
    model.init_weights()
    inputs = make_inputs(model)
    texts = (inputs.input_ids, inputs.text_mask)
    first, second = inputs.images[inputs.image_index].unflatten(0, (-1, 2)).unbind(1)
    features = torch.cat([compose(public, first, *texts, kind=1), compose(public, second, *texts, kind=2)], -1)
    assert_model_gives(model, inputs, classify(public, "nlvr2_classifier", features))


@pytest.mark.parametrize("task", ["flickr", "pretrain"])
def test_a_ranking_model_scores_by_the_files_head_or_its_match(make_model, make_inputs, tmp_path, task):
    public = meter_weights(task)
    path = write_lightning(tmp_path / "public.ckpt", public)
    model = make_model(backbone={**RANKING, "init_from": {"meter": str(path)}})
    model.init_weights()
    inputs = make_inputs(model)
    features = compose(public, inputs.images[inputs.image_index], inputs.input_ids, inputs.text_mask)
    expected = affine(public, "rank_output", features) if task == "flickr" else affine(public, "itm_score.fc", features)[:, 1:]
    assert_model_gives(model, inputs, expected)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_clip_folder(tmp_path, safe, whole):
    public = meter_weights("vqa")
    theirs = clip(public)
    if whole:
        text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
        both = CLIPModel(CLIPConfig(text_config=text, vision_config=CLIP_CONFIG.to_dict(), projection_dim=8))
        both.vision_model = theirs.vision_model
        theirs = both
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    model = small_meter(init_from={"clip": str(tmp_path)})
    before = weights_of(model)
    model.init_weights()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert (model.trunk(images) - clip_features(public, images)).abs().max() < 1e-5
    untouched = {name: value for name, value in model.state_dict().items() if not name.startswith("vit_model.")}
    assert_equal_weights(untouched, {name: before[name] for name in untouched})


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("kind", [RobertaModel, RobertaForMaskedLM])
def test_a_roberta_folder(tmp_path, make_model, make_inputs, safe, kind):
    theirs = kind(ROBERTA_CONFIG).eval()
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    model = make_model(backbone={"init_from": {"roberta": str(tmp_path)}})
    trunk = copy.deepcopy(model.backbone.trunk.state_dict())
    model.init_weights()
    inputs = make_inputs(model)
    with torch.no_grad():
        expected = theirs.base_model(inputs.input_ids, inputs.text_mask.long()).last_hidden_state
        mine = model.backbone.text_transformer(inputs.input_ids, inputs.text_mask.long()).last_hidden_state
    assert (mine - expected).abs().max() < 1e-5
    assert_equal_weights(model.backbone.trunk.state_dict(), trunk)


# ---- every key


@pytest.mark.parametrize("task", CLASSES)
def test_every_key_of_a_public_file_is_accounted_for(task):
    public = meter_weights(task, token_types=3 if task == "nlvr2" else 2)
    model = small_meter("vqa")
    found = convert_meter(public, model.state_dict(), head_name="vqa_classifier", new_head=task != "vqa")
    assert found.weights.keys() | set(found.left_out) == public.keys()
    assert not found.weights.keys() & set(found.left_out)
    assert found.weights.keys() | set(found.initialised) == model.state_dict().keys()
    head = {name for name in model.state_dict() if name.startswith("vqa_classifier")}
    assert set(found.initialised) == (set() if task == "vqa" else head)
    for name, value in found.weights.items():
        assert torch.equal(value, public[name][:2] if name == TOKEN_TYPES else public[name])


def test_what_is_left_out_has_a_reason():
    public = meter_weights("vqa", blocks=4) | {
        "vit_model.token_embedding.weight": torch.zeros(5, 20),
        "snli_classifier.3.bias": torch.zeros(3),
    }
    found = convert_meter(public, small_meter().state_dict(), head_name="vqa_classifier")
    surplus = [name for name in public if "resblocks.3." in name]
    assert len(surplus) == 12
    assert found.left_out == {
        "vit_model.positional_embedding": "CLIP's text encoder",
        "vit_model.ln_final.weight": "CLIP's text encoder",
        "vit_model.ln_final.bias": "CLIP's text encoder",
        "vit_model.token_embedding.weight": "CLIP's text encoder",
        "text_transformer.embeddings.position_ids": "no weight",
        "text_transformer.pooler.dense.weight": "RoBERTa's pooler",
        "text_transformer.pooler.dense.bias": "RoBERTa's pooler",
        "snli_classifier.3.bias": "head of another task",
        **dict.fromkeys(surplus, "the block after METER's last"),
    }
    table = found.table()
    number = sum(name.startswith("text_transformer.") for name in found.weights)
    assert re.search(rf"used +{number}  text_transformer$", table, re.MULTILINE)
    assert re.search(r"left out +12  vit_model: the block after METER's last", table)


def test_every_key_of_the_other_libraries_is_accounted_for():
    own = small_meter().state_dict()
    theirs = CLIPModel(CLIPConfig(vision_config=CLIP_CONFIG.to_dict())).state_dict()
    found = convert_clip(theirs, own)
    assert found.weights.keys() == {name for name in own if name.startswith("vit_model.")}
    kept = [name for name in theirs if name.startswith("vision_model.") and ".layers.3." not in name]
    fused = 2 * 2 * 3  # of three projections' weights and biases, two go into the first, in three blocks
    assert len(found.weights) == len(kept) - fused
    assert {why for name, why in found.left_out.items() if name.startswith("vision_model.")} == {"the block after METER's last"}
    theirs = RobertaForMaskedLM(ROBERTA_CONFIG).state_dict() | {"roberta.embeddings.position_ids": torch.arange(24)[None]}
    found = convert_roberta(theirs, own)
    assert found.weights.keys() == {name for name in own if name.startswith("text_transformer.")}
    assert len(found.weights) + len(found.left_out) == len(theirs)


# ---- positions and token types


def test_positions_of_equal_size_stay():
    table = torch.randn(17, 6)
    torch.testing.assert_close(resize_positions(table, 4), table, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", [3, 6])
def test_positions_are_resized_as_by_torch(grid):
    table = torch.randn(17, 6)
    resized = resize_positions(table, grid)
    assert resized.shape == (grid**2 + 1, 6)
    assert torch.equal(resized[0], table[0])
    for channel in range(6):
        plane = table[1:, channel].reshape(1, 1, 4, 4)
        expected = interpolate(plane, size=(grid, grid), mode="bicubic").flatten()
        torch.testing.assert_close(resized[1:, channel], expected)


def test_a_constant_table_stays_constant_and_a_ramp_keeps_its_direction():
    assert torch.allclose(resize_positions(torch.full((17, 1), 3.0), 7), torch.tensor(3.0))
    ramp = torch.cat([torch.zeros(1), torch.arange(4.0).repeat(4)])[:, None]  # grows from left to right
    wide = resize_positions(ramp, 8)[1:].view(8, 8)
    assert (wide.diff(dim=1)[:, 1:-1] > 0).all()
    torch.testing.assert_close(wide, wide[:1].expand(8, 8))


def test_half_precision_is_kept():
    assert resize_positions(torch.randn(17, 6).half(), 3).dtype == torch.float16


def test_a_table_without_a_grid():
    with pytest.raises(ValueError, match="the position table has 16 rows; expected one for the class and a square number"):
        resize_positions(torch.zeros(16, 6), 4)


def test_the_image_size_of_the_config_decides(tmp_path):
    public = meter_weights("vqa")
    path = write_lightning(tmp_path / "vqa.ckpt", public)
    model = small_meter(image_size=48, init_from={"meter": str(path)})
    model.init_weights()
    assert torch.equal(model.trunk.positional_embedding, resize_positions(public[POSITIONS], 48 // PATCH))
    found = convert_meter(public, model.state_dict(), head_name="vqa_classifier")
    assert found.changed[POSITIONS] == "resized bicubically from 4 x 4 to 6 x 6 patches, class row kept"


def test_token_types():
    own = small_meter().state_dict()
    three = meter_weights("vqa", token_types=3)
    found = convert_meter(three, own, head_name="vqa_classifier")
    assert torch.equal(found.weights[TOKEN_TYPES], three[TOKEN_TYPES][:2])
    two = meter_weights("vqa")
    found = convert_meter(two, own | {TOKEN_TYPES: torch.empty(3, 64)}, head_name="vqa_classifier")
    assert torch.equal(found.weights[TOKEN_TYPES], two[TOKEN_TYPES][[0, 1, 1]])
    assert "third row for the second image" in found.changed[TOKEN_TYPES]


# ---- heads


@pytest.mark.parametrize(("task", "heads"), [("nlvr2", "nlvr2_classifier"), ("pretrain", "itm_score, mlm_score")])
def test_another_task_cannot_be_tested(task, heads):
    with pytest.raises(ValueError, match=f"no head 'vqa_classifier'; heads of the file: {heads}\n"):
        convert_meter(meter_weights(task), small_meter().state_dict(), head_name="vqa_classifier")


def test_fine_tuning_gets_a_new_head_and_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("smarttrim_mm.backbones.meter_init.print_log", lambda message, **_: said.append(message))
    path = write_lightning(tmp_path / "nlvr2.ckpt", meter_weights("nlvr2", token_types=3))
    model = small_meter("snli", init_from={"meter": str(path)})
    before = weights_of(model.head)
    model.init_weights()
    assert_equal_weights(before, model.head.state_dict())
    assert re.search(r"new +6  snli_classifier: initialised, not loaded", said[0])
    assert re.search(r"left out +6  nlvr2_classifier: head of another task", said[0])


def test_other_answers_need_a_new_head():
    public, own = meter_weights("vqa", answers=11), small_meter().state_dict()
    with pytest.raises(ValueError, match=r"vqa_classifier\.3\.weight \(11, 128\), the model's \(7, 128\)"):
        convert_meter(public, own, head_name="vqa_classifier")
    found = convert_meter(public, own, head_name="vqa_classifier", new_head=True)
    assert len(found.initialised) == 6
    assert found.left_out["vqa_classifier.0.weight"] == "head with other answers"


def test_half_a_head_is_no_new_head():
    public = meter_weights("vqa")
    del public["vqa_classifier.0.weight"]
    with pytest.raises(ValueError, match=r"1 missing: vqa_classifier\.0\.weight"):
        convert_meter(public, small_meter().state_dict(), head_name="vqa_classifier", new_head=True)


@pytest.mark.parametrize("new_head", [False, True])
def test_a_ranking_head_is_the_files_own(new_head):
    public, own = meter_weights("flickr"), small_meter(**RANKING).state_dict()
    found = convert_meter(public, own, head_name="rank_output", new_head=new_head)
    assert found.weights.keys() == own.keys() and not found.changed and not found.initialised
    assert found.weights.keys() | set(found.left_out) == public.keys() and not found.weights.keys() & set(found.left_out)
    assert torch.equal(found.weights["rank_output.weight"], public["rank_output.weight"])
    assert found.left_out["itm_score.fc.weight"] == found.left_out["itm_score.fc.bias"] == "head of another task"


@pytest.mark.parametrize("new_head", [False, True])
def test_a_ranking_head_starts_from_the_row_of_a_match(new_head):
    public, own = meter_weights("pretrain"), small_meter(**RANKING).state_dict()
    found = convert_meter(public, own, head_name="rank_output", new_head=new_head)
    assert found.weights.keys() == own.keys() and not found.initialised
    assert found.weights["rank_output.weight"].tolist() == [public["itm_score.fc.weight"].tolist()[1]]
    assert found.weights["rank_output.bias"].tolist() == [public["itm_score.fc.bias"].tolist()[1]]
    assert found.changed == dict.fromkeys(["rank_output.weight", "rank_output.bias"], "row 1 of itm_score.fc")
    used = {*(name for name in found.weights if name not in found.changed), "itm_score.fc.weight", "itm_score.fc.bias"}
    assert used | set(found.left_out) == public.keys() and not used & set(found.left_out)
    assert "changed       1  rank_output.weight: row 1 of itm_score.fc" in found.table()


def test_a_ranking_head_is_new_where_the_file_has_neither():
    public, own = meter_weights("vqa"), small_meter(**RANKING).state_dict()
    found = convert_meter(public, own, head_name="rank_output", new_head=True)
    assert found.initialised == ["rank_output.weight", "rank_output.bias"]
    with pytest.raises(ValueError, match="no head 'rank_output'; heads of the file: vqa_classifier\n"):
        convert_meter(public, own, head_name="rank_output")


def test_a_fine_tuned_ranking_head_is_not_passed_over_for_the_match():
    own = small_meter(num_classes=None, head_name="score").state_dict()
    with pytest.raises(ValueError, match="no head 'score'; heads of the file: itm_score, rank_output\n"):
        convert_meter(meter_weights("flickr"), own, head_name="score")


def test_half_a_match_is_no_ranking_head():
    public, own = meter_weights("pretrain"), small_meter(**RANKING).state_dict()
    del public["itm_score.fc.bias"]
    with pytest.raises(ValueError, match=r"1 missing: rank_output\.bias"):
        convert_meter(public, own, head_name="rank_output", new_head=True)


# ---- what is refused


def test_another_architecture_is_listed_and_not_loaded(tmp_path):
    public = meter_weights("vqa", blocks=5) | {"vit_model.layers.0.blocks.0.attn.qkv.weight": torch.zeros(3, 3)}
    del public["cross_modal_text_transform.bias"]
    public["cross_modal_image_transform.weight"] = torch.zeros(64, 50)
    path = write_lightning(tmp_path / "other.ckpt", public)
    model = small_meter(init_from={"meter": str(path)})
    before = weights_of(model)
    with pytest.raises(ValueError, match="does not fit the config's model; nothing was loaded") as error:
        model.init_weights()
    message = str(error.value)
    assert "1 missing: cross_modal_text_transform.bias" in message
    assert "13 unexpected: vit_model.layers.0" in message  # and the block after the surplus one
    assert "1 of another shape: cross_modal_image_transform.weight (64, 50), the model's (64, 48)" in message
    assert_equal_weights(before, model.state_dict())


def test_what_is_no_tensor_is_unexpected():
    public = {**meter_weights("vqa"), "token_type_embeddings.weight": [[1.0]]}
    with pytest.raises(ValueError, match=r"1 missing: token_type_embeddings\.weight\n  1 unexpected: token_type_emb"):
        convert_meter(public, small_meter().state_dict(), head_name="vqa_classifier")


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_lightning_are_read_without_it(tmp_path, zipped):
    public = meter_weights("vqa")
    path = write_lightning(tmp_path / "public.ckpt", public, zipped=zipped)
    with pytest.raises(Exception, match="ModelCheckpoint"):
        torch.load(path, weights_only=True)
    model = small_meter(init_from={"meter": str(path)})
    model.init_weights()
    assert_equal_weights(model.state_dict(), {name: public[name] for name in model.state_dict()})
    content = load_checkpoint_file(path)
    assert content["hyper_parameters"]["config"]["image_size"] == 576
    assert sorted(kind.__name__ for kind in content["callbacks"]) == ["EarlyStopping", "ModelCheckpoint"]


class Malicious:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_run_code_are_refused(tmp_path, zipped):
    trace = tmp_path / "trace"
    path = write_lightning(tmp_path / "bad.ckpt", meter_weights("vqa"), zipped=zipped, datamodule=Malicious(trace))
    model = small_meter(init_from={"meter": str(path)})
    before = weights_of(model)
    with pytest.raises(UnsafeCheckpointError, match=r"besides weights it wants to load posix\.system, and that can run code"):
        model.init_weights()
    assert not trace.exists()
    assert_equal_weights(before, model.state_dict())


def test_folders_that_run_code_are_refused(tmp_path):
    torch.save({"roberta.x": Malicious(tmp_path / "trace")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.system"):
        small_meter(init_from={"roberta": str(tmp_path)}).init_weights()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("source", ["meter", "clip"])
def test_truncated_files_are_refused(tmp_path, vqa_file, source):
    clip(meter_weights("vqa")).save_pretrained(tmp_path)
    path, named = (vqa_file, vqa_file) if source == "meter" else (tmp_path / "model.safetensors", tmp_path)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        small_meter(init_from={source: str(named)}).init_weights()


def test_a_checkpoint_of_ours_is_named_as_such(tmp_path):
    torch.save({"state_dict": {"backbone.head": torch.zeros(1)}}, tmp_path / "ours.pth")
    with pytest.raises(ValueError, match=r"is a checkpoint of this package already.*load_from="):
        small_meter(init_from={"meter": str(tmp_path / "ours.pth")}).init_weights()


def test_missing_files_are_an_error_of_the_training_only(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        small_meter(init_from={"meter": str(tmp_path / "none.ckpt")}).init_weights()
    for source in ("clip", "roberta"):
        model = small_meter(init_from={source: str(tmp_path)})  # building and testing need no file
        with pytest.raises(FileNotFoundError, match=r"no folder with model\.safetensors or pytorch_model\.bin. Nothing is"):
            model.init_weights()


@pytest.mark.parametrize("init_from", [{"bert": "x"}, {"meter": "x", "clip": "y"}])
def test_sources_that_do_not_go_together(init_from):
    with pytest.raises(ValueError, match=r"expected 'meter' alone .*or 'clip' and 'roberta'"):
        small_meter(init_from=init_from)


def test_one_bad_folder_spoils_both(tmp_path):
    clip(meter_weights("vqa")).save_pretrained(tmp_path / "clip")
    RobertaModel(ROBERTA_CONFIG).save_pretrained(tmp_path / "roberta")
    model = small_meter(init_from={"clip": str(tmp_path / "clip"), "roberta": str(tmp_path / "roberta")})
    settings = json.loads((tmp_path / "roberta" / "config.json").read_text())
    (tmp_path / "roberta" / "config.json").write_text(json.dumps({**settings, "num_attention_heads": 8}))
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"config\.json is of another model: num_attention_heads 8, the model's 4"):
        model.init_weights()
    assert_equal_weights(before, model.state_dict())


@pytest.mark.parametrize("whole", [True, False])
def test_a_clip_with_another_activation_is_refused(tmp_path, whole):
    config = CLIP_CONFIG.__class__(**{**CLIP_CONFIG.to_dict(), "hidden_act": "gelu"})
    theirs = CLIPModel(CLIPConfig(vision_config=config.to_dict())) if whole else CLIPVisionModel(config)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hidden_act 'gelu', the model's 'quick_gelu'"):
        small_meter(init_from={"clip": str(tmp_path)}).init_weights()


def test_the_written_names_are_those_of_the_public_files():
    """Counts of the paper's model, by hand: 12 keys a CLIP block, 16 a RoBERTa layer, 26 a fusion layer."""
    names = meter_shapes("vqa")
    count = lambda prefix: sum(name.startswith(prefix) for name in names)  # noqa: E731
    assert count("vit_model.visual.transformer.resblocks.0.") == 12
    assert count("text_transformer.encoder.layer.0.") == 16
    assert count("cross_modal_text_layers.0.") == count("cross_modal_image_layers.1.") == 26
    assert count("vqa_classifier.") == 6
