"""BLIP and ALBEF of LAVIS as backbones: what the contract tests do not see."""

import re
import socket
import subprocess
import sys

import pytest
import torch
from transformers import BatchEncoding, BertTokenizer

from smarttrim_mm.backbones.lavis import LavisBackbone
from smarttrim_mm.datasets.tokenizers import PretrainedTokenizer
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, count_multiply_adds, excite, kept_grids, random_inputs

CASES = {name.partition("/")[2]: case for name, case in backbone_cases().items() if name.startswith("LavisBackbone/")}
ANSWERS = [[101, *words, 102] for words in ((2748,), (2053,), (2417, 1998, 2630), (2048,))]
TEXTS = ["two dogs play on the grass", "a cat", "the left image shows a dog"]


@pytest.fixture
def build():
    def make(name, policy="Dense", **changes):
        policy = {"type": policy} if isinstance(policy, str) else policy
        model = MODELS.build({"type": "TrimmedVLM", "backbone": {**CASES[name], **changes}, "policy": policy}).eval()
        excite(model.backbone)
        return model

    return make


@pytest.fixture
def inputs_of():
    def make(model, lengths=(9, 4, 2, 7), image_index=(0, 0, 1, 1), **others):
        return random_inputs(model.backbone.input_format, lengths, image_index, **others)

    return make


@pytest.fixture
def vocabulary(tmp_path):
    """A folder with a BERT vocabulary of 118 words, in which [CLS] and [SEP] have BERT's ids."""
    words = ["[PAD]", "[UNK]", *dict.fromkeys(" ".join(TEXTS).split()), *(f"word{i}" for i in range(200))]
    words[101:101] = ["[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(words[:118]))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    return tmp_path


def test_every_architecture_of_this_family_has_cases():
    archs = {"albef_classification", "albef_nlvr", "blip_classification", "blip_image_text_matching", "blip_nlvr"}
    assert {name.partition(" ")[0] for name in CASES} >= archs
    assert [name for name, case in CASES.items() if case.get("text_first")]


def test_lavis_is_imported_when_a_model_is_built():
    code = (
        "import sys; from smarttrim_mm.testing import backbone_cases; assert len(backbone_cases()) > 3\n"
        "print(sorted({'lavis', 'timm', 'fairscale', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_lavis_changes_no_settings():
    """LAVIS makes Pillow read truncated images, which our data sets refuse."""
    code = (
        "from PIL import ImageFile\nfrom transformers.utils import logging\n"
        "from smarttrim_mm.backbones.lavis_host import import_lavis\n"
        "before = logging.get_verbosity()\nimport_lavis('lavis')\n"
        "assert not ImageFile.LOAD_TRUNCATED_IMAGES and logging.get_verbosity() == before != logging.ERROR"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_without_lavis_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lavis", None)
    lines = "  pip install -r requirements/lavis.txt\n  pip install --no-deps salesforce-lavis==1.0.2"
    with pytest.raises(ImportError, match=re.escape(lines)):
        MODELS.build(CASES["blip_image_text_matching shared images"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"arch": "blip_nlrv"}, KeyError, "'blip_nlrv' is not registered as a LAVIS architecture.*'blip_nlvr'"),
        ({"model_type": "huge"}, ValueError, "model_type is 'huge'; LAVIS's blip_nlvr has 'nlvr'"),
        ({"num_clases": 3}, TypeError, "LAVIS's BlipNLVR has no num_clases; it has num_classes"),
        ({"text_first": True, "share_images": True}, ValueError, "text_first=True and share_images=True exclude each other"),
        ({"decoder": {"num_hidden_layers": 2}}, ValueError, "decoder is .*; LAVIS's blip_nlvr has no decoder"),
        (
            {"arch": "albef_classification", "text": {"num_hidden_layers": 3, "fusion_layer": 3, "hidden_size": 24}},
            ValueError,
            "no layer of the text encoder reads the image: text.fusion_layer is 3 of 3 layers",
        ),
    ],
    ids=["architecture", "model type", "option", "sharing", "decoder", "fusion"],
)
def test_errors_of_the_config(change, error, message):
    with pytest.raises(error, match=message):
        MODELS.build({**CASES["blip_nlvr shared images"], **change})


def test_errors_of_the_batch(build, inputs_of):
    model = build("blip_nlvr shared images")
    one, larger = build("blip_image_text_matching shared images"), build("blip_nlvr shared images", vision={"img_size": 32})
    with pytest.raises(ValueError, match="1 image-text pairs, and blip_nlvr answers about 2"):
        model(inputs_of(one))
    for run in (one, one.host_forward):
        with pytest.raises(ValueError, match=r"images are \(32, 32\) pixels; expected 16 by 16.*vision.img_size"):
            run(inputs_of(larger).__class__(**{**vars(inputs_of(one)), "images": inputs_of(larger).images}))


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_downloaded(monkeypatch, name):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a model was built with the network"))
    backbone = MODELS.build(CASES[name])
    host = type(backbone.host).__mro__[1]
    assert host.__module__.startswith(f"lavis.models.{CASES[name]['arch'].partition('_')[0]}_models.")
    assert type(backbone) is not LavisBackbone and isinstance(backbone, LavisBackbone)


def test_sizes_are_those_of_lavis_config_files():
    """And so the parameters and multiply-adds that UPop (arXiv 2301.13741) states for BLIP on NLVR2."""
    with torch.device("meta"):
        backbone = MODELS.build({"type": "LavisBackbone", "arch": "blip_nlvr"})
    assert sum(parameter.numel() for parameter in backbone.parameters()) == pytest.approx(259.4e6, rel=1e-3)
    shape = backbone.input_format
    assert (shape["image_size"], shape["vocab_size"], shape["num_classes"], shape["images_per_text"]) == (384, 30524, 2, 2)
    assert (shape["begin_id"], shape["end_id"], shape["pad_id"]) == (101, 102, 0)
    assert backbone.enc_token_id == 30523
    inputs = random_inputs(backbone.input_format, [20]).to("meta")
    _, counted = count_multiply_adds(lambda: backbone.host_forward(inputs))
    assert counted == pytest.approx(132.0e9, rel=0.02)


@pytest.mark.parametrize("name", [name for name in CASES if not any(kind in name for kind in ("vqa", "caption", "retrieval"))])
def test_the_answer_of_lavis_to_strings(build, inputs_of, vocabulary, name):
    """LAVIS's predict with LAVIS's tokenizer, against ours on the ids of a data set."""
    model = build(name)
    tokenizer = BertTokenizer(str(vocabulary / "vocab.txt"))
    if "blip" in name:
        original = BertTokenizer.from_pretrained
        try:
            BertTokenizer.from_pretrained = lambda *_: tokenizer
            tokenizer = type(model.backbone.host).__mro__[1].init_tokenizer()
        finally:
            BertTokenizer.from_pretrained = original
    ours = PretrainedTokenizer(name_or_path=str(vocabulary))
    ids = [ours(text, max_length=12) for text in TEXTS]
    inputs = inputs_of(model, lengths=[len(row) for row in ids], image_index=None)
    for row, tokens in enumerate(ids):
        inputs.input_ids[row, : len(tokens)] = tokens
    each = model.backbone.images_per_text
    names = ["image"] if each == 1 else ["image0", "image1"]
    samples = {key: inputs.images[i::each] for i, key in enumerate(names)} | {"text_input": TEXTS, "label": torch.zeros(3)}
    host = model.backbone.host
    host.tokenizer = tokenizer
    with torch.no_grad():
        if "blip2" in name:  # LAVIS's takes texts of one length only
            alone = [{"image": inputs.images[i : i + 1], "text_input": TEXTS[i : i + 1]} for i in range(len(TEXTS))]
            theirs = torch.cat([model.backbone.call_host(one) for one in alone])
        else:
            theirs = host(samples, match_head="itm") if "matching" in name else host.predict(samples)["predictions"]
        torch.testing.assert_close(model(inputs), theirs)


# ---- the text that guides the image encoder


def arbitrary(**changes):
    return {"type": "SmartTrim", "stable_init": False, "head_trimmer": None, **changes}


@pytest.mark.parametrize(
    "name", ["blip_classification text first", "albef_classification text first", "blip_nlvr shared images"]
)
def test_the_text_reaches_the_image_encoder(build, inputs_of, name):
    for text_first in (True, False):
        model = build(name, arbitrary(), text_first=text_first)
        inputs, other = (inputs_of(model, seed=seed) for seed in (0, 1))
        words = other.__class__(**{**vars(inputs), "input_ids": other.input_ids})
        with torch.no_grad():
            grids = [kept_grids(model.trace(batch)[1])["image.0/image"] for batch in (inputs, words)]
        assert torch.equal(*grids) is not text_first


def test_the_guide_is_blips_uni_modal_text(build, inputs_of, monkeypatch):
    model = build("blip_nlvr shared images", arbitrary(), text_first=True)
    inputs = inputs_of(model)
    seen = []
    before_layer = model.policy.before_layer
    monkeypatch.setattr(model.policy, "before_layer", lambda *args: seen.append(args[2]) or before_layer(*args))
    with torch.no_grad():
        _, record = model.trace(inputs)
        text = {"input_ids": inputs.input_ids, "attention_mask": inputs.text_mask.long()}
        whole = model.backbone.host.text_encoder(**text, mode="text").last_hidden_state
    torch.testing.assert_close(seen[0]["text"], whole[:, 0].repeat_interleave(2, 0))
    # its compute: 7 layers of self-attention and MLP on 9, 4, 2 and 7 tokens
    n = inputs.text_mask.sum(1)
    ahead = 7 * (4 * n * 32 * 32 + 2 * n * n * 32 + 2 * n * 32 * 48)
    entry = record.entries[0]
    assert torch.equal(entry.multiply_adds, ahead.float())
    others = [
        step.decided() + model.policy.multiply_adds(step.step, {k: x.counts() for k, x in step.before.items()})
        for step in record.steps
    ]
    images = [cost.view(-1, 2).sum(1) for step, cost in zip(record.steps, others, strict=True) if step.step.stage == "image"]
    texts = [cost for step, cost in zip(record.steps, others, strict=True) if step.step.stage != "image"]
    outside = 2 * 24 * 3 * 16 * 16 + 32 * 32 + 32 * 7  # patches of two images, the head
    torch.testing.assert_close(record.multiply_adds(), sum(images) + sum(texts) + ahead + outside)


@pytest.mark.parametrize(
    ("policy", "runs"),
    [
        (arbitrary(), True),
        (arbitrary(token_trimmer={"type": "TokenTrimmer", "scores": ["local", "self"]}), False),
        (arbitrary(token_layers={"image": []}), False),
        ({"type": "Random", "keep_ratio": 0.7}, False),
        ({"type": "Dense"}, False),
    ],
    ids=["cross scores", "own scores", "no image trimmers", "random", "dense"],
)
def test_blips_text_is_read_ahead_only_for_who_wants_it(build, inputs_of, policy, runs):
    model = build("blip_classification text first", policy)
    with torch.no_grad():
        _, record = model.trace(inputs_of(model))
    assert (type(record.entries[0]).__name__ == "AheadRecord") is runs


def test_albefs_uni_modal_layers_run_once(build, inputs_of):
    """Early if they guide, else in their place."""
    for text_first in (True, False):
        model = build("albef_classification text first", arbitrary(), text_first=text_first)
        with torch.no_grad():
            _, record = model.trace(inputs_of(model))
        stages = list(dict.fromkeys(entry.step.stage for entry in record.steps))
        assert stages == (["text", "image", "fusion"] if text_first else ["image", "text", "fusion"])
        assert list(model.backbone.steps) == stages
        assert len(record.steps) == 2 + 1 + 2 and len(record.entries) == len(record.steps) + 2


# ---- layers


def test_which_image_a_layer_reads(build):
    twins = build("blip_nlvr shared images").backbone.steps["fusion"]
    assert [step.memories for step in twins] == [{"image0": 24, "image1": 24}] * 7
    merges = [step.layers["text"].joins[0].merge for step in twins]
    assert merges[:6] == [None] * 6 and merges[6].in_features == 64
    in_turn = build("albef_nlvr shared images").backbone.steps
    assert [list(step.memories) for step in in_turn["fusion"]] == [["image0"], ["image1"]] * 2
    assert len(in_turn["text"]) == 1


def test_drop_path_is_that_of_lavis_config_file():
    """VQA is fine-tuned with 0.1, matching without."""
    for arch, expected in (("blip_vqa", 0.1), ("blip_image_text_matching", 0.0)):
        case = next(case for name, case in CASES.items() if name.startswith(f"{arch} "))
        vision = {name: value for name, value in case["vision"].items() if name != "drop_path_rate"}
        host = MODELS.build({**case, "vision": vision}).host
        assert getattr(host.visual_encoder.blocks[-1].drop_path, "drop_prob", 0.0) == pytest.approx(expected)


def test_drop_path_grows_with_depth(build):
    views = [step.layers["image"] for step in build("blip_classification text first").backbone.steps["image"]]
    assert [view.attentions[0].drop_path for view in views] == pytest.approx([0.0, 0.3])
    assert [view.mlp.drop_path for view in views] == pytest.approx([0.0, 0.3])


def test_keys_and_values_are_tied_as_lavis_ties_them():
    """LAVIS's own method, which knows one depth, ties the same weights."""
    from lavis.models.albef_models.albef_nlvr import AlbefNLVR

    case = CASES["albef_nlvr shared images"]
    host = MODELS.build({**case, "text": {**case["text"], "num_hidden_layers": 18, "fusion_layer": 6}}).host
    tied = {name: id(weight) for name, weight in host.named_parameters(remove_duplicate=False)}
    for layer in host.text_encoder.encoder.layer[6:]:
        for name in ("key", "value"):
            projection = getattr(layer.crossattention.self, name)
            projection.weight, projection.bias = (torch.nn.Parameter(p.clone()) for p in (projection.weight, projection.bias))
    AlbefNLVR.share_cross_attention(host, host.text_encoder.encoder)
    again = {name: id(weight) for name, weight in host.named_parameters(remove_duplicate=False)}
    groups = [sorted(sorted(name for name in ids if ids[name] == one) for one in set(ids.values())) for ids in (tied, again)]
    assert groups[0] == groups[1]
    assert sum(len(group) == 2 for group in groups[0]) == 6 * 4


def test_momentum_copies_are_kept_and_never_run(build, inputs_of):
    model = build("albef_classification text first").train()
    copies = {name: p for name, p in model.backbone.host.named_parameters() if name.partition(".")[0].endswith("_m")}
    assert len(copies) > 50 and not any(p.requires_grad for p in copies.values())
    for p in copies.values():
        p.data.fill_(torch.nan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model.loss(inputs_of(model))["loss_task"]
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss) and all(p.grad is None for p in copies.values())
    assert not [name for name in build("albef_nlvr shared images").state_dict() if "_m." in name]


def test_batches_are_left_as_they_were(build, inputs_of):
    """BLIP writes [ENC] into what it is given."""
    model = build("blip_nlvr shared images")
    inputs = inputs_of(model)
    ids = inputs.input_ids.clone()
    with torch.no_grad():
        model(inputs)
        model.host_forward(inputs)
    assert torch.equal(inputs.input_ids, ids)
    tokens = BatchEncoding({"input_ids": ids})
    assert model.backbone.host.tokenizer(tokens, padding="longest").input_ids is not ids


@pytest.mark.slow
def test_parameters_of_vqa():
    """As published, the decoder's head being its embedding, which the meta device would part."""
    backbone = MODELS.build({"type": "LavisBackbone", "arch": "blip_vqa", "answers": ANSWERS})
    assert sum(parameter.numel() for parameter in backbone.parameters()) == pytest.approx(361.5e6, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [{"type": "Dense"}, {"type": "SmartTrim", "stable_init": False}], ids=lambda p: p["type"])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("albef_classification", {"text_first": True}),
        ("albef_nlvr", {}),
        ("albef_retrieval", {}),
        ("blip_classification", {"num_classes": 3, "text_first": True}),
        ("blip_image_text_matching", {}),
        ("blip_nlvr", {"text_first": True}),
        ("blip2_image_text_matching", {}),
        ("blip2_qformer", {"model_type": "pretrain_vitL"}),
        ("albef_vqa", {"answers": ANSWERS}),
        ("blip_caption", {"prompt": [101, 1037, 3861, 1997, 102]}),
        ("blip_vqa", {"answers": ANSWERS, "text_first": True}),
        ("blip_retrieval", {}),
    ],
)
def test_invariants_at_native_size(arch, options, policy):
    """Dense equals LAVIS's own forward, and masked equals packed, with random weights."""
    backbone = {"type": "LavisBackbone", "arch": arch, **options}
    model = MODELS.build({"type": "TrimmedVLM", "backbone": backbone, "policy": policy}).eval()
    inputs = random_inputs(model.backbone.input_format, [30, 12], [0, 0])
    with torch.no_grad():
        (masked, record), (packed, _) = model.trace(inputs, "masked"), model.trace(inputs, "packed")
        others = {"masked": masked}
        if policy["type"] == "Dense":
            others["LAVIS's own"] = model.host_forward(inputs)
        else:
            assert (record.multiply_adds() < 0.6 * record.dense_multiply_adds()).all()
    differences = ", ".join(f"{float((packed - other).abs().max()):.1e} from {name}" for name, other in others.items())
    print(f"\n{arch}, {policy['type']}: {differences}")  # for docs/lavis.md, with -s
    for other in others.values():
        torch.testing.assert_close(packed, other, atol=1e-4, rtol=0)
