from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from smarttrim_mm.datasets.tokenizers import WordTokenizer
from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import excite
from smarttrim_mm.visualization.traces import choose_pairs, locate_pairs, patch_grid, spread, trace_pair, word_spans

CONFIG = str(Path(__file__).parents[2] / "configs" / "meter" / "quickstart_smarttrim.py")


class Letters:
    """Three letters a token, as a sub-word tokenizer might cut."""

    def __call__(self, text: str, max_length: int) -> torch.Tensor:
        pieces = sum((len(word) + 2) // 3 for word in text.split())
        return torch.zeros(min(pieces + 2, max_length), dtype=torch.long)


@pytest.fixture(scope="module")
def model_and_loader():
    cfg = read_config(CONFIG, {"test_dataloader.dataset.num_images": 8})
    model = build_model(cfg)
    excite(model)
    return model, build_loader(cfg, "test")


def test_words_of_a_word_tokenizer_have_one_token_each():
    tokenizer = WordTokenizer(words=["is", "it", "red", "?"])
    words, spans = word_spans("Is it red?", tokenizer, length=6)
    assert words == ["Is", "it", "red", "?"]
    assert spans == [(1, 2), (2, 3), (3, 4), (4, 5)]


def test_words_of_a_sub_word_tokenizer_have_several():
    words, spans = word_spans("a triangle here", Letters(), length=8)
    assert words == ["a", "triangle", "here"]
    assert spans == [(1, 2), (2, 5), (5, 7)]


def test_words_cut_off_are_not_shown():
    words, spans = word_spans("a triangle here", Letters(), length=5)
    assert words == ["a", "triangle"]
    assert spans == [(1, 2), (2, 4)]


def test_patches_are_laid_out_in_rows_without_the_class_token():
    keep = torch.tensor([[1.0, 0, 1, 1, 0]])
    stream = TokenStream.start(torch.zeros(1, 5, 3), ids=torch.zeros(1, dtype=torch.long)).select(keep)
    assert patch_grid(stream.layout).tolist() == patch_grid(stream.pack().layout).tolist() == [[False, True], [True, False]]


def test_patches_that_form_no_square_are_refused():
    with pytest.raises(ValueError, match="has 6 patches, which form no square"):
        patch_grid(TokenStream.start(torch.zeros(1, 7, 3), ids=torch.zeros(1, dtype=torch.long)).layout)


def test_chosen_values_span_the_range_one_a_group():
    costs = [5.0, 1.0, 9.0, 3.0, 7.0, 1.5]
    assert spread(costs, [0, 1, 2, 3, 4, 1], 3) == [1, 3, 2]
    assert spread(costs, [0, 0, 0, 1, 1, 1], 5) == [1, 4]  # the dearest is of a group that is taken


def test_trace_of_a_pair_is_that_of_the_model(model_and_loader):
    model, loader = model_and_loader
    (item, question), *_ = chosen = choose_pairs(model, loader, 3)
    assert len({item for item, _ in chosen}) == 3
    traces = [trace_pair(model, loader, *pair) for pair in chosen]
    assert [trace.multiply_adds for trace in traces] == sorted(trace.multiply_adds for trace in traces)
    trace, data = traces[0], loader.dataset[item]
    assert (trace.pixels == data["inputs"].flip(0).permute(1, 2, 0).numpy()).all()  # RGB
    assert " ".join(trace.words).replace(" ?", "?") == data["data_samples"].questions[question]
    assert trace.answer == data["data_samples"].answers[question]
    assert set(trace.patches) == {f"image.{i}" for i in range(4)} | {"fusion.0"}
    with torch.inference_mode():
        inputs = model.data_preprocessor(loader.collate_fn([data]), False)["inputs"].select(torch.tensor([question]))
        record = model.trace(inputs)[1]
    shares = {key: float(value[0]) for key, value in record.kept().items()}
    for step, kept in trace.patches.items():
        assert (kept.sum() + 1) / 65 == pytest.approx(shares[f"{step}/image"])
    for step, kept in trace.kept_words.items():
        assert (kept.sum() + 2) / (len(kept) + 2) == pytest.approx(shares[f"{step}/text"])


def test_tokens_once_dropped_stay_dropped(model_and_loader):
    model, loader = model_and_loader
    trace = trace_pair(model, loader, 0, 0)
    grids = list(trace.patches.values())
    assert all((later <= before).all() for before, later in pairwise(grids))
    assert isinstance(grids[0], np.ndarray)


def test_pairs_are_found_by_their_number(model_and_loader):
    dataset = model_and_loader[1].dataset
    first = len(dataset.get_data_info(0)["questions"])
    assert locate_pairs(dataset, [0, first - 1, first]) == [(0, 0), (0, first - 1), (1, 0)]
    with pytest.raises(ValueError, match=r"indices holds \[-1, 99999\]; this split has the image-question pairs 0 to"):
        locate_pairs(dataset, [0, -1, 99999])
