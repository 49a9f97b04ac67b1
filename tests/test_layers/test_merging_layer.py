import pytest
import torch
from torch.nn.functional import linear

from smarttrim_mm.layers.merging_layer import run_merging_layer
from smarttrim_mm.layers.views import LayerView
from smarttrim_mm.ops.merging import match_tokens, merge_tokens
from smarttrim_mm.testing import count_multiply_adds

X = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))


def view_of(step) -> LayerView:
    (layer,) = step.layers.values()
    return layer


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [True, False])
def test_without_merges_it_is_the_hosts_layer(encoder_layer, pre_norm):
    host, step = encoder_layer(pre_norm)
    merged = run_merging_layer(step.name, view_of(step), X, None, 0)
    torch.testing.assert_close(merged.x, host(X))
    assert merged.kept is merged.sizes is None


@torch.no_grad()
@pytest.mark.parametrize("pre_norm", [True, False])
def test_tokens_merge_between_attention_and_mlp(encoder_layer, pre_norm):
    host, step = encoder_layer(pre_norm)
    merged = run_merging_layer(step.name, view_of(step), X, None, 3)
    y = host.norm1(X) if pre_norm else X
    keys = linear(y, host.self_attn.in_proj_weight[16:32], host.self_attn.in_proj_bias[16:32])
    merges = match_tokens(keys.unflatten(-1, (4, 4)).mean(2), 3)
    attended = X + host.self_attn(y, y, y, need_weights=False)[0]
    attended = attended if pre_norm else host.norm1(attended)
    expected, sizes = merge_tokens(attended, torch.ones(3, 9), merges)
    inner = host.linear2(torch.nn.functional.gelu(host.linear1(host.norm2(expected) if pre_norm else expected)))
    expected = expected + inner if pre_norm else host.norm2(expected + inner)
    torch.testing.assert_close(merged.x, expected)
    assert torch.equal(merged.sizes, sizes) and torch.equal(merged.kept, merges.kept)


@torch.no_grad()
def test_a_merged_token_is_attended_as_the_equal_ones_that_it_stands_for(encoder_layer):
    _, step = encoder_layer(True)
    layer = view_of(step)
    thrice = torch.cat([X, X[:, 4:5], X[:, 4:5]], 1)
    whole = run_merging_layer(step.name, layer, thrice, None, 0)
    sizes = torch.ones(3, 9).index_fill(1, torch.tensor(4), 3.0)
    torch.testing.assert_close(run_merging_layer(step.name, layer, X, sizes, 0).x, whole.x[:, :9])
    plain = run_merging_layer(step.name, layer, X, None, 0)
    assert (plain.x - whole.x[:, :9]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("sized", [False, True])
def test_executed_compute_is_what_torch_multiplies(encoder_layer, count, sized):
    _, step = encoder_layer(True)
    sizes = torch.full((3, 9), 2.0) if sized else None
    merged, counted = count_multiply_adds(lambda: run_merging_layer(step.name, view_of(step), X, sizes, count))
    assert merged.executed == counted


def test_other_layers_are_refused(encoder_layer, decoder_layer):
    host, step = encoder_layer(True)
    host.train()
    with pytest.raises(ValueError, match=r"text\.0 is in training mode; expected evaluation"):
        run_merging_layer(step.name, view_of(step), X, None, 1)
    _, step = decoder_layer(True)
    with pytest.raises(ValueError, match=r"attentions \['words.self', 'words.cross'\] and first=None; expected one self"):
        run_merging_layer(step.name, view_of(step), X, None, 1)
