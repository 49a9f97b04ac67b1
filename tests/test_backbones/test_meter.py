import pytest
import torch

from smarttrim_mm.backbones.meter import METER
from smarttrim_mm.testing import kept_grids

FACTS = [
    "vit_model.visual.conv1.weight",
    "vit_model.visual.class_embedding",
    "vit_model.visual.positional_embedding",
    "vit_model.visual.ln_pre.weight",
    "vit_model.visual.ln_post.bias",
    "vit_model.visual.transformer.resblocks.0.attn.in_proj_weight",
    "vit_model.visual.transformer.resblocks.0.attn.in_proj_bias",
    "vit_model.visual.transformer.resblocks.0.attn.out_proj.weight",
    "vit_model.visual.transformer.resblocks.0.ln_1.weight",
    "vit_model.visual.transformer.resblocks.0.ln_2.bias",
    "vit_model.visual.transformer.resblocks.0.mlp.c_fc.weight",
    "vit_model.visual.transformer.resblocks.0.mlp.c_proj.bias",
    "text_transformer.embeddings.word_embeddings.weight",
    "text_transformer.encoder.layer.0.attention.self.query.weight",
    "cross_modal_text_transform.weight",
    "cross_modal_image_transform.bias",
    "token_type_embeddings.weight",
    "cross_modal_text_layers.0.attention.self.query.weight",
    "cross_modal_image_layers.1.attention.output.dense.weight",
    "cross_modal_text_layers.0.crossattention.self.key.bias",
    "cross_modal_image_layers.0.crossattention.output.LayerNorm.weight",
    "cross_modal_text_layers.0.intermediate.dense.weight",
    "cross_modal_image_layers.0.output.LayerNorm.bias",
    "cross_modal_text_pooler.dense.weight",
    "cross_modal_image_pooler.dense.bias",
    "vqa_classifier.0.weight",
    "vqa_classifier.1.weight",
    "vqa_classifier.3.bias",
]


def test_parameters_carry_the_names_of_the_public_checkpoints(make_model):
    backbone = make_model().backbone
    keys = backbone.state_dict().keys()
    assert not set(FACTS) - keys
    prefixes = {key.split(".")[0] for key in keys}
    assert prefixes == {key.split(".")[0] for key in FACTS}
    assert not any("text_transformer.pooler" in key for key in keys)


def test_the_head_can_be_renamed(make_model, make_inputs):
    model = make_model(backbone={"head_name": "snli_classifier", "num_classes": 3})
    assert "snli_classifier.3.weight" in model.backbone.state_dict()
    assert model(make_inputs(model)).shape == (6, 3)


def test_layer_norm_eps_and_dropout_of_the_paper():
    with torch.device("meta"):
        backbone = METER(num_classes=2)
    eps = lambda module: {m.eps for m in module.modules() if isinstance(m, torch.nn.LayerNorm)}  # noqa: E731
    assert eps(backbone.cross_modal_text_layers) == eps(backbone.cross_modal_image_layers) == {1e-12}
    assert eps(backbone.text_transformer) == eps(backbone.vit_model) == {1e-5}
    rates = {m.p for m in backbone.cross_modal_image_layers.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.1}


def test_the_text_encoder_is_roberta(make_model, make_inputs):
    """Against the library's own forward of the whole encoder."""
    from smarttrim_mm.layers.execution import Execution

    model = make_model()
    inputs = make_inputs(model)
    with torch.no_grad():
        expected = model.backbone.text_transformer(inputs.input_ids, inputs.text_mask.long()).last_hidden_state
        execution = Execution(model.dense, sample_ids=inputs.sample_ids, kind="packed")
        stream = execution.start(model.backbone.embed_text(inputs))
        stream = execution.run(model.backbone.steps["text"], {"text": stream})["text"]
    torch.testing.assert_close(stream.x, expected[inputs.text_mask], atol=1e-5, rtol=1e-5)


def test_both_fusion_streams_read_the_layer_before(make_model, make_inputs):
    """Swapping the order in which streams are computed changes nothing; a sequential fusion would."""
    model = make_model()
    inputs = make_inputs(model)
    with torch.no_grad():
        logits = model(inputs)
        for step in model.backbone.steps["fusion"]:
            layers = dict(reversed(step.layers.items()))
            step.layers.clear()
            step.layers.update(layers)
        assert list(model.backbone.steps["fusion"][0].layers) == ["image", "text"]
        torch.testing.assert_close(model(inputs), logits)


def test_text_first_excludes_shared_images(make_model):
    with pytest.raises(ValueError, match="text_first=True and share_images=True exclude each other"):
        make_model(backbone={"text_first": True, "share_images": True})


@pytest.mark.parametrize(
    "policy", ["Dense", {"type": "Random", "keep_ratio": 0.7}, {"type": "SmartTrim", "stable_init": False}]
)
def test_sharing_an_image_changes_no_answer(make_model, make_inputs, policy):
    shared, apart = make_model(policy), make_model(policy, {"share_images": False})
    apart.load_state_dict(shared.state_dict())
    inputs = make_inputs(shared)
    with torch.no_grad():
        (logits, record), (same, other) = shared.trace(inputs), apart.trace(inputs)
    torch.testing.assert_close(same, logits, atol=1e-5, rtol=1e-5)
    for name, grid in kept_grids(record).items():
        assert torch.equal(kept_grids(other)[name], grid), name
    torch.testing.assert_close(other.multiply_adds(), record.multiply_adds())
    assert record.executed_multiply_adds() < other.executed_multiply_adds()  # three images, not six
    assert shared.backbone.share_images and not apart.backbone.share_images


def test_text_first_shares_nothing(make_model):
    assert not make_model(backbone={"text_first": True}).backbone.share_images
    assert make_model(backbone={"text_first": True}).backbone.steps["image"][0].guides == {"text": 32}
    assert make_model().backbone.steps["image"][0].guides == {}


def test_each_input_matters(make_model, make_inputs):
    model = make_model()
    inputs = make_inputs(model)
    with torch.no_grad():
        logits = model(inputs)
        for field in ("images", "input_ids"):
            value = getattr(inputs, field).clone()
            place = (0, ..., -1) if field == "images" else (0, 7)  # a corner of the last patch; the last word
            value[place] = value[place] + 1
            moved = (model(type(inputs)(**{**vars(inputs), field: value})) - logits).abs().amax(1) > 1e-4
            assert moved.tolist() == ([True, True] if field == "images" else [True, False]) + [False] * 4


def test_images_of_another_size(make_model, make_inputs):
    model = make_model()
    inputs = make_inputs(model)
    with pytest.raises(ValueError, match=r"images are \(16, 32\) pixels; expected 32 by 32"):
        model(type(inputs)(**{**vars(inputs), "images": inputs.images[:, :, :16]}))


def test_compute_by_hand(make_model, make_inputs):
    """All of a small METER, from its sizes: 17 image tokens of width 48 and 5 text tokens of width 32, fused at 64."""
    model = make_model()
    _, record = model.trace(make_inputs(model, (5,), None))

    def attention(n, m, own, other):
        return 2 * n * own * own + 2 * m * other * own + 2 * n * m * own

    vision = 16 * 48 * 192 + 3 * (attention(17, 17, 48, 48) + 17 * 2 * 48 * 192)
    text = 2 * (attention(5, 5, 32, 32) + 5 * 2 * 32 * 64)
    fusion = 17 * 48 * 64 + 5 * 32 * 64
    for n, m in ((17, 5), (5, 17)):
        fusion += 2 * (attention(n, n, 64, 64) + attention(n, m, 64, 64) + n * 2 * 64 * 128)
    head = 2 * 64 * 64 + 128 * 128 + 128 * 7
    assert record.dense_multiply_adds().tolist() == [vision + text + fusion + head]
