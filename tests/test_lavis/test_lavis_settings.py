"""What a LAVIS config says of a trimmed model: trimming, tokenizer, weights."""

import re
import socket

import pytest
import torch
from small_lavis import SIZES
from transformers import BertTokenizer

import smarttrim_mm.lavis as plugin
from smarttrim_mm.lavis.rebound import rebound
from smarttrim_mm.lavis.settings import load_file

SMARTTRIM = {"type": "SmartTrim"}


@pytest.fixture
def saved(tmp_path):
    def save(weights, wrap="model"):
        path = tmp_path / "weights.pth"
        torch.save({wrap: weights} if wrap else weights, path)
        return str(path)

    return save


def weights_of(model, policy=True):
    return {name: value.clone() for name, value in model.state_dict().items() if policy or not name.startswith("policy.")}


@pytest.mark.parametrize(
    ("trimming", "message"),
    [
        (None, r"model.trimming.policy is missing.*\{policy: \{type: SmartTrim\}\}"),
        ({"budget": {"type": "RatioBudget"}}, "model.trimming.policy is missing"),
        ({"policy": SMARTTRIM, "textfirst": True}, "model.trimming has 'textfirst'; expected settings of policy, distillation"),
        (
            {"policy": SMARTTRIM, "schedules": [{"type": "CurriculumHook"}]},
            r"model.trimming.epochs is None.*\$\{run.max_epoch\}",
        ),
        (
            {"policy": SMARTTRIM, "schedules": [{"type": "LoggerHook"}], "epochs": 1},
            "model.trimming.schedules has a LoggerHook; expected",
        ),
        (
            {"policy": {"type": "Dense"}, "schedules": [{"type": "NoiseHook", "start": 1, "end": 0}], "epochs": 1},
            "Dense has none",
        ),
        (
            {"policy": SMARTTRIM, "distillation": {"type": "SelfDistillation", "frozen_teacher": "x.pth"}},
            "model.trimming.distillation.frozen_teacher is set",
        ),
    ],
    ids=["nothing", "no policy", "unknown", "epochs", "another hook", "hook without object", "frozen teacher"],
)
def test_errors_of_the_trimming(settings, trimming, message):
    cfg = settings("blip_nlvr")
    cfg.pop("trimming")
    cfg.trimming = trimming
    with pytest.raises(ValueError, match=message):
        plugin.registry.get_model_class("smarttrim_blip_nlvr").from_config(cfg)


@pytest.mark.parametrize("folder", [None, "no/such/folder"])
@pytest.mark.parametrize("arch", ["blip_vqa", "albef_nlvr"])
def test_a_missing_tokenizer_is_an_error_at_once(settings, monkeypatch, arch, folder):
    asked = []

    def missing(name, **options):
        asked.append((name, options))
        raise OSError("no such file")

    monkeypatch.setattr(BertTokenizer, "from_pretrained", missing)
    with pytest.raises(
        ValueError, match=rf"model.tokenizer is {folder!r}; expected a folder with BERT's vocab.txt.*set model."
    ):
        plugin.registry.get_model_class(f"smarttrim_{arch}").from_config(settings(arch, tokenizer=folder))
    assert asked == [(folder or "bert-base-uncased", {"local_files_only": True})]


def test_a_folder_without_a_vocabulary_is_an_error(settings, tmp_path):
    with pytest.raises(ValueError, match="expected a folder with BERT's vocab"):
        plugin.registry.get_model_class("smarttrim_blip_vqa").from_config(settings("blip_vqa", tokenizer=str(tmp_path)))


def test_the_tokenizer_is_lavis_own(build):
    blip, albef = (build(f"{family}_vqa").tokenizer for family in ("blip", "albef"))
    assert (blip.bos_token, blip.enc_token_id, len(blip)) == ("[DEC]", 119, 120)
    assert albef.bos_token is None and len(albef) == 118
    assert blip("a cat").input_ids[0] == 101 == albef("a cat").input_ids[0]


@pytest.mark.parametrize("kind", ["finetuned", "pretrained"])
def test_nothing_is_downloaded(settings, monkeypatch, kind):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a model was built with the network"))
    cls = plugin.registry.get_model_class("smarttrim_blip_nlvr")
    changes = {"load_finetuned": kind == "finetuned", "load_pretrained": True}
    with pytest.raises(ValueError, match=rf"model.{kind} is https://.*set model.load_{kind}: False"):
        cls.from_config(settings("blip_nlvr", **changes))
    with pytest.raises(FileNotFoundError, match=r"no/file\.pth"):
        cls.from_config(settings("blip_nlvr", **changes, **{kind: "no/file.pth"}))
    with pytest.raises(ValueError, match=f"model.{kind} is None"):
        cls.from_config(settings("blip_nlvr", **changes, **{kind: None}))


def test_sizes_and_options_are_those_of_the_config(settings, build):
    assert build("albef_vqa").max_txt_len == 25 and build("blip_vqa").max_txt_len == 35  # as in LAVIS's from_config
    model = build("blip_vqa", max_txt_len=7, vit_drop_path_rate=0.4)
    assert model.max_txt_len == 7 and model.visual_encoder.blocks[1].drop_path.drop_prob == pytest.approx(0.4)
    assert model._tokenize("a cat a cat a cat a cat").input_ids.shape == (1, 7)
    assert model.visual_encoder.embed_dim == SIZES["vision"]["embed_dim"]
    assert not [name for name in build("albef_nlvr").state_dict() if "_m." in name]


# ---- weights


def test_a_public_fine_tuned_file_has_no_policy(build, saved, caplog):
    public = build("blip_nlvr", "Dense")
    path = saved(weights_of(public))
    model = build("blip_nlvr", SMARTTRIM)
    load_file(model, path, whole=True)
    assert "has no policy: model.trimming.policy starts untrained" in caplog.text
    own = weights_of(model, policy=False)
    assert all(torch.equal(own[name], value) for name, value in weights_of(public).items())


@pytest.mark.parametrize("arch", ["blip_vqa", "albef_classification"])
def test_weights_come_back_and_lavis_loads_them(build, settings, lavis_own, saved, arch):
    model = build(arch, {**SMARTTRIM, "stable_init": False})
    path = saved(weights_of(model))
    cls = plugin.registry.get_model_class(f"smarttrim_{arch}")
    again = cls.from_config(settings(arch, SMARTTRIM, load_finetuned=True, finetuned=path))
    own = weights_of(again)
    assert all(torch.equal(own[name], value) for name, value in weights_of(model).items())
    other = lavis_own(build(arch))
    other.load_checkpoint(saved(weights_of(model, policy=False)))
    theirs = other.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in weights_of(model, policy=False).items())
    build(arch).load_checkpoint(path)  # LAVIS's own loading passes over the policy


def test_a_pretrained_file_may_lack_the_head(build, settings, saved):
    weights = {name: value for name, value in weights_of(build("blip_nlvr")).items() if not name.startswith("cls_head")}
    path = saved(weights)
    cls = plugin.registry.get_model_class("smarttrim_blip_nlvr")
    model = cls.from_config(settings("blip_nlvr", load_pretrained=True, pretrained=path))
    assert torch.equal(model.visual_encoder.norm.weight, weights["visual_encoder.norm.weight"])
    with pytest.raises(ValueError, match=r"has nothing for 4 weights \(cls_head.*load_finetuned: False"):
        cls.from_config(settings("blip_nlvr", load_finetuned=True, finetuned=path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual_encoder.norm.bias"), "1 missing: visual_encoder.norm.bias"),
        (lambda w: w.update({"policy.surprise": torch.zeros(1)}), "1 unexpected: policy.surprise"),
        (
            lambda w: w.pop("policy.knob_value"),
            "another than model.trimming.policy; nothing was loaded\n  1 missing: policy.knob_",
        ),
        (lambda w: w.update({"policy.knob_value": torch.zeros(3)}), "1 of another shape: policy.knob_value"),
    ],
    ids=["host", "unexpected", "missing", "shape"],
)
def test_all_or_nothing(build, saved, change, message):
    weights = weights_of(build("blip_nlvr", SMARTTRIM))
    change(weights)
    model = build("blip_nlvr", SMARTTRIM)
    before = weights_of(model)
    with torch.no_grad():
        model.cls_head[0].bias.add_(1)
        before["cls_head.0.bias"] += 1
    with pytest.raises(ValueError, match=message):
        load_file(model, saved(weights), whole=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_runs_no_code(build, tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": {"x": re.compile("x")}}, path)
    with pytest.raises(ValueError, match=r"evil\.pth is refused"):
        load_file(build("blip_nlvr"), path, whole=True)


def test_a_rebound_function_leaves_its_module_alone():
    from lavis.models.blip_models import blip

    found = rebound(blip.BlipBase.load_from_pretrained, is_url=lambda name: False, os=None)
    with pytest.raises(AttributeError):
        found(None, "file")
    assert blip.os is not None
    with pytest.raises(KeyError, match=r"lavis\.models\.blip_models\.blip has no surprise"):
        rebound(blip.BlipBase.load_from_pretrained, surprise=1)
