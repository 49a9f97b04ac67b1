import pytest
import torch
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from smarttrim_mm.layers.bert_views import bert_view
from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import excite

IDS = torch.arange(3)


@pytest.fixture
def layer():
    config = BertConfig(
        hidden_size=16,
        num_attention_heads=4,
        intermediate_size=24,
        is_decoder=True,
        add_cross_attention=True,
        hidden_dropout_prob=0.2,
    )
    layer = BertLayer(config).eval()
    excite(layer)
    return layer


@pytest.mark.parametrize("reads", [(), ("image",)], ids=["alone", "with a memory"])
def test_a_layer_of_transformers(layer, tokens, reads):
    image, nothing = torch.randn(3, 4, 16), torch.zeros(3, 1, 1, 6)
    memory = {"encoder_hidden_states": image, "encoder_attention_mask": torch.zeros(3, 1, 1, 4)} if reads else {}
    step = LayerStep("text.0", {"text": bert_view(layer, "text", *reads)}, memories=dict.fromkeys(reads, 16))
    streams = {"text": TokenStream.start(tokens, ids=IDS), "image": TokenStream.start(image, ids=IDS)}
    out, _ = run_layer(step, {name: streams[name] for name in step.streams()}, Policy(steps=[]))
    torch.testing.assert_close(out["text"].x, layer(tokens, nothing, **memory)[0])


def test_names_and_dropouts(layer):
    view = bert_view(layer, "text", "image")
    assert [(a.name, a.reads, a.heads, a.dropout, a.attention_dropout) for a in view.attentions] == [
        ("text.self", "text", 4, 0.2, 0.1),
        ("text.cross", "image", 4, 0.2, 0.1),
    ]
    assert view.mlp.dropout == 0.2 and not view.pre_norm and view.joins == ()
