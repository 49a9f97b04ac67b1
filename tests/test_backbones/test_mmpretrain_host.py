import pytest
import torch
from mmengine.config import ConfigDict

from smarttrim_mm.backbones.mmpretrain_host import build_host, vit_view
from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.dense import Dense
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import excite

ARCH = {"embed_dims": 24, "num_layers": 2, "num_heads": 4, "feedforward_channels": 40}
SMALL = {"type": "VisionTransformer", "arch": ARCH, "img_size": 16, "patch_size": 4}
KINDS = {
    "plain": {},
    "LayerScale": {"layer_scale_init_value": 0.5},
    "drop path and dropout": {"drop_path_rate": 0.5, "drop_rate": 0.3, "layer_cfgs": {"attn_drop_rate": 0.2}},
    "all of it": {"layer_scale_init_value": 0.5, "drop_path_rate": 0.5, "drop_rate": 0.3},
    "no bias, QuickGELU": {"qkv_bias": False, "layer_cfgs": {"act_cfg": {"type": "mmpretrain.QuickGELU"}}},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_is_the_hosts(kind, training):
    layer = build_host({**SMALL, **kind}).layers[1].train(training)
    excite(layer)
    x = torch.randn(5, 7, 24)
    step = LayerStep("image.0", {"image": vit_view(layer, "image")})
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    found, _ = run_layer(step, {"image": TokenStream.start(x, ids=torch.arange(5))}, Dense(steps=[step]))
    torch.testing.assert_close(found["image"].x, expected, atol=1e-6, rtol=1e-6)
    if not training:
        packed, _ = run_layer(step, {"image": TokenStream.start(x, ids=torch.arange(5)).pack()}, Dense(steps=[step]))
        torch.testing.assert_close(packed["image"].x.view(5, 7, 24), expected, atol=1e-6, rtol=1e-5)


def test_a_config_is_read_in_mmpretrains_scope_and_left_alone():
    config = ConfigDict(
        type="ImageClassifier",
        backbone={**SMALL, "out_indices": [-1]},
        head={"type": "LinearClsHead", "num_classes": 3, "in_channels": 24},
    )
    before = config.to_dict()
    assert type(build_host(config)).__module__ == "mmpretrain.models.classifiers.image"
    assert config.to_dict() == before


def test_a_host_on_the_meta_device():
    with torch.device("meta"):
        host = build_host(SMALL)
    assert {parameter.device.type for parameter in host.parameters()} == {"meta"}


def test_what_has_no_view_is_refused():
    with pytest.raises(ValueError, match=r"SwiGLUFFNFused of num_fcs=None; expected FFN of num_fcs=2"):
        vit_view(build_host({**SMALL, "layer_cfgs": {"ffn_type": "swiglu_fused"}}).layers[0], "image")
    with pytest.raises(ValueError, match=r"FFN of num_fcs=3"):
        vit_view(build_host({**SMALL, "layer_cfgs": {"num_fcs": 3}}).layers[0], "image")


def test_a_config_without_a_type_is_refused():
    with pytest.raises(ValueError, match=r"has backbone; expected a type"):
        build_host({"backbone": SMALL})
