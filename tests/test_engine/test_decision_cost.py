"""Leaving decisions to the layers where they pay: found exactly, from measurements that a clock of the test gives."""

from itertools import combinations

import pytest
import torch

from smarttrim_mm.engine.decision_cost import layer_settings, layers_that_pay, weigh
from smarttrim_mm.engine.stopwatch import LayerTimes, Stopwatch
from smarttrim_mm.policies.imposed import ImposedKeep


def cost_of(chosen, decide, running):
    total, last = 0.0, 0
    for layer, times in enumerate(running):
        if layer in chosen:
            total, last = total + decide[layer], layer + 1
        total += times[last]
    return total


@pytest.mark.parametrize("seed", range(6))
def test_the_best_layers_are_those_of_an_exhaustive_search(seed):
    generator = torch.Generator().manual_seed(seed)
    count = 6
    decide = (0.4 * torch.rand(count, generator=generator)).tolist()
    if seed % 2:
        decide[2] = None
    levels = [1.0, *torch.rand(count, generator=generator).sort(descending=True)[0].tolist()]
    running = [[slope * level for level in levels] for slope in torch.rand(count, generator=generator).tolist()]
    able = [layer for layer in range(count) if decide[layer] is not None]
    sets = [set(one) for size in range(len(able) + 1) for one in combinations(able, size)]
    least = min(cost_of(one, decide, running) for one in sets)
    assert cost_of(layers_that_pay(decide, running), decide, running) == pytest.approx(least)


def test_a_free_decision_pays_everywhere_and_a_dear_one_nowhere():
    running = [[1.0, 0.8, 0.6, 0.4]] * 3
    assert layers_that_pay([0.0, 0.0, 0.0], running) == {0, 1, 2}
    assert layers_that_pay([9.0, 9.0, 9.0], running) == set()
    assert layers_that_pay([0.4, None, 0.5], running) == {0}


def times_of(model, *, decide, per_token, heads=(1.0, 2.0)):
    """Layers of the image's encoder with 100 tokens each."""
    found = []
    for step in model.backbone.steps["image"]:
        found.append(LayerTimes(step, {"image": 100.0}, [decide], [heads[0]], [heads[1]], {"image": [per_token]}))
    return found


def test_what_pays_follows_from_the_times(small_model):
    model = small_model({"type": "SmartTrim"})
    result = weigh(times_of(model, decide=0.5, per_token=1.0), share=0.125)  # 3 layers, halves each
    rows = result["layers"]
    assert [row["tokens"] for row in rows] == pytest.approx([100, 50, 25])
    assert rows[0]["saved_ms"] == pytest.approx(50)
    assert [row["pays_from_tokens"] for row in rows] == pytest.approx([1.0] * 3)
    assert result["layers_that_pay"] == {"token": {"image": [0, 1, 2]}, "head": {"image": [0, 1, 2]}}
    assert result["layers_that_cannot_pay"] == {"token": {}, "head": {}}
    result = weigh(times_of(model, decide=20.0, per_token=1.0, heads=(2.0, 1.0)), share=0.125)
    assert result["layers_that_pay"] == {"token": {"image": [0, 1]}, "head": {"image": []}}
    assert result["layers_that_cannot_pay"] == {"token": {"image": [2]}, "head": {"image": [0, 1, 2]}}
    noise = weigh(times_of(model, decide=1.0, per_token=-1.0), share=0.125)
    assert [row["pays_from_tokens"] for row in noise["layers"]] == [None] * 3
    assert noise["layers_that_pay"]["token"] == {"image": []}


def test_layers_of_one_shape_share_what_was_measured(small_model):
    times = times_of(small_model({"type": "SmartTrim"}), decide=1.0, per_token=1.0)
    times[1].decide_tokens[:] = [7.0]  # the machine was busy
    times[2].heads_off[:] = [-7.0]
    result = weigh(times, share=0.125)
    assert [row["tokens_ms"] for row in result["layers"]] == [1.0] * 3
    assert result["layers_that_pay"]["head"] == {"image": [0, 1, 2]}
    times[0].decide_heads.clear()  # another shape: no head decision
    assert [row["heads_save_ms"] for row in weigh(times, share=0.125)["layers"]] == [2.0, -2.5, -2.5]


def test_a_later_stage_begins_where_an_earlier_one_ended(small_model):
    model = small_model({"type": "SmartTrim"})
    times = times_of(model, decide=0.5, per_token=1.0)
    for step in model.backbone.steps["fusion"]:
        times.append(LayerTimes(step, {"image": 100.0}, [0.5], [], [], {"image": [1.0]}))
    rows = weigh(times, share=0.25)["layers"]
    assert [row["tokens"] for row in rows[-2:]] == pytest.approx([25, 12.5])


def test_stopwatch_times_every_layer_and_keeps_everything(small_model, batches):
    model = small_model({"type": "SmartTrim", "stable_init": False})
    steps = [step for stage in model.backbone.steps.values() for step in stage]
    shares = ImposedKeep.around(model.policy, steps).at(0.5).shares
    ticks = iter(range(10**6))
    watch = Stopwatch(model, model.policy, model.policy, shares=shares, clock=lambda: next(ticks))
    inputs = batches(model)[0].unshared()
    with torch.inference_mode():
        logits = model.trace(inputs, policy=watch)[0]
        assert torch.allclose(logits, model.trace(inputs, policy=model.dense)[0], atol=1e-5)
        watch.running = False
        model.trace(inputs, policy=watch)
    assert list(watch.times) == [step.name for step in steps]
    for found in watch.times.values():
        assert found.decide_tokens == found.decide_heads == [1000]  # one tick
        assert set(found.per_token) == set(found.step.streams())
        assert found.heads_off == [0]
        assert all(count > 1 for count in found.tokens.values())


def test_settings_are_lines_that_a_config_takes():
    layers = {"token": {"image": [0, 3], "text": []}, "head": {"image": [2]}}
    assert layer_settings({"type": "SmartTrim"}, layers) == [
        "model.policy.token_layers.image=[0,3]",
        "model.policy.token_layers.text=[]",
        "model.policy.head_layers.image=[2]",
    ]
    assert layer_settings({"type": "Random"}, {"token": {"image": [1]}}) == ["model.policy.layers.image=[1]"]
    with pytest.raises(ValueError, match="Dense has no setting of the layers"):
        layer_settings({"type": "Dense"}, {})
