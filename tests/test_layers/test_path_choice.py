"""When packing pays: layers of 1792 multiply-adds per token, one attention each."""

import pytest
import torch

from smarttrim_mm.layers import path_choice
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.layers.path_choice import is_large, packing_pays
from smarttrim_mm.policies.base import Policy
from smarttrim_mm.structures import Decision, PackedLayout, PaddedLayout, TokenStream


class KeepsFirst(Policy):
    """The first tokens, and two heads."""

    def __init__(self, count):
        super().__init__(steps=[])
        self.count = count

    def before_layer(self, step, streams, guides):
        layout = streams["words"].layout
        heads = torch.tensor([True, False, True, False]).expand(layout.batch_size, -1)
        return Decision(
            keep={"words": layout.positions().expand(streams["words"].x.shape[:-1]) < self.count}, heads={"words.self": heads}
        )


def words(batch, size, width=16):
    return TokenStream.start(torch.randn(batch, size, width), ids=torch.arange(batch))


@pytest.mark.parametrize(("batch", "gone", "pays"), [(1, 800, False), (1, 900, True), (2, 1100, False), (2, 1200, True)])
def test_packing_pays_from_so_many_tokens(encoder_layer, batch, gone, pays):
    """1.5 M multiply-adds for a layer of one instance, 2 M for one of two: 878 tokens, and 1171."""
    step = encoder_layer(True)[1]
    assert step.sizes == ({"words.attention": 4 * 16 * 16, "words.mlp": 2 * 16 * 24}, 1, 1)
    keep = torch.ones(batch * 2000, dtype=torch.bool)
    keep[1 : gone + 1] = False
    assert packing_pays(step, {"words": words(batch, 2000).select(keep.view(batch, -1))}, {}) is pays


@pytest.mark.parametrize(
    ("parts", "size", "pays"),
    [
        (("attention", "mlp"), 1100, False),
        (("attention", "mlp"), 1200, True),
        (("attention",), 2000, False),
        (("attention",), 2100, True),
        (("mlp",), 2700, False),
        (("mlp",), 2800, True),
    ],
)
def test_what_an_instance_skips_counts_as_if_it_were_dropped(encoder_layer, parts, size, pays):
    """Two instances, 2 M multiply-adds: 1171 tokens of a layer, 2048 of its attention, 2731 of its MLP."""
    step = encoder_layer(True)[1]
    run = {f"words.{part}": torch.tensor([False, True]) for part in parts}
    assert packing_pays(step, {"words": words(2, size)}, run) is pays


@pytest.mark.parametrize(("size", "pays"), [(1600, False), (1700, True)])
def test_what_is_dropped_and_what_is_skipped_add_up(encoder_layer, size, pays):
    """The first of two instances drops half of its tokens and does not run its MLP: 512 + 768 for each of them."""
    step = encoder_layer(True)[1]
    keep = torch.ones(2, size, dtype=torch.bool)
    keep[0, size // 2 :] = False
    streams = {"words": words(2, size).select(keep)}
    assert packing_pays(step, streams, {"words.mlp": torch.tensor([False, True])}) is pays
    assert not packing_pays(step, streams, {})


def test_nothing_is_read_where_nothing_can_pay(encoder_layer, monkeypatch):
    monkeypatch.setattr(path_choice, "to_host", None)
    step = encoder_layer(True)[1]
    whole, few = words(1, 2000), words(1, 800).select(torch.zeros(1, 800, dtype=torch.bool))
    assert not packing_pays(step, {"words": whole}, {}) and not packing_pays(step, {"words": few}, {})


@pytest.mark.parametrize(("size", "large"), [(21000, False), (21100, True)])
def test_large_layers_are_packed_at_once(encoder_layer, size, large):
    """24 times the price of packing are 37.7 M multiply-adds."""
    step, stream = encoder_layer(True)[1], words(1, size)
    assert is_large(step, {"words": stream}) is large


@pytest.mark.parametrize(("count", "packed"), [(1500, False), (600, True)])
def test_a_pass_is_packed_from_the_step_on_where_it_pays(encoder_layer, count, packed):
    """That step included; answers are those of the other kinds, heads that are off too."""
    steps, stream, policy = [encoder_layer(True)[1], encoder_layer(True)[1]], words(1, 2000), KeepsFirst(count)
    found = {}
    for kind in ("masked", "packed", "adaptive"):
        execution = Execution(policy, sample_ids=stream.layout.ids, kind=kind)
        with torch.inference_mode():
            found[kind] = (
                execution.run(steps, {"words": execution.start(stream)})["words"].pad()[0][:, :count],
                execution.record,
            )
    x, record = found["adaptive"]
    assert record.packed is packed
    kind = PackedLayout if packed else PaddedLayout
    assert all(isinstance(entry.tokens["words"], kind) for entry in record.steps)
    assert isinstance(record.steps[0].before["words"], PaddedLayout)
    assert [entry.executed for entry in record.steps] == [
        entry.executed for entry in found["packed" if packed else "masked"][1].steps
    ]
    for other in ("masked", "packed"):
        torch.testing.assert_close(x, found[other][0], atol=1e-4, rtol=0)
        torch.testing.assert_close(record.multiply_adds(), found[other][1].multiply_adds())
