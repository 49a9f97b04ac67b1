"""Public files of BLIP, ALBEF and LAVIS: every key has its place, and what is trained here is LAVIS's again."""

import re

import pytest
import torch
from transformers import BatchEncoding

from smarttrim_mm.backbones.given_tokens import GivenTokens
from smarttrim_mm.backbones.lavis_checkpoint import convert_public, lacking, plain_weights
from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs

CASES = {name.partition("/")[2]: case for name, case in backbone_cases().items() if name.startswith("LavisBackbone/")}
BLIP, NLVR, ALBEF = "blip_classification text first", "blip_nlvr shared images", "albef_classification text first"
ALBEF_VQA, CAPTION = "albef_vqa shared images", "blip_caption shared images"


def build(name, seed=0, **changes):
    backbone = MODELS.build({**CASES[name], **changes}).eval()
    excite(backbone, seed)
    return backbone


def public_of(name, **changes):
    """A fine-tuned public checkpoint of other weights."""
    return {key: value.clone() for key, value in build(name, seed=1, **changes).host.state_dict().items()}


def pretrained(public):
    """As BLIP's and ALBEF's authors save a pre-training: other heads, a decoder, queues, momentum copies."""
    kept = {key: value for key, value in public.items() if not key.startswith(("cls_head", "itm_head"))}
    extra = ("itm_head.weight", "vision_proj.bias", "text_decoder.cls.predictions.bias", "text_encoder_m.embeddings.x", "temp")
    queues = ("image_queue", "text_queue", "queue_ptr")
    return {**kept, **{key: torch.zeros(2) for key in (*extra, *queues)}}


def as_albef(public):
    """Its text encoder lies in a language model, and has token types."""
    renamed = {re.sub(r"^(text_encoder(_m)?)\.", r"\1.bert.", key): value for key, value in public.items()}
    types = {"text_encoder.bert.embeddings.token_type_embeddings.weight": torch.zeros(2, 32)}
    return {**renamed, **types, "text_encoder.cls.predictions.bias": torch.zeros(3)}


@pytest.fixture
def start(tmp_path):
    """Starts a backbone from a state dict in a file."""

    def make(name, public, wrap="model", **changes):
        path = tmp_path / "public.pth"
        torch.save({wrap: public, "epoch": 3} if wrap else public, path)
        backbone = build(name, checkpoint=str(path), **changes)
        backbone.init_weights()
        return backbone

    return make


def assert_loaded(backbone, expected):
    own = backbone.host.state_dict()
    assert own.keys() == expected.keys()
    assert not [key for key in own if not torch.equal(own[key], expected[key])]


@pytest.mark.parametrize("wrap", ["model", "state_dict", None])
@pytest.mark.parametrize("name", CASES)
def test_a_fine_tuned_file(start, name, wrap):
    public = public_of(name)
    assert_loaded(start(name, public, wrap), public)


def test_nothing_is_read_when_a_model_is_built():
    build(BLIP, checkpoint="no/such/file.pth")
    build(BLIP).init_weights()


@pytest.mark.parametrize("size", [24, 8])
def test_another_image_size(start, size):
    from lavis.models.vit import interpolate_pos_embed

    public = public_of(ALBEF)
    vision = {**CASES[ALBEF]["vision"], "img_size": size}
    backbone = start(ALBEF, public, vision=vision)
    for part in ("visual_encoder", "visual_encoder_m"):
        expected = interpolate_pos_embed(public[f"{part}.pos_embed"], getattr(backbone.host, part))
        assert expected.shape[1] == (size // 4) ** 2 + 1
        assert torch.equal(getattr(backbone.host, part).pos_embed, expected)
    found = convert_public(public, backbone.host)
    assert set(found.changed) == {"visual_encoder.pos_embed", "visual_encoder_m.pos_embed"}
    assert "from 4 x 4 to" in found.table()


def test_nlvr2_starts_from_a_pretrained_blip(start):
    """Both attentions from the single one; the head and the merging layer are new, the log says so."""
    single = public_of("blip_image_text_matching shared images", text={**CASES[NLVR]["text"]}, vision=CASES[NLVR]["vision"])
    before = build(NLVR).host.state_dict()
    backbone = start(NLVR, pretrained(single))
    layer = "text_encoder.encoder.layer.6.crossattention"
    own = backbone.host.state_dict()
    for i in range(2):
        assert torch.equal(own[f"{layer}.self{i}.key.weight"], single[f"{layer}.self.key.weight"])
        assert torch.equal(own[f"{layer}.output.dense{i}.bias"], single[f"{layer}.output.dense.bias"])
    assert torch.equal(own[f"{layer}.output.LayerNorm.weight"], single[f"{layer}.output.LayerNorm.weight"])
    new = {key for key in own if key.startswith("cls_head") or ".merge_layer." in key}
    assert len(new) == 6 and all(torch.equal(own[key], before[key]) for key in new if key.endswith("weight"))
    found = convert_public(pretrained(single), build(NLVR).host)
    assert set(found.initialised) == new
    assert set(found.left_out.values()) == {
        "momentum copy", "contrastive queue", "decoder of another task", "head of another task",
    }  # fmt: skip


def test_captions_start_from_a_pretrained_blip(start):
    """Whose decoder it has; the text encoder and the heads are left out."""
    public = public_of(CAPTION)
    text_encoder = {f"text_encoder.{key}": torch.zeros(2) for key in ("embeddings.word_embeddings.weight", "encoder.layer.0.x")}
    extra = ("itm_head.weight", "vision_proj.bias", "text_proj.weight", "text_decoder_m.cls.predictions.bias", "temp")
    blip = {**public, **text_encoder, **{key: torch.zeros(2) for key in (*extra, "image_queue", "text_queue", "queue_ptr")}}
    backbone = start(CAPTION, blip)
    assert_loaded(backbone, public)
    found = convert_public(blip, backbone.host)
    assert {found.left_out[key] for key in text_encoder} == {"text encoder, which the model has not"}
    assert set(found.left_out.values()) - {found.left_out[key] for key in text_encoder} == {
        "momentum copy", "contrastive queue", "head of another task",
    }  # fmt: skip


def test_captions_need_a_decoder(start):
    """A file of BLIP's NLVR2 has none."""
    public = {key: value for key, value in public_of(CAPTION).items() if not key.startswith("text_decoder")}
    with pytest.raises(ValueError, match=r"text_decoder\.bert\.embeddings"):
        start(CAPTION, public)


def test_albefs_pretrained_file(start):
    public = public_of(ALBEF)
    without_copies = {key: value for key, value in public.items() if "_m." not in key}
    backbone = start(ALBEF, as_albef(pretrained(without_copies)))
    own = backbone.host.state_dict()
    shared = [key for key in without_copies if not key.startswith("cls_head")]
    assert len(shared) > 50 and all(torch.equal(own[key], public[key]) for key in shared)
    for part in ("visual_encoder", "text_encoder", "cls_head"):  # copies are made from what was loaded
        copy = getattr(backbone.host, f"{part}_m").state_dict()
        assert all(torch.equal(copy[key], value) for key, value in getattr(backbone.host, part).state_dict().items())


def language_model(**sizes):
    """As ALBEF's authors save a pre-training: the text encoder is a language model, its head tied to its words."""
    of_vqa = public_of(ALBEF_VQA, **sizes)
    public = {}
    for key, value in of_vqa.items():
        head = re.fullmatch(r"text_decoder(_m)?\.cls\.(.+)", key)
        if head is not None:
            words = of_vqa[f"text_encoder{head[1] or ''}.embeddings.word_embeddings.weight"]
            public[f"text_encoder{head[1] or ''}.cls.{head[2]}"] = words if head[2].endswith("decoder.weight") else value
        elif not key.startswith("text_decoder"):
            public[key] = value
    heads = {key: value for key, value in public.items() if ".cls." in key}
    return as_albef({key: value for key, value in public.items() if key not in heads}) | {
        "itm_head.weight": torch.zeros(2),
        **heads,
    }


def test_a_decoder_starts_from_albefs_language_model_as_in_lavis(start, tmp_path):
    """Twelve layers, of which LAVIS's own loading takes the last six."""
    case = CASES[ALBEF_VQA]
    sizes = {
        "vision": {**case["vision"], "embed_dim": 32, "depth": 1},
        "text": {**case["text"], "num_hidden_layers": 12, "fusion_layer": 6},
        "decoder": {"num_hidden_layers": 6},
    }
    public = language_model(**sizes)
    backbone, theirs = start(ALBEF_VQA, public, **sizes), build(ALBEF_VQA, seed=2, **sizes).host
    theirs.load_from_pretrained(str(tmp_path / "public.pth"))
    assert_loaded(backbone, theirs.state_dict())
    own = backbone.host.state_dict()
    layer = "encoder.layer.{}.crossattention.self.key.weight"
    assert torch.equal(own[f"text_decoder.bert.{layer.format(0)}"], public[f"text_encoder.bert.{layer.format(6)}"])
    found = convert_public(public, backbone.host)
    begun = {key for key in own if key.startswith("text_decoder")}
    assert begun and set(found.changed) == begun
    assert not [key for key in found.left_out if ".cls." in key]
    table = found.table().splitlines()
    assert [row.split()[1:] for row in table if row.startswith("changed")] == [
        [str(len(begun) // 2), f"text_decoder{copy}:", "from", f"text_encoder{copy},", "whose", "last", "layers", "it", "has"]
        for copy in ("", "_m")
    ]


def test_a_decoder_needs_a_language_model_that_is_deep_enough(start):
    case = CASES[ALBEF_VQA]
    sizes = {"vision": {**case["vision"], "embed_dim": 32}}
    public = language_model(**sizes)
    start(ALBEF_VQA, public, **sizes)
    with pytest.raises(ValueError, match=r"missing: text_decoder\.bert\.encoder\.layer\.0\.[^\n]+\n"):
        start(ALBEF_VQA, public, **sizes, decoder={"num_hidden_layers": 4})
    without = {key: value for key, value in public.items() if ".cls." not in key}
    with pytest.raises(ValueError, match=r"missing: text_decoder\.bert\.embeddings"):
        start(ALBEF_VQA, without, **sizes)


@pytest.mark.parametrize("name", [ALBEF_VQA, "blip_vqa text first"])
def test_a_files_own_decoder_is_taken_whole(start, name):
    """With heads and copies of its pre-training, and the token types of ALBEF's own files, beside it."""
    public = public_of(name)
    more = {"itm_head.weight": torch.zeros(2), "text_decoder.bert.embeddings.token_type_embeddings.weight": torch.zeros(2, 32)}
    backbone = start(name, public | more)
    assert_loaded(backbone, public)
    found = convert_public(public | more, backbone.host)
    assert not found.changed and not found.initialised
    assert [why.partition(",")[0] for why in found.left_out.values()] == ["head of another task", "token types"]
    deeper = {"text_decoder.bert.encoder.layer.2.output.dense.bias": torch.zeros(32)}
    with pytest.raises(ValueError, match=r"1 unexpected: text_decoder\.bert\.encoder\.layer\.2\.output\.dense\.bias\n"):
        start(name, public | deeper)


def test_albefs_file_of_pairs(start):
    """It comes from the task of telling which of two images a text is about."""
    name = "albef_nlvr shared images"
    public = {key: value for key, value in public_of(name).items() if not key.startswith("cls_head")}
    extra = ("ta_head.weight", "ta_head.bias", "vision_proj.weight", "text_proj.bias", "temp")
    types = {"text_encoder.embeddings.token_type_embeddings.weight": torch.zeros(2, 32)}
    own = start(name, public | types | {key: torch.zeros(2) for key in extra}).host.state_dict()
    assert all(torch.equal(own[key], value) for key, value in public.items())


def test_momentum_copies_of_a_file_are_taken_if_the_model_has_them(start):
    public = public_of(ALBEF)
    assert_loaded(start(ALBEF, as_albef(public) | {"cls_head_m.0.bias": public["cls_head_m.0.bias"]}), public)
    alone = start(ALBEF, public, use_distill=False)
    assert_loaded(alone, {key: value for key, value in public.items() if "_m." not in key})


RETRIEVAL = [name for name in CASES if "retrieval" in name]
QUEUE = ("image_queue", "text_queue", "idx_queue", "queue_ptr")


@pytest.mark.parametrize("name", RETRIEVAL)
def test_retrieval_starts_from_a_pre_training(start, name):
    """Of ALBEF's or BLIP's authors: its queue has no ids, and may be of another size; its copies are taken."""
    public = public_of(name) | {"text_queue": torch.ones(12, 24), "queue_ptr": torch.tensor([6])}
    del public["idx_queue"]
    extra = {"text_encoder_m.cls.predictions.bias": torch.zeros(3), "text_decoder.cls.predictions.bias": torch.zeros(3)}
    given = as_albef(public) if "albef" in name else public
    backbone = start(name, given | extra)
    assert_loaded(backbone, public | {"idx_queue": torch.full((1, 24), -100)})
    found = convert_public(given | extra, backbone.host)
    assert found.initialised == ["idx_queue"] and "contrastive queue" not in found.left_out.values() and not lacking(found)

    longer = {**given, **extra, "image_queue": torch.zeros(12, 48), "text_queue": torch.zeros(12, 48)}
    own, fresh = start(name, longer).host.state_dict(), build(name).host.state_dict()
    for key in own:
        if key in QUEUE:
            assert own[key].shape == fresh[key].shape and own[key].any() == fresh[key].any()
        else:
            assert torch.equal(own[key], public[key]), key
    found = convert_public(longer, backbone.host)
    reasons = {key: why for key, why in found.left_out.items() if key in QUEUE}
    assert reasons == dict.fromkeys(("image_queue", "text_queue", "queue_ptr"), "contrastive queue of another size")
    assert sorted(found.initialised) == sorted(QUEUE)
    assert "image_queue: contrastive queue of another size" in found.table()


@pytest.mark.parametrize("name", RETRIEVAL)
def test_only_the_copies_that_a_file_lacks_are_made(start, name):
    public = public_of(name)
    own = start(name, {key: value for key, value in public.items() if key != "text_proj_m.bias"}).host.state_dict()
    assert not torch.equal(public["text_proj.bias"], public["text_proj_m.bias"])
    expected = public | {"text_proj_m.bias": public["text_proj.bias"]}
    assert [key for key in own if not torch.equal(own[key], expected[key])] == []


@pytest.mark.parametrize("name", RETRIEVAL)
def test_retrieval_without_momentum_copies(start, name):
    """As files that were shared for tests: copies are made, the queue begins anew."""
    public = public_of(name)
    alone = {key: value for key, value in public.items() if "_m." not in key and key not in QUEUE}
    backbone = start(name, {**alone, "ptr_queue": torch.zeros(1)})
    own = backbone.host.state_dict()
    for key in own:
        if key not in QUEUE:
            assert torch.equal(own[key], public[re.sub(r"^(\w+)_m\.", r"\1.", key)]), key
    assert not lacking(convert_public(alone, backbone.host))
    with pytest.raises(ValueError, match=r"2 missing: itm_head.bias, itm_head.weight"):
        start(name, {key: value for key, value in public.items() if not key.startswith("itm_head")})


def test_a_head_with_other_answers_is_new(start):
    for name in (BLIP, ALBEF):
        public, before = public_of(name, num_classes=3), build(name).host.state_dict()
        own = start(name, public).host.state_dict()
        assert torch.equal(own["cls_head.2.weight"], before["cls_head.2.weight"])
        assert torch.equal(own["visual_encoder.norm.weight"], public["visual_encoder.norm.weight"])
    assert torch.equal(own["cls_head_m.2.weight"], own["cls_head.2.weight"])  # ALBEF's momentum copy
    assert torch.equal(own["text_encoder_m.embeddings.LayerNorm.bias"], public["text_encoder_m.embeddings.LayerNorm.bias"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("visual_encoder.norm.bias"), r"1 missing: visual_encoder.norm.bias\n"),
        (lambda w: w.update(surprise=torch.zeros(1)), r"1 unexpected: surprise\n"),
        (
            lambda w: w.update({"text_encoder.encoder.layer.2.output.dense.bias": torch.zeros(32)}),
            r"1 unexpected: text_encoder",
        ),
        (
            lambda w: w.update({"visual_encoder.norm.bias": torch.zeros(5)}),
            r"1 of another shape: visual_encoder.norm.bias \(5,\), the model's \(24,\)",
        ),
        (lambda w: w.update({"backbone.host.x": torch.zeros(1)}), r"public.pth is a checkpoint of this package.*load_from="),
    ],
    ids=["missing", "unexpected", "too deep", "shape", "ours"],
)
def test_what_does_not_fit_is_an_error(start, change, message):
    public = public_of(BLIP)
    change(public)
    with pytest.raises(ValueError, match=message):
        start(BLIP, public)


def test_nothing_is_loaded_in_part(tmp_path):
    public = public_of(BLIP)
    del public["visual_encoder.norm.bias"]
    backbone = build(BLIP)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match="nothing was loaded"):
        convert_public(public, backbone.host)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_matching_model_must_have_its_head(start):
    name = "blip_image_text_matching shared images"
    public = {key: value for key, value in public_of(name).items() if not key.startswith("itm_head")}
    with pytest.raises(ValueError, match=r"2 missing: itm_head.bias, itm_head.weight"):
        start(name, public)


@pytest.mark.parametrize("name", CASES)
def test_round_trip_through_a_training(start, tmp_path, name):
    """Public file -> a training step with trimmers -> LAVIS's own class and its own loading, with the same answers."""
    public = public_of(name)
    model = MODELS.build({"type": "TrimmedVLM", "backbone": CASES[name], "policy": {"type": "SmartTrim"}})
    model.backbone = start(name, public).train()
    inputs = random_inputs(model.backbone.input_format, [6, 3, 5])  # NLVR2: each text has two images
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.loss(inputs)["loss_task"].backward()
    optimizer.step()
    weights = plain_weights(model.state_dict())
    assert weights.keys() == public.keys()
    assert [key for key in weights if not torch.equal(weights[key], public[key])]
    path = tmp_path / "exported.pth"
    torch.save({"model": weights}, path)

    lavis = build(name, seed=2).host
    lavis.__class__ = type(lavis).__mro__[1]
    message = lavis.load_checkpoint(str(path))
    assert not message.missing_keys and not message.unexpected_keys
    each = model.backbone.images_per_text
    words = BatchEncoding({"input_ids": inputs.input_ids, "attention_mask": inputs.text_mask.long()})
    samples = {key: inputs.images[i::each] for i, key in enumerate(["image"] if each == 1 else ["image0", "image1"])}
    samples |= {"text_input": words, "label": inputs.targets}
    assert isinstance(lavis.tokenizer, GivenTokens)
    model.eval()
    with torch.no_grad():
        ours = model.trace(inputs, policy=model.dense)[0]
        # whose own words, ranks or features are compared elsewhere
        if any(kind in name for kind in ("vqa", "caption", "retrieval", "qformer")):
            model.backbone.host = lavis
            theirs = model.host_forward(inputs)
        else:
            theirs = lavis(samples, match_head="itm") if "matching" in name else lavis.predict(samples)["predictions"]
        torch.testing.assert_close(ours, theirs)


def test_another_models_weights_are_not_exported():
    with pytest.raises(ValueError, match=r"no key begins with 'backbone.host.'"):
        plain_weights({"backbone.vit_model.x": torch.zeros(1)})
