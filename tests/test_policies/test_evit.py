import pytest
import torch

from smarttrim_mm.policies.evit import EViT
from smarttrim_mm.structures import Evidence, TokenStream

ROW = torch.tensor([[0.3, 0.05, 0.2, 0.1, 0.25, 0.1], [0.1, 0.3, 0.1, 0.1, 0.3, 0.1]])


@pytest.fixture
def steps(make_model):
    return [step for stage in make_model().backbone.steps.values() for step in stage]


def decide(policy, steps, packed=False):
    """On two images of a class token and five patches, whose class tokens attend by ``ROW``."""
    stream = TokenStream.start(torch.zeros(2, 6, 48), ids=torch.tensor([4, 7]))
    step = next(step for step in steps if policy.reduces(step))
    [name] = policy.looks(step)
    row = ROW.flatten() if packed else ROW
    decision = policy.after_attention(step, {"image": stream.pack() if packed else stream}, {name: Evidence(guide_row=row)}, {})
    return decision, name


@pytest.mark.parametrize("packed", [False, True])
def test_the_rest_is_fused_by_attention(steps, packed):
    decision, name = decide(EViT(steps=steps, keep_ratio=0.4), steps, packed)
    # 2 of the five patches stay: of image 0 those with 0.25 and 0.2; the best of the rest are 3 and 5 with 0.1, and 3 comes
    # first. Of image 1 those with 0.3; of the equal rest 2 comes first
    assert name == "image.self" and not decision.keep
    merge = decision.merge["image"]
    assert merge.into.reshape(2, 6).tolist() == [[0, 3, 2, 3, 4, 3], [0, 1, 2, 2, 4, 2]]
    torch.testing.assert_close(merge.weight.reshape(2, 6), ROW)
    assert not merge.sized


def test_the_fused_token_is_the_mean_by_attention(steps):
    merge = decide(EViT(steps=steps, keep_ratio=0.4), steps)[0].merge["image"]
    x = torch.arange(12.0).reshape(2, 6, 1)
    merged, _, stays = TokenStream.start(x, ids=torch.tensor([4, 7])).layout.merge(x, merge)
    # (0.05 * 1 + 0.1 * 3 + 0.1 * 5) / 0.25 = 3.4, and the mean of 8, 9 and 11, which weigh the same
    assert merged[0, 3].item() == pytest.approx(3.4) and merged[1, 2].item() == pytest.approx(28 / 3)
    assert stays.tolist() == [[True, False, True, True, True, False], [True, True, True, False, True, False]]


@pytest.mark.parametrize("packed", [False, True])
def test_the_rest_is_dropped_where_it_is_not_fused(steps, packed):
    decision, _ = decide(EViT(steps=steps, keep_ratio=0.4, fuse=False), steps, packed)
    assert not decision.merge
    expected = [[True, False, True, False, True, False], [True, True, False, False, True, False]]
    assert decision.keep["image"].reshape(2, 6).tolist() == expected


def test_the_curriculum_moves_the_ratio(steps):
    policy = EViT(steps=steps, keep_ratio=0.2, fuse=False)
    for progress, kept in ((0.0, 5), (0.5, 3), (1.0, 1)):  # as if keep_ratio were 1, 0.6 and 0.2, of five patches
        policy.set_curriculum(progress)
        assert decide(policy, steps)[0].keep["image"].sum(1).tolist() == [1 + kept] * 2


def test_counts_fall_from_layer_to_layer(make_model, make_inputs):
    """Of 16 patches 8 stay, and one that is fused; of these 9 then 5 and one; of these 6 then 3 and one."""
    model = make_model({"type": "EViT", "keep_ratio": 0.5})
    with torch.no_grad():
        _, record = model.trace(make_inputs(model))
    counts = {entry.step.name: entry.after["image"].counts().tolist() for entry in record.steps if entry.after}
    assert counts == {"image.0": [10.0] * 3, "image.1": [7.0] * 3, "image.2": [5.0] * 3}


def test_layers_after_each_quarter(make_model):
    backbone = {"vision": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 12, "heads": 4}}
    model = make_model({"type": "EViT"}, backbone)
    assert list(model.policy.attentions) == ["image.3", "image.6", "image.9"]  # 4, 7 and 10, counted from 1
    model = make_model({"type": "EViT", "layers": {"fusion": [1]}}, backbone)
    assert list(model.policy.attentions) == ["image.3", "image.6", "image.9", "fusion.1"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"keep_ratio": 0.0}, r"keep_ratio is 0.0; expected a share in \[0.001, 1\]"),
        ({"keep_ratio": 1.5}, "keep_ratio is 1.5"),
        ({"streams": ["sound"]}, r"streams holds \['sound'\]"),
        ({"layers": {"picture": [1]}}, "layers names stage 'picture'"),
        ({"layers": {"image": [7]}}, r"layers names layers \[7\] of stage 'image', which has layers 0 to 2"),
        ({"layers": {"image": []}}, "no such stream has a self-attention in these layers"),
    ],
)
def test_bad_settings_are_refused(steps, config, message):
    with pytest.raises(ValueError, match=message):
        EViT(steps=steps, **config)
