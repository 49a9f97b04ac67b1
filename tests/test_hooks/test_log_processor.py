from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

from smarttrim_mm.hooks.log_processor import TrimLogProcessor, shorten, summarise_ratios

SCALARS = {
    "loss": 0.5,
    "kept/text.0/text": 1.0,
    "kept/image.0/image": 1.0,
    "kept/image.1/image": 0.998,
    "kept/image.2/image": 0.85,
    "kept/fusion.0/image": 0.8,
    "kept/fusion.0/text": 0.704,
    "heads/image.0/image.self": 1.0,
    "heads/fusion.0/text.cross": 0.9,
}


def test_layers_follow_each_other():
    expected = "kept text 1.00 | image 1.00x2 .85 | fusion.image .80 | fusion.text .70 | heads .95"
    assert summarise_ratios(SCALARS) == expected
    assert summarise_ratios({f"val/compute/{name}": value for name, value in SCALARS.items()}) == expected


@pytest.mark.parametrize(
    "scalars, expected",
    [
        ({}, ""),
        ({"heads/a.0/b": 0.5}, "heads .50"),
        ({"kept/a.0/a": 0.0}, "kept a .00"),
        ({"heads/a.0/b": 0.5, "runs/a.0/a.mlp": 1.0, "runs/a.1/a.mlp": 0.5}, "heads .50 | runs .75"),
    ],
)
def test_parts_may_be_missing(scalars, expected):
    assert summarise_ratios(scalars) == expected


def test_a_line_keeps_everything_else():
    ratios = "  ".join(f"{name}: {value:.4f}" for name, value in SCALARS.items() if "/" in name)
    line = f"Iter(train) [10/20]  lr: 1.0000e-03  eta: 0:00:10  {ratios}  loss: 0.5000"
    short = shorten(line, SCALARS)
    assert short == f"Iter(train) [10/20]  lr: 1.0000e-03  eta: 0:00:10  loss: 0.5000  {summarise_ratios(SCALARS)}"
    assert shorten("Iter(val) [1/2]  eta: 0:00:01  ", SCALARS) == "Iter(val) [1/2]  eta: 0:00:01  "


def test_validations_are_not_averaged_with_each_other() -> None:
    hub = MessageHub.get_instance("log_processor_validations")
    for accuracy in (0.5, 0.9):
        hub.update_scalar("val/vqa/accuracy", accuracy)
        hub.update_scalar("train/accuracy", accuracy)
    runner = SimpleNamespace(message_hub=hub)
    processor = TrimLogProcessor()
    assert processor._collect_scalars([], runner, "val") == {"vqa/accuracy": 0.9}
    assert processor._collect_scalars([], runner, "train") == {"accuracy": pytest.approx(0.7)}
