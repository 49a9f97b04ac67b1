from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cosine_similarity

from smarttrim_mm.policies.base import UnsupportedBackboneError
from smarttrim_mm.policies.mue import likeness
from smarttrim_mm.structures import TokenStream

IMAGE = {"vision": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 5, "heads": 4}}


def traced(model, inputs, kind="masked"):
    with torch.no_grad():
        return model.trace(inputs, kind)[1]


def runs(record, part):
    """Which instances run a part, by step, as ones and zeros."""
    return {entry.step.name: (entry.run[part] > 0).int().tolist() for entry in record.steps if part in entry.run}


def step_of(model, name):
    return next(step for stage in model.backbone.steps.values() for step in stage if step.name == name)


def test_exits_by_hand(make_model):
    """The means of an image's tokens turn by an angle from layer to layer: cosines of 0, 0.8, 1 and 0."""
    model = make_model({"type": "MuE", "similarity": 0.7, "streams": ["image"]}, IMAGE)
    # two tokens each, whose means are (1, 0), (0, 1), (3, 4) / 5, (3, 4), (-4, 3)
    states = [[2.0, 0, 0, 0], [0, 1, 0, 1], [1.2, 1.6, 0, 0], [3, 5, 3, 3], [-8, 6, 0, 0]]
    carried, ran = {}, []
    for index, values in enumerate(states):
        x = torch.tensor(values).view(1, 2, 2)
        stream = TokenStream.start(x, ids=torch.tensor([0]))
        stream = TokenStream(stream.x, stream.layout, carried)
        decision = model.policy.before_layer(step_of(model, f"image.{index}"), {"image": stream}, {})
        carried = dict(decision.carry["image"])
        ran.append({part: gate.tolist() for part, gate in decision.run.items()})
    everything, nothing = ({f"image.{part}": [on] for part in ("attention", "mlp")} for on in (True, False))
    # the first layer has no choice; then 0 is below 0.7, and 0.8 above; who has gone stays gone
    assert ran == [{}, everything, nothing, nothing, nothing]


def test_the_mean_is_of_kept_tokens(make_model):
    model = make_model({"type": "MuE", "similarity": 0.7, "streams": ["image"]}, IMAGE)
    x = torch.tensor([[[1.0, 0], [9, 9], [3, 4]]])
    stream = TokenStream.start(x, ids=torch.tensor([0])).select(torch.tensor([[1.0, 0, 1]]))
    for each in (stream, stream.pack()):
        notes = model.policy.before_layer(step_of(model, "image.0"), {"image": each}, {}).carry["image"]
        assert notes["mue_mean"].tolist() == [[2, 2]] and notes["mue_gone"].tolist() == [False]


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_exits_of_a_model(make_model, make_inputs, kind):
    """What a dense pass shows of the stream at each layer says who exits first, and where."""
    means = []
    dense = make_model({"type": "MuE", "streams": ["image"]}, IMAGE)
    inputs = make_inputs(dense)
    ask = dense.policy.before_layer

    def listen(step, streams, guides):
        if step.stage == "image":
            means.append(streams["image"].layout.mean(streams["image"].x))
        return ask(step, streams, guides)

    dense.policy.before_layer = listen
    traced(dense, inputs, kind)
    cosines = torch.stack([cosine_similarity(new, old) for old, new in pairwise(means)])
    limit = float(cosines.flatten().sort().values[-3:-1].mean())  # one or two images exceed it, at some layer
    model = make_model({"type": "MuE", "streams": ["image"], "similarity": limit}, IMAGE)
    expected = (cosines > limit).cummax(0).values
    assert 0 < expected.sum() < expected.numel()
    for part in ("image.attention", "image.mlp"):
        found = [value for name, value in runs(traced(model, inputs, kind), part).items() if name.startswith("image.")]
        assert found == (~expected).int().tolist()


def test_every_stage_begins_anew(make_model, make_inputs):
    model = make_model({"type": "MuE", "similarity": -1.0}, IMAGE)
    record = traced(model, make_inputs(model), "packed")
    ran = {**runs(record, "image.mlp"), **{f"{name} text": on for name, on in runs(record, "text.mlp").items()}}
    assert set(ran) == {"image.1", "image.2", "image.3", "image.4", "text.1 text", "fusion.1", "fusion.1 text"}
    assert not any(map(any, ran.values()))  # the first layer of each stage ran, no other did


def test_reports_say_what_ran(make_model, make_inputs):
    model = make_model({"type": "MuE", "similarity": -1.0, "streams": ["image"]}, IMAGE)
    summary = traced(model, make_inputs(model), "packed").summary()
    assert summary["runs/image.1/image.mlp"].tolist() == [0.0] * 6
    assert "runs/image.0/image.mlp" not in summary
    losses = model.train().loss(make_inputs(model))
    assert losses["runs/image.1/image.attention"] == 0


def test_what_is_skipped_is_not_executed(make_model, make_inputs):
    model = make_model({"type": "MuE", "similarity": -1.0, "streams": ["image"]}, IMAGE)
    inputs = make_inputs(model)
    record = traced(model, inputs, "packed")
    executed = {entry.step.name: entry.executed for entry in record.steps}
    assert executed["image.0"] > 0
    assert [executed[f"image.{index}"] for index in (1, 2, 3, 4)] == [0] * 4
    masked = traced(model, inputs)
    torch.testing.assert_close(masked.multiply_adds(), record.multiply_adds())
    assert (record.multiply_adds() < 0.7 * record.dense_multiply_adds()).all()


def test_exits_only_before_chosen_layers(make_model, make_inputs):
    config = {"type": "MuE", "similarity": -1.0, "streams": ["image"], "layers": {"image": [3], "fusion": []}}
    model = make_model(config, IMAGE)
    record = traced(model, make_inputs(model))
    assert {name: any(on) for name, on in runs(record, "image.mlp").items()} == {"image.3": False, "image.4": False}


@pytest.mark.parametrize(("similarity", "progress"), [(1.0, 1.0), (-1.0, 0.0)])
def test_nothing_exits_by_default_or_before_the_curriculum(make_model, make_inputs, similarity, progress):
    model = make_model({"type": "MuE", "similarity": similarity}, IMAGE)
    model.set_curriculum(progress)
    record = traced(model, make_inputs(model))
    assert torch.equal(record.multiply_adds(), record.dense_multiply_adds())


def test_a_state_that_does_not_change_is_not_above_one():
    state = torch.rand(50, 7) + 0.1
    assert (likeness(state, state) <= 1).all()
    assert likeness(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])).tolist() == [pytest.approx(0.96)]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("similarity", 1.5, r"similarity is 1.5; expected a cosine in \[-1, 1\]"),
        ("streams", ["audio"], r"streams holds \['audio'\]"),
        ("layers", {"fusion": [9]}, r"layers names layers \[9\] of stage 'fusion'"),
    ],
)
def test_impossible_values(make_model, argument, value, message):
    with pytest.raises(ValueError, match=message):
        make_model({"type": "MuE", argument: value})


def test_nothing_to_skip(make_model):
    with pytest.raises(UnsupportedBackboneError, match=r"layers \{'image': \[0\], .*nothing to skip"):
        make_model({"type": "MuE", "layers": {"image": [0], "text": [], "fusion": []}})
