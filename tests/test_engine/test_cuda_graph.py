"""A stand-in for the graph runs the captured function again: what a graph does, without a GPU."""

import pytest
import torch

from smarttrim_mm.engine.cuda_graph import GraphedForward, pad_texts
from smarttrim_mm.testing import random_inputs


def capture(run):
    logits = run().clone()

    def replay():
        logits.copy_(run())

    return replay, logits


def test_replays_give_the_forwards_logits_of_new_batches(small_model):
    model = small_model({"type": "Dense"})
    shape = model.backbone.input_format
    first, *others = (random_inputs(shape, [length], seed=length) for length in (7, 5, 9))
    graphed = GraphedForward(model.host_forward, first, text_length=9, pad_id=shape["pad_id"], capture=capture)
    with torch.inference_mode():
        found = [graphed(inputs) for inputs in (first, *others)]
        for inputs, logits in zip((first, *others), found, strict=True):
            assert torch.allclose(logits, model.host_forward(inputs), atol=1e-4)
    assert not torch.allclose(found[0], found[1])  # results are not overwritten
    assert first.input_ids.shape == (1, 7)  # nor is what was given


def test_texts_are_padded_behind_the_mask(small_model):
    shape = small_model({"type": "Dense"}).backbone.input_format
    inputs = random_inputs(shape, [4, 6])
    padded = pad_texts(inputs, 8, shape["pad_id"])
    assert padded.input_ids.shape == padded.text_mask.shape == padded.special_mask.shape == (2, 8)
    assert padded.text_mask.sum(1).tolist() == [4, 6]
    assert (padded.input_ids[~padded.text_mask] == shape["pad_id"]).all()
    assert torch.equal(padded.input_ids[:, :6], inputs.input_ids)
    with pytest.raises(ValueError, match="a text has 6 tokens; expected at most text_length, 5"):
        pad_texts(inputs, 5, shape["pad_id"])
