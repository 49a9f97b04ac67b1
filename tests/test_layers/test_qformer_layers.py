"""Layers whose first tokens have a part of their own, against LAVIS's Q-Former."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig

from smarttrim_mm.backbones.lavis_host import import_lavis
from smarttrim_mm.layers.bert_views import bert_view, qformer_view
from smarttrim_mm.layers.record import decoder_multiply_adds
from smarttrim_mm.layers.run_layer import run_layer
from smarttrim_mm.layers.views import LayerStep
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import excite

IDS = torch.arange(3)
VALID = torch.arange(6) < torch.tensor([[6], [3], [5]])  # two queries, and texts of 4, 1 and 3 tokens
KEEP = torch.tensor([[0, 0, 1, 0, 0, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
LEFT = torch.tensor([[1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()  # no query is dropped
QUERY = (torch.arange(6) < 2).expand(3, 6)


@pytest.fixture(params=[0, 1], ids=["reads the image", "reads nothing"])
def layer(request):
    """A layer of LAVIS's, and the step that it is."""
    config = BertConfig(hidden_size=16, num_attention_heads=4, intermediate_size=24, hidden_dropout_prob=0.2)
    config.add_cross_attention, config.cross_attention_freq, config.encoder_width = True, 2, 12
    layer = import_lavis("lavis.models.blip2_models.Qformer").BertLayer(config, request.param).eval()
    torch.nn.init.zeros_(layer.output_query.dense.bias)
    excite(layer)
    reads = ["image"] if layer.has_cross_attention else []
    return layer, LayerStep("fusion.0", {"text": qformer_view(layer, "text", 2, *reads)}, memories=dict.fromkeys(reads, 12))


def host(layer, x, mask, image):
    negative = torch.zeros(3, 1, 1, x.shape[1]).masked_fill(~mask[:, None, None], -1e4)
    return layer(x, negative, encoder_hidden_states=image, encoder_attention_mask=torch.zeros(3, 1, 1, 4), query_length=2)[0]


def streams_of(step, tokens, image, pack):
    text = TokenStream.start(tokens, ids=IDS, valid=VALID, special=QUERY)
    streams = {"text": text, "image": TokenStream.start(image, ids=IDS)}
    return {name: streams[name].pack() if pack else streams[name] for name in step.streams()}


@pytest.mark.parametrize("pack", [False, True])
def test_every_token(layer, fixed, tokens, pack):
    (layer, step), image = layer, torch.randn(3, 4, 12)
    out, record = run_layer(step, streams_of(step, tokens, image, pack), fixed())
    torch.testing.assert_close(out["text"].pack().x, host(layer, tokens, VALID, image)[VALID])
    n, m = torch.tensor([6.0, 3, 5]), 4.0
    cost = 4 * n * 256 + 2 * n * n * 16 + n * 2 * 16 * 24
    if layer.has_cross_attention:
        cost += 2 * 2 * 256 + 2 * m * 12 * 16 + 2 * 2 * m * 16
    torch.testing.assert_close(record.decided(), cost)
    torch.testing.assert_close(record.dense(), cost)
    torch.testing.assert_close(decoder_multiply_adds([step.layers["text"]], "image", n, torch.full_like(n, m), 7), cost + 7 * n)


@pytest.mark.parametrize("pack", [False, True])
def test_words_are_dropped_and_queries_are_not(layer, fixed, tokens, pack):
    """The last text loses every word."""
    (layer, step), image = layer, torch.randn(3, 4, 12)
    expected = host(layer, tokens, LEFT, image)[LEFT]
    for keep in (KEEP, KEEP.float().requires_grad_()):
        out, record = run_layer(step, streams_of(step, tokens, image, pack), fixed({"text": keep}))
        found = out["text"].x if pack else out["text"].x[LEFT]
        torch.testing.assert_close(found, expected)
        assert record.tokens["text"].counts().tolist() == [4, 3, 2]
        assert torch.equal(out["text"].layout.kept_grid(), LEFT)
    assert record.decided().requires_grad is not pack  # a packed layout holds what was kept, without gates


def test_the_two_mlps_cost_what_they_are(layer):
    view = layer[1].layers["text"]
    wider = replace(view, first_mlp=replace(view.first_mlp, fc1=torch.nn.Linear(16, 40), fc2=torch.nn.Linear(40, 16)))
    n = torch.tensor([2.0, 6.0])
    difference = decoder_multiply_adds([wider], "image", n, n, 0) - decoder_multiply_adds([view], "image", n, n, 0)
    assert difference.tolist() == [2 * 2 * 16 * 16] * 2


@pytest.mark.parametrize("pack", [False, True])
def test_queries_alone(layer, fixed, tokens, pack):
    (layer, step), image = layer, torch.randn(3, 4, 12)
    streams = {
        "text": TokenStream.start(tokens[:, :2], ids=IDS, special=QUERY[:, :2]),
        "image": TokenStream.start(image, ids=IDS),
    }
    out, _ = run_layer(step, {name: streams[name].pack() if pack else streams[name] for name in step.streams()}, fixed())
    torch.testing.assert_close(out["text"].x.view(3, 2, 16), host(layer, tokens[:, :2], QUERY[:, :2], image))


def test_dropout_in_the_order_of_the_host(layer, fixed, tokens):
    (layer, step), image = layer, torch.randn(3, 4, 12)
    layer.train()
    found = []
    streams = streams_of(step, tokens, image, False)
    for run in (lambda: run_layer(step, streams, fixed())[0]["text"].x, lambda: host(layer, tokens, VALID, image)):
        torch.manual_seed(5)
        found.append(run()[VALID])
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], host(layer.eval(), tokens, VALID, image)[VALID])


def test_a_split_layout_joins_again(tokens):
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID, special=QUERY)
    packed = stream.pack().select(stream.pack().layout.from_grid(KEEP))
    for one in (stream, packed):
        first, others = one.split(2)
        assert torch.equal(one.layout.join(first.x, others.x), one.x)
        assert first.layout.counts().tolist() == [2, 2, 2]
        assert torch.equal(others.layout.counts(), one.layout.counts() - 2)
        values = torch.arange(3.0)
        spread = others.layout.per_token(values).expand(others.x.shape[:-1])
        assert torch.equal(others.layout.to_grid(spread, -1).amax(1)[:2], values[:2])
    assert packed.split(2)[1].layout.lengths == (2, 1, 0)


def test_the_first_tokens_come_last(layer):
    view = layer[1].layers["text"]
    with pytest.raises(ValueError, match=r"first of the attentions \['text.self'.* is \[2.*first_mlp.first, 2"):
        replace(view, attentions=tuple(replace(each, first=2) for each in view.attentions[:1]) + view.attentions[:1])
    with pytest.raises(ValueError, match=r"first_mlp\.first, 3"):
        replace(view, attentions=(replace(view.attentions[0], first=2),), first_mlp=replace(view.first_mlp, first=3))
    assert bert_view(layer[0], "text").first is None
