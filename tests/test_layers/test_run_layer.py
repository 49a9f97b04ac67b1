from dataclasses import replace

import pytest
import torch

from smarttrim_mm.attention.base import ChosenAttention
from smarttrim_mm.layers.run_layer import _drop_path, run_layer
from smarttrim_mm.structures import TokenStream

IDS = torch.arange(3)
VALID = torch.arange(6) < torch.tensor([[6], [3], [5]])
KEEP = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]).bool()
HEADS = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])


def at_kept(stream, x):
    return x[stream.layout.kept_grid()]


@pytest.mark.parametrize("pre_norm", [True, False])
def test_every_token_and_head(encoder_layer, fixed, tokens, pre_norm):
    host, step = encoder_layer(pre_norm)
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID)
    expected = host(tokens, src_key_padding_mask=~VALID)[VALID]
    for start in (stream, stream.pack()):
        out, record = run_layer(step, {"words": start}, fixed())
        torch.testing.assert_close(out["words"].pack().x, expected)
        assert record.heads == {}
    rows, keys = 18, 18 * 6  # without padding in Linears; masked scores are computed on all of it
    linears = 4 * 16 * 16 + 2 * 16 * 24
    assert run_layer(step, {"words": stream}, fixed())[1].executed == rows * linears + 2 * keys * 16


@pytest.mark.parametrize("pre_norm", [True, False])
def test_kept_tokens_are_all_there_is(encoder_layer, fixed, tokens, pre_norm):
    """What is dropped might as well be padding."""
    host, step = encoder_layer(pre_norm)
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID)
    expected = host(tokens, src_key_padding_mask=~(KEEP & VALID))[KEEP & VALID]
    gates = KEEP.float().requires_grad_()
    for start, keep in ((stream, KEEP), (stream, gates), (stream.pack(), KEEP), (stream.pack(), gates)):
        out, record = run_layer(step, {"words": start}, fixed({"words": keep}))
        torch.testing.assert_close(at_kept(out["words"], out["words"].x) if start is stream else out["words"].x, expected)
        assert record.tokens["words"].counts().tolist() == [4, 2, 1]
        assert record.before["words"].counts().tolist() == [6, 3, 5]


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_heads_that_are_off_are_zero_before_the_output_projection(encoder_layer, fixed, tokens, pre_norm, bias):
    host, step = encoder_layer(pre_norm, bias)
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID)
    whole = host.self_attn.out_proj.weight.detach().clone()
    results = [run_layer(step, {"words": s}, fixed(heads={"words.self": HEADS}))[0]["words"] for s in (stream, stream.pack())]
    for b in range(3):
        with torch.no_grad():  # an oracle of our own: without the columns of the heads that are off
            host.self_attn.out_proj.weight.copy_(whole * HEADS[b].repeat_interleave(4))
        expected = host(tokens[b : b + 1], src_key_padding_mask=~VALID[b : b + 1])[0, VALID[b]]
        host.self_attn.out_proj.weight.data.copy_(whole)
        torch.testing.assert_close(results[0].x[b, VALID[b]], expected)
        torch.testing.assert_close(results[1].x[results[1].layout.instance == b], expected)
        alone = TokenStream.start(tokens[b : b + 1, : VALID[b].sum()], ids=IDS[:1]).pack()
        out, record = run_layer(step, {"words": alone}, fixed(heads={"words.self": HEADS[b : b + 1]}))
        torch.testing.assert_close(out["words"].x, expected)
        n, on = int(VALID[b].sum()), int(HEADS[b].sum())
        assert record.executed == n * 2 * 16 * 24 + on * 4 * (4 * n * 16 + 2 * n * n)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_memory_is_cut_and_returned(decoder_layer, fixed, tokens, pre_norm):
    """A stream without a layer of its own in the step: keys and values only."""
    host, step = decoder_layer(pre_norm)
    image = torch.randn(3, 4, 16)
    keep = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1]]).bool()
    expected = host(tokens, image, memory_key_padding_mask=~keep, tgt_key_padding_mask=~VALID)[VALID]
    streams = {"words": TokenStream.start(tokens, ids=IDS, valid=VALID), "image": TokenStream.start(image, ids=IDS)}
    for pack in (False, True):
        start = {name: stream.pack() if pack else stream for name, stream in streams.items()}
        out, record = run_layer(step, start, fixed({"image": keep}))
        torch.testing.assert_close(out["words"].pack().x, expected)
        assert out["image"].layout.counts().tolist() == [2, 1, 3]
        torch.testing.assert_close(out["image"].pack().x, image[keep])
        n, m = torch.tensor([6.0, 3, 5]), torch.tensor([2.0, 1, 3])
        cost = n * (4 + 2) * 256 + 2 * m * 256 + 2 * (n * n + n * m) * 16 + n * 2 * 16 * 24
        torch.testing.assert_close(record.decided(), cost)


def test_both_streams_read_what_the_other_was(decoder_layer, fixed, tokens):
    """Fusion layers run in parallel: neither sees the other's output of the same layer."""
    (host, words), (other, pixels) = decoder_layer(False), decoder_layer(False)
    layer = pixels.layers["words"]
    mirrored = tuple(
        type(view)(
            "image." + view.name.split(".")[1], "image" if view.reads == "words" else "words", *list(vars(view).values())[2:]
        )
        for view in layer.attentions
    )
    both = type(words)("fusion.0", {**words.layers, "image": type(layer)(mirrored, layer.mlp, layer.pre_norm, layer.owner)})
    image = torch.randn(3, 4, 16)
    out, _ = run_layer(both, {"words": TokenStream.start(tokens, ids=IDS), "image": TokenStream.start(image, ids=IDS)}, fixed())
    torch.testing.assert_close(out["words"].x, host(tokens, image))
    torch.testing.assert_close(out["image"].x, other(image, tokens))


def test_dropout_as_in_the_host(encoder_layer, fixed, tokens):
    host, step = encoder_layer(False, dropout=0.3)
    host.train()
    stream = TokenStream.start(tokens, ids=IDS)
    torch.manual_seed(1)
    out, _ = run_layer(step, {"words": stream}, fixed())
    torch.manual_seed(1)
    again, _ = run_layer(step, {"words": stream}, fixed())
    assert torch.equal(out["words"].x, again["words"].x)
    assert not torch.allclose(out["words"].x, host.eval()(tokens))
    torch.testing.assert_close(run_layer(step, {"words": stream}, fixed())[0]["words"].x, host(tokens))


@pytest.mark.parametrize("kind", ["mean", "merge"])
def test_two_attentions_make_one_sub_layer(twin_layer, fixed, tokens, kind):
    """Against torch's attentions, with another number of kept tokens in each image, and heads off in one of them."""
    attentions, merge, step = twin_layer(kind)
    layer = step.layers["words"]
    images = {f"image{i}": torch.randn(3, 4 + i, 12) for i in range(2)}
    keep = {f"image{i}": torch.rand(3, 4 + i) < 0.5 for i in range(2)}
    for grid in keep.values():
        grid[:, 0] = True
    parts = [
        module(tokens, x, x, key_padding_mask=~keep[name], need_weights=False)[0]
        for module, (name, x) in zip(attentions, images.items(), strict=True)
    ]
    y = (parts[0] + parts[1]) / 2 if merge is None else merge(torch.cat(parts, -1))
    x = layer.attentions[0].norm(tokens + y)
    expected = layer.mlp.norm(x + layer.mlp.fc2(layer.mlp.act(layer.mlp.fc1(x))))
    streams = {name: TokenStream.start(x, ids=IDS) for name, x in {"words": tokens, **images}.items()}
    for pack in (False, True):
        start = {name: stream.pack() if pack else stream for name, stream in streams.items()}
        out, record = run_layer(step, start, fixed(keep))
        torch.testing.assert_close(out["words"].pack().x, expected.flatten(0, 1))
        n, m = 6.0, sum(grid.sum(1) for grid in keep.values())
        # queries and outputs of both attentions, keys and values of each image's own tokens
        cost = 2 * n * 2 * 256 + 2 * m * 16 * 12 + 2 * n * m * 16 + n * (2 * 16 * 24 + (512 if merge else 0))
        torch.testing.assert_close(record.decided(), cost)
    off = fixed(keep, {"words.cross1": torch.zeros(3, 4).bool()})
    outputs = [run_layer(step, {k: s.pack() if pack else s for k, s in streams.items()}, off)[0] for pack in (False, True)]
    torch.testing.assert_close(outputs[0]["words"].pack().x, outputs[1]["words"].x)
    assert not torch.allclose(outputs[1]["words"].x, expected.flatten(0, 1))


def test_drop_path_takes_whole_instances(tokens):
    stream = TokenStream.start(
        torch.randn(50, 6, 16), ids=torch.arange(50), valid=torch.arange(6) < torch.arange(50)[:, None] % 6 + 1
    )
    results = []
    for start in (stream, stream.pack()):
        torch.manual_seed(4)
        results.append(start.map(lambda x, layout=start.layout: _drop_path(x, layout, 0.25)).pack().x)
    assert torch.equal(*results)
    torch.manual_seed(4)
    kept = torch.rand(50) >= 0.25
    torch.testing.assert_close(results[0], stream.pack().x * stream.pack().layout.per_token(kept[:, None] / 0.75))
    assert 0 < kept.sum() < 50
    assert _drop_path(tokens, stream.layout, 0.0) is tokens


@pytest.mark.parametrize("packed", [True, False])
def test_stochastic_depth_in_low_precision_without_gradients(encoder_layer, fixed, tokens, packed):
    """As a teacher's pass has it: no further rows lie behind the tokens of packed streams."""
    host, step = encoder_layer(True)
    layer = step.layers["words"]
    layer = replace(layer, mlp=replace(layer.mlp, drop_path=0.5), owner=host.train())
    stream = TokenStream.start(tokens, ids=IDS, valid=VALID)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out, _ = run_layer(replace(step, layers={"words": layer}), {"words": stream.pack() if packed else stream}, fixed())
    assert out["words"].x.shape == ((14, 16) if packed else tokens.shape)


def test_self_attention_has_one_set_of_sequences(decoder_layer, fixed, tokens):
    """Backends lay out one set of sequences once, and know it by its identity."""
    same = []

    class Spied(ChosenAttention):
        def on(self, device, dtype):
            backend = super().on(device, dtype)
            return lambda q, k, v, of_q, of_k, heads: same.append(of_q is of_k) or backend(q, k, v, of_q, of_k, heads)

    _, step = decoder_layer(True)
    streams = {name: TokenStream.start(tokens, ids=IDS).pack() for name in ("words", "image")}
    run_layer(step, streams, fixed(), attention=Spied())
    assert same == [True, False]
