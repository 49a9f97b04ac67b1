from pathlib import Path

import numpy as np
import pytest
import torch

from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.testing import excite
from smarttrim_mm.visualization.compute_spread import compute_figure, histogram
from smarttrim_mm.visualization.survey import Survey, count_inputs, take_survey
from smarttrim_mm.visualization.traces import trace_pairs

CONFIG = str(Path(__file__).parents[2] / "configs" / "meter" / "quickstart_smarttrim.py")


def survey_of(shares: list[float], items: list[int] | None = None, target: float | None = None) -> Survey:
    pairs = tuple((item, 0) for item in items or range(len(shares)))
    return Survey(pairs, 4e6 * np.array(shares), np.full(len(shares), 4e6), {}, target)


@pytest.fixture(scope="module")
def model_and_loader():
    cfg = read_config(CONFIG, {"test_dataloader.dataset.num_images": 6})
    model = build_model(cfg)
    excite(model)
    return model, build_loader(cfg, "test")


def test_a_survey_is_what_single_inputs_take(model_and_loader):
    model, loader = model_and_loader
    survey = take_survey(model, loader)
    assert len(survey.pairs) == len(set(survey.pairs)) == count_inputs(loader.dataset)
    traces = [trace_pairs(model, loader, *pair)[0] for pair in survey.pairs]
    assert survey.multiply_adds == pytest.approx([trace.multiply_adds for trace in traces])
    assert survey.dense_multiply_adds == pytest.approx([trace.dense_multiply_adds for trace in traces])
    assert survey.heads and survey.heads.keys() == traces[0].heads.keys()
    for key, shares in survey.heads.items():
        assert shares == pytest.approx(np.mean([trace.heads[key] for trace in traces], 0))
    assert survey.target == pytest.approx(2.08)


def test_a_survey_ends_with_the_item_that_is_enough(model_and_loader):
    model, loader = model_and_loader
    seen = []
    survey = take_survey(model, loader, 7, seed=1, on_batch=seen.append)
    counts = [len(loader.dataset.get_data_info(item)["questions"]) for item in dict.fromkeys(item for item, _ in survey.pairs)]
    assert sum(counts[:-1]) < 7 <= sum(counts) == len(survey.pairs) == sum(seen)


def test_a_survey_draws_from_no_global_generator(model_and_loader):
    before = torch.get_rng_state()
    take_survey(*model_and_loader, 7)
    assert torch.equal(before, torch.get_rng_state())


def test_the_extremes_are_of_different_images():
    survey = survey_of([0.5, 0.1, 0.2, 0.9, 0.8, 0.3], items=[0, 1, 1, 2, 2, 3])
    assert survey.extremes(2) == ([(1, 0), (3, 0)], [(2, 0), (0, 0)])
    assert survey.extremes(9) == ([(1, 0), (3, 0)], [(2, 0), (0, 0)])
    assert survey_of([0.5]).extremes(3) == ([(0, 0)], [])


def test_the_speed_up_is_that_of_all_inputs():
    assert survey_of([0.25, 0.75]).speedup == 2.0


def test_shares_are_counted_in_bins():
    counts, edges = histogram(np.array([0.0, 0.01, 0.5, 1.0, 1.03]))
    assert len(counts) == 52 and edges[-1] == pytest.approx(1.04)
    assert (counts[0], counts.sum()) == (2, 5)
    assert histogram(np.array([1.2]))[1][-1] > 1.2  # a policy that costs more than it saves


def test_the_picture_marks_mean_and_target(trace):
    figure = compute_figure(survey_of([0.25, 0.75], target=1.6), [[trace]], [[trace, trace]])
    chart, cheap, dear = figure.axes[0], figure.axes[1], figure.axes[2]
    assert [line.get_xdata()[0] for line in chart.lines] == pytest.approx([1.0, 0.5, 0.625])
    labels = [text.get_text() for text in chart.get_legend().get_texts()]
    assert labels == ["mean 0.50 of dense, 2.00x", "target 0.62, 1.60x"]
    assert cheap.images[0].get_array().shape == (32, 32, 3)
    assert dear.images[0].get_array().shape == (32, 66, 3)  # two images, two pixels between them
    assert cheap.get_title() == "0.45 of dense, 2.20x" and cheap.get_xlabel() == "is it red?"
