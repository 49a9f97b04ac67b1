"""Every registered backbone is traced and drawn, without a word about which one it is."""

import numpy as np
import pytest
import torch

from smarttrim_mm.registry import MODELS
from smarttrim_mm.testing import backbone_cases, excite, random_inputs
from smarttrim_mm.visualization.figures import render
from smarttrim_mm.visualization.findings import COMPUTE, PATCHES, SCORES, Findings, figures_of
from smarttrim_mm.visualization.survey import Survey
from smarttrim_mm.visualization.traces import trace_inputs

CASES = backbone_cases()


@pytest.mark.parametrize("name", CASES)
def test_every_backbone_is_drawn(name):
    preprocessor = {"type": "VisionLanguagePreprocessor"}
    policy = {"type": "SmartTrim", "stable_init": False}
    model = MODELS.build(
        {"type": "TrimmedVLM", "backbone": CASES[name], "policy": policy, "data_preprocessor": preprocessor}
    ).eval()
    excite(model)
    inputs = random_inputs(model.backbone.input_format, [6])
    with torch.inference_mode():
        record = model.trace(inputs)[1]
        traces = trace_inputs(model, inputs, ["a", "b", "c"], [(1, 2), (2, 3), (3, 5)])
    assert len(traces) == len(inputs.images)
    heads = record.heads()
    for trace in traces:
        assert trace.multiply_adds == pytest.approx(float(record.multiply_adds()[0]))
        assert trace.patches and set(trace.scores.patches) <= set(trace.patches)
        assert set(trace.heads) == set(trace.scores.heads) == set(heads)
        assert trace.scores.threshold == pytest.approx(0.5)
        for key, scores in trace.scores.heads.items():
            assert ((scores >= 0.5) == trace.heads[key]).all()
        before = None
        for step, kept in trace.patches.items():
            scores = trace.scores.patches.get(step)
            if scores is not None:
                assert (np.nan_to_num(scores, nan=-1.0) >= 0.5).tolist() == kept.tolist()
                assert before is None or (np.isnan(scores) == ~before).all()
            before = kept
    means = {key: np.mean([trace.heads[key].mean() for trace in traces]) for key in heads}
    assert means == pytest.approx({key: float(value[0]) for key, value in heads.items()})
    spent = np.array([trace.multiply_adds for trace in traces])
    survey = Survey(tuple((i, 0) for i in range(len(spent))), spent, spent, traces[0].heads)
    figures = figures_of(Findings("SmartTrim", tuple(traces), survey, (tuple(traces),), ()))
    assert {PATCHES, SCORES, COMPUTE} <= set(figures)
    assert all(render(figure).std() > 1 for figure in figures.values())
