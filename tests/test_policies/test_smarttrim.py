import re

import pytest
import torch

from smarttrim_mm.policies.observed import Observed
from smarttrim_mm.testing import kept_grids, random_inputs


def kept(model, inputs):
    with torch.no_grad():
        return kept_grids(model.trace(inputs, "masked")[1])


def smarttrim(**changes):
    return {"type": "SmartTrim", "stable_init": False, **changes}


def dropped(model, inputs):
    """Names ``'<step>/<stream>'`` at which the policy decided on tokens, and ``'<step>/<attention>'`` likewise."""
    with torch.no_grad():
        _, record = model.trace(inputs, "masked")
    tokens = {
        f"{entry.step.name}/{name}"
        for entry in record.steps
        for name, layout in entry.tokens.items()
        if (layout.counts() < entry.before[name].counts()).any()
    }
    return tokens, set(record.heads())


def test_everything_is_trimmed_by_default(make_model, make_inputs):
    model = make_model(smarttrim())
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    assert len(model.policy.token_trimmers) == 2 + 3 + 2 * 2
    assert len(model.policy.head_trimmers) == 2 + 3 + 2 * 4
    for step in steps:
        streams, attentions = model.policy.trims(step)
        assert streams == set(step.layers)
        assert attentions == {view.name for layer in step.layers.values() for view in layer.attentions}
    tokens, heads = dropped(model, make_inputs(model))
    assert {"text.0/text", "image.0/image", "fusion.0/text"} <= tokens
    assert heads == {
        *(f"text.{i}/text.self" for i in range(2)),
        *(f"image.{i}/image.self" for i in range(3)),
        *(f"fusion.{i}/{s}.{kind}" for i in range(2) for s in ("text", "image") for kind in ("self", "cross")),
    }


def test_without_token_trimmers(make_model, make_inputs):
    model = make_model(smarttrim(token_trimmer=None))
    tokens, heads = dropped(model, make_inputs(model))
    assert not tokens and heads and not model.policy.token_trimmers


def test_without_head_trimmers(make_model, make_inputs):
    model = make_model(smarttrim(head_trimmer=None))
    tokens, heads = dropped(model, make_inputs(model))
    assert tokens and not heads and not model.policy.head_trimmers


def test_without_either_it_is_dense(make_model, make_inputs):
    model = make_model(smarttrim(token_trimmer=None, head_trimmer=None))
    _, record = model.trace(make_inputs(model))
    assert torch.equal(record.multiply_adds(), record.dense_multiply_adds())


@pytest.mark.parametrize("stream", ["image", "text"])
def test_streams(make_model, make_inputs, stream):
    model = make_model(smarttrim(streams=[stream]))
    tokens, _ = dropped(model, make_inputs(model))
    assert tokens and all(name.endswith(f"/{stream}") for name in tokens)
    assert len(model.policy.head_trimmers) == 13


def test_token_layers(make_model, make_inputs):
    model = make_model(smarttrim(token_layers={"image": [1], "text": []}))
    assert set(model.policy.token_trimmers) == {
        "image_1/image",
        *(f"fusion_{i}/{s}" for i in range(2) for s in ("text", "image")),
    }
    tokens, heads = dropped(model, make_inputs(model))
    assert {name for name in tokens if not name.startswith("fusion")} == {"image.1/image"}
    assert len(heads) == 13


def test_head_layers(make_model, make_inputs):
    model = make_model(smarttrim(head_layers={"image": [], "text": [1], "fusion": [0]}))
    tokens, heads = dropped(model, make_inputs(model))
    assert heads == {"text.1/text.self", *(f"fusion.0/{s}.{kind}" for s in ("text", "image") for kind in ("self", "cross"))}
    assert {"image.0/image", "text.0/text"} <= tokens


def test_layers_that_are_left_out_cost_nothing(make_model, make_inputs):
    """Trimming one layer of an encoder only is one line, and nothing else is decided on or counted."""
    layers = {"image": [1], "text": [], "fusion": []}
    model = make_model(smarttrim(token_layers=layers, head_layers={stage: [] for stage in layers}))
    assert set(model.policy.token_trimmers) == {"image_1/image"} and not model.policy.head_trimmers
    with torch.no_grad():
        tokens, heads = dropped(model, make_inputs(model))
    assert tokens == {"image.1/image"} and not heads
    counts = {name: torch.tensor([5.0]) for name in ("image", "text")}
    for stage in model.backbone.steps.values():
        for step in stage:
            assert bool(model.policy.multiply_adds(step, counts) > 0) == (step.name == "image.1")


@pytest.mark.parametrize("layers", [[1, 2], {"image": 1}, {"image": "1"}, "image"])
@pytest.mark.parametrize("argument", ["token_layers", "head_layers"])
def test_layers_are_lists_by_stage(make_model, argument, layers):
    with pytest.raises(ValueError, match=rf"{argument} is {re.escape(repr(layers))}; expected lists of layer indices by stage"):
        make_model(smarttrim(**{argument: layers}))


@pytest.mark.parametrize("argument", ["token_layers", "head_layers"])
def test_unknown_layers(make_model, argument):
    with pytest.raises(ValueError, match=rf"{argument} names layers \[5\] of stage 'text', which has layers 0 to 1"):
        make_model(smarttrim(**{argument: {"text": [0, 5]}}))
    with pytest.raises(ValueError, match=rf"{argument} names stage 'vision'"):
        make_model(smarttrim(**{argument: {"vision": [0]}}))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("streams", ["audio"], r"streams holds \['audio'\]; this backbone has \['image', 'text'\]"),
        ("temperature", 0, "temperature is 0; expected a positive number"),
        ("noise", -1, "noise is -1; expected a number >= 0"),
        ("threshold", 1.5, "threshold of SmartTrim is 1.5; expected a number in"),
    ],
)
def test_impossible_values(make_model, argument, value, message):
    with pytest.raises(ValueError, match=message):
        make_model(smarttrim(**{argument: value}))


def test_an_unknown_trimmer_suggests_the_nearest(make_model):
    with pytest.raises(KeyError, match="Did you mean 'TokenTrimmer'"):
        make_model(smarttrim(token_trimmer={"type": "TokenTrimer"}))


def test_a_stable_start(make_model, make_inputs):
    stable, loose = make_model("SmartTrim"), make_model(smarttrim())
    inputs = make_inputs(stable)
    assert not dropped(stable, inputs)[0]
    _, record = stable.trace(inputs)
    assert all((ratio == 1).all() for ratio in record.heads().values())
    sampled = [kept(model.train(), inputs)["image.2/image"].float().mean() for model in (stable, loose)]
    assert sampled[0] > 0.95 and sampled[1] < 0.5


def test_a_trimmers_own_config_reaches_it(make_model):
    model = make_model(
        smarttrim(
            token_trimmer={"type": "TokenTrimmer", "scores": ["local"], "hidden": 3},
            head_trimmer={"type": "HeadTrimmer", "hidden": 5},
        )
    )
    assert all(trimmer.key is None and trimmer.fc1.out_features == 3 for trimmer in model.policy.token_trimmers.values())
    assert all(trimmer.fc1.out_features == 5 for trimmer in model.policy.head_trimmers.values())


def test_widths_follow_the_streams(make_model):
    trimmers = make_model(smarttrim(), {"text_first": True}).policy.token_trimmers
    assert trimmers["image_0/image"].width == 48
    assert {name: query.in_features for name, query in trimmers["image_0/image"].query.items()} == {"image": 48, "text": 32}
    assert {name: query.in_features for name, query in trimmers["fusion_0/text"].query.items()} == {"text": 64, "image": 64}
    assert set(trimmers["text_0/text"].query) == {"text"}


def test_head_trimmers_read_both_guides_in_cross_attention_only(make_model):
    trimmers = make_model(smarttrim(), {"text_first": True}).policy.head_trimmers
    assert trimmers["fusion_0/text_cross"].guides == ("text", "image")
    assert trimmers["fusion_0/image_cross"].guides == ("image", "text")
    assert trimmers["fusion_0/image_self"].guides == trimmers["image_0/image_self"].guides == ("image",)


def other_question(model, inputs):
    """The same images with other words."""
    words = random_inputs(model.backbone.input_format, inputs.text_mask.sum(1).tolist(), inputs.image_index.tolist(), seed=1)
    return type(inputs)(**{**vars(inputs), "input_ids": words.input_ids})


def test_text_first_lets_the_question_guide_the_image_encoder(make_model, make_inputs):
    for text_first in (False, True):
        model = make_model(smarttrim(head_trimmer=None), {"text_first": text_first})
        inputs = make_inputs(model)
        one, other = kept(model, inputs), kept(model, other_question(model, inputs))
        same = [torch.equal(one[f"image.{i}/image"], other[f"image.{i}/image"]) for i in range(3)]
        assert same == [not text_first] * 3


@pytest.mark.parametrize("scores", [["local"], ["self"], ["cross"], ["local", "self", "cross"]])
def test_the_cross_score_asks_the_other_stream(make_model, make_inputs, scores):
    """At the first fusion layer image tokens are still untouched by the text: only the score can bring it in."""
    policy = smarttrim(token_trimmer={"type": "TokenTrimmer", "scores": scores}, token_layers={"image": [], "text": []})
    model = make_model(policy)
    inputs = make_inputs(model)
    one, other = kept(model, inputs), kept(model, other_question(model, inputs))
    assert torch.equal(one["fusion.0/image"], other["fusion.0/image"]) == ("cross" not in scores)


def test_cross_scores_alone_need_the_text_first(make_model):
    policy = smarttrim(token_trimmer={"type": "TokenTrimmer", "scores": ["cross"]}, token_layers={"text": []})
    with pytest.raises(ValueError, match=r"scores is \['cross'\].*'image'.*text_first"):
        make_model(policy)
    assert make_model(policy, {"text_first": True}).policy.token_trimmers


def test_the_threshold_is_the_knob(make_model, make_inputs):
    models = [make_model(smarttrim(threshold=threshold)) for threshold in (0.4, 0.5, 0.6)]
    assert [model.policy.get_knob() for model in models] == pytest.approx([0.4, 0.5, 0.6])
    inputs = make_inputs(models[0])
    for model in models[1:]:
        model.load_state_dict({**models[0].state_dict(), "policy.knob_value": model.policy.knob_value})
    compute = [model.trace(inputs)[1].multiply_adds().mean() for model in models]
    assert compute[0] > compute[1] > compute[2]
    models[0].policy.set_knob(0.6)
    assert models[0].trace(inputs)[1].multiply_adds().mean() == compute[2]


def test_training_samples_and_inference_does_not(make_model, make_inputs):
    model = make_model(smarttrim())
    inputs = make_inputs(model)
    assert torch.equal(kept(model, inputs)["image.0/image"], kept(model, inputs)["image.0/image"])
    model.policy.train()
    assert not torch.equal(kept(model, inputs)["image.0/image"], kept(model, inputs)["image.0/image"])


def test_without_noise_training_decides_as_inference_does(make_model, make_inputs):
    model = make_model(smarttrim(noise=0.0))
    inputs = make_inputs(model)
    calm = kept(model, inputs)
    model.policy.train()
    assert all(torch.equal(grid, calm[name]) for name, grid in kept(model, inputs).items())


def test_the_temperature_changes_gradients_and_no_decision(make_model, make_inputs):
    model = make_model(smarttrim())
    inputs = make_inputs(model)
    model.policy.train()
    results = []
    for temperature in (1.0, 4.0):
        model.policy.temperature = temperature
        model.zero_grad()
        torch.manual_seed(5)
        logits, record = model.trace(inputs, "masked")
        logits.sum().backward()
        results.append((kept_grids(record), model.policy.token_trimmers["image_0/image"].bias.grad.clone()))
    assert all(torch.equal(grid, results[1][0][name]) for name, grid in results[0][0].items())
    assert not torch.allclose(results[0][1], results[1][1])
    assert make_model(smarttrim(temperature=3.0)).policy.temperature == 3.0


def test_the_policy_is_counted(make_model, make_inputs):
    """With everything kept, a model with trimmers costs more than without."""
    model = make_model("SmartTrim")
    _, record = model.trace(make_inputs(model))
    overhead = record.multiply_adds() / record.dense_multiply_adds() - 1
    assert (overhead > 0.001).all() and (overhead < 0.3).all()


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_an_instance_keeps_at_least_so_many_tokens(make_model, make_inputs, kind):
    model = make_model(smarttrim(min_tokens={"image": 5, "text": 3}))
    model.policy.set_knob(model.policy.knob.high)  # drops all that it may
    inputs = make_inputs(model)
    with torch.no_grad():
        _, record = model.trace(inputs, kind)
    for entry in record.steps:
        for name, layout in entry.tokens.items():
            least = torch.minimum(entry.before[name].counts(), torch.tensor({"image": 5.0, "text": 3.0}[name]))
            assert torch.equal(layout.counts(), torch.maximum(least, layout.floor()))
    torch.testing.assert_close(record.multiply_adds(), record.least_multiply_adds())  # what errors call reachable
    bare = make_model(smarttrim())
    bare.policy.set_knob(bare.policy.knob.high)
    assert record.multiply_adds().mean() > bare.trace(inputs, kind)[1].multiply_adds().mean()


def test_a_number_is_for_every_stream_and_the_best_stay(make_model, make_inputs):
    model = make_model(smarttrim(min_tokens=4, head_trimmer=None))
    model.policy.set_knob(model.policy.knob.high)
    observed = Observed(model.policy)
    with torch.no_grad():
        _, record = model.trace(make_inputs(model), "packed", policy=observed)
    entry = next(entry for entry in record.steps if entry.step.name == "image.0")
    scores = observed.noted[record.steps.index(entry)].keep["image"]
    grid, protected = entry.tokens["image"].kept_grid(), 0  # the image's first token is protected
    assert (grid.sum(1) == 4).all() and grid[:, protected].all()
    best = scores[:, 1:].topk(3, 1).indices + 1
    assert grid.gather(1, best).all()


def test_training_keeps_so_many_too(make_model, make_inputs):
    model = make_model(smarttrim(min_tokens=4)).train()
    for parameter in model.policy.parameters():
        torch.nn.init.normal_(parameter, mean=-3.0, std=0.1)
    _, record = model.trace(make_inputs(model), "masked")
    for entry in record.steps:
        layout = entry.tokens.get("image")
        assert layout is None or (layout.counts() >= 4).all()


@pytest.mark.parametrize(
    ("min_tokens", "message"),
    [
        (0, "min_tokens is 0; expected a number of tokens of at least 1"),
        ({"image": 2.5}, r"min_tokens is \{'image': 2\.5\}; expected a number of tokens"),
        ({"audio": 2}, r"min_tokens names \['audio'\]; the policy trims \['image', 'text'\]: name one"),
    ],
)
def test_impossible_least_numbers(make_model, min_tokens, message):
    with pytest.raises(ValueError, match=message):
        make_model(smarttrim(min_tokens=min_tokens))
