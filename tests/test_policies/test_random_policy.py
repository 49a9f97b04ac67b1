import pytest
import torch

from smarttrim_mm.testing import kept_grids


def kept(model, inputs, kind="masked"):
    with torch.no_grad():
        return kept_grids(model.trace(inputs, kind)[1])


def test_the_kept_share_falls_geometrically(make_model, make_inputs):
    model = make_model({"type": "Random", "keep_ratio": 0.5})
    inputs = make_inputs(model)
    grids = kept(model, inputs)
    counts = [int(grids[name][0].sum()) for name in ("image.0/image", "image.1/image", "image.2/image", "fusion.0/image")]
    assert counts == [9, 5, 3, 2]  # of 17: ceil(8.5), ceil(4.25), ceil(2.125), ceil(1.06)
    assert grids["fusion.1/image"].sum(1).tolist() == [1] * 6
    assert grids["text.0/text"].sum(1).tolist() == [5, 2, 2, 4, 5, 2]  # of 9 4 2 7 9 3, at least <s> and </s>


def test_nothing_is_dropped_by_default_or_before_the_curriculum(make_model, make_inputs):
    for config, progress in (({"type": "Random"}, 1.0), ({"type": "Random", "keep_ratio": 0.1}, 0.0)):
        model = make_model(config)
        model.set_curriculum(progress)
        _, record = model.trace(make_inputs(model))
        assert torch.equal(record.multiply_adds(), record.dense_multiply_adds())
    model.set_curriculum(0.5)  # as if keep_ratio were 0.55
    assert kept(model, make_inputs(model))["image.0/image"].sum(1).tolist() == [10] * 6
    model.set_curriculum(1.0)
    assert kept(model, make_inputs(model))["image.0/image"].sum(1).tolist() == [2] * 6


def test_the_draw_depends_on_the_sample_the_step_and_the_seed(make_model, make_inputs):
    grids = {}
    for seed in (0, 1):
        model = make_model({"type": "Random", "keep_ratio": 0.5, "seed": seed})
        inputs = make_inputs(model)
        grids[seed] = kept(model, inputs)
        again = kept(model.train(), inputs)
        assert all(torch.equal(again[name], grid) for name, grid in grids[seed].items())
    first = grids[0]["image.0/image"]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])  # pairs 0 and 1 ask about one image
    assert not torch.equal(first, grids[1]["image.0/image"])
    fusion = kept(make_model({"type": "Random", "keep_ratio": 0.5, "layers": {"image": [], "text": []}}), inputs)[
        "fusion.0/image"
    ]
    assert not torch.equal(fusion[0], fusion[1])  # from there on an image belongs to its pair


def test_no_other_random_numbers_are_drawn(make_model, make_inputs):
    model = make_model({"type": "Random", "keep_ratio": 0.5})
    inputs = make_inputs(model)
    state = torch.get_rng_state()
    model.trace(inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_and_layers(make_model, make_inputs):
    model = make_model({"type": "Random", "keep_ratio": 0.5, "streams": ["image"], "layers": {"image": [1], "fusion": []}})
    grids = kept(model, make_inputs(model))
    assert {name: int(grid[0].sum()) for name, grid in grids.items() if name.endswith("image")} == {
        "image.0/image": 17, "image.1/image": 9, "image.2/image": 9, "fusion.0/image": 9, "fusion.1/image": 9,
    }  # fmt: skip
    assert grids["fusion.1/text"].sum(1).tolist() == [9, 4, 2, 7, 9, 3]


def test_the_knob_is_the_drop_ratio(make_model, make_inputs):
    model = make_model({"type": "Random", "keep_ratio": 0.7})
    assert model.policy.get_knob() == pytest.approx(0.3)
    model.policy.set_knob(0.5)
    assert kept(model, make_inputs(model))["image.0/image"].sum(1).tolist() == [9] * 6


@pytest.mark.parametrize("keep_ratio", [0, -0.5, 1.2, float("nan")])
def test_an_impossible_ratio(make_model, keep_ratio):
    with pytest.raises(ValueError, match=rf"keep_ratio is {keep_ratio}; expected a number in \(0, 1\]"):
        make_model({"type": "Random", "keep_ratio": keep_ratio})


def test_unknown_streams_and_layers(make_model):
    with pytest.raises(ValueError, match=r"streams holds \['audio'\]"):
        make_model({"type": "Random", "streams": ["audio"]})
    with pytest.raises(ValueError, match=r"layers names layers \[9\] of stage 'fusion'"):
        make_model({"type": "Random", "layers": {"fusion": [9]}})
