from itertools import pairwise
from pathlib import Path

import numpy as np
import official_files
import pytest
import torch
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from smarttrim_mm.datasets.tokenizers import WordTokenizer
from smarttrim_mm.engine.building import build_loader, build_model, read_config
from smarttrim_mm.registry import DATASETS, POLICIES
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import excite
from smarttrim_mm.visualization.survey import choose_pairs
from smarttrim_mm.visualization.traces import locate_pairs, patch_grid, spread, trace_pairs, word_spans

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
    traces = [trace for pair in chosen for trace in trace_pairs(model, loader, *pair)]
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
    (trace,) = trace_pairs(model, loader, 0, 0)
    grids = list(trace.patches.values())
    assert all((later <= before).all() for before, later in pairwise(grids))
    assert isinstance(grids[0], np.ndarray)


def under(policy, model_and_loader):
    """The trace of the first question with a policy in place of the model's, and the record of its pass."""
    model, loader = model_and_loader
    own, records = model.policy, []
    trace = model.trace
    try:
        model.policy = POLICIES.build(policy, default_args={"steps": model.layer_steps})
        model.trace = lambda *args, **kwargs: records.append(trace(*args, **kwargs)) or records[-1]
        return trace_pairs(model, loader, 0, 0)[0], records[0][1]
    finally:
        model.policy = own
        del model.trace


def test_what_merges_within_a_layer_is_gone_from_that_layer_on(model_and_loader):
    found, record = under({"type": "ToMe", "merge_ratio": 0.25}, model_and_loader)
    merging = [entry for entry in record.steps if entry.step.stage == "image"]
    kept = [int(found.patches[entry.step.name].sum()) for entry in merging]
    assert kept == [int(entry.after["image"].counts()) - 1 for entry in merging]
    assert found.patches["image.0"].size > kept[0] > kept[-1]
    assert not found.skipped


def test_what_is_skipped_is_told(model_and_loader):
    found, _ = under({"type": "MuE", "similarity": -1.0}, model_and_loader)
    images = [step for step in found.patches if step.startswith("image.")]
    assert {step for step in found.skipped if step.startswith("image.")} == set(images[1:])  # the first layer always runs
    assert set(found.skipped.values()) == {"layer"} and found.patches[images[-1]].all()


def test_pairs_are_found_by_their_number(model_and_loader):
    dataset = model_and_loader[1].dataset
    first = len(dataset.get_data_info(0)["questions"])
    assert locate_pairs(dataset, [0, first - 1, first]) == [(0, 0), (0, first - 1), (1, 0)]
    with pytest.raises(ValueError, match=r"indices holds \[-1, 99999\]; this split has the image-question pairs 0 to"):
        locate_pairs(dataset, [0, -1, 99999])


TASKS = {
    "VQAv2": ({"num_classes": 6}, {"split": "val", "num_classes": 6}, "no"),
    "NLVR2": ({"num_classes": 2, "head_name": "nlvr2_classifier", "images_per_text": 2}, {"split": "dev"}, "True"),
    "SNLIVE": ({"num_classes": 3}, {"split": "dev"}, "contradiction"),
    "KarpathyRetrieval": ({"num_classes": None}, {"split": "val", "source": "flickr30k"}, None),
}
WRITERS = {
    "VQAv2": official_files.write_vqav2,
    "NLVR2": official_files.write_nlvr2,
    "SNLIVE": official_files.write_snli_ve,
    "KarpathyRetrieval": lambda root: official_files.write_karpathy(root, "flickr30k"),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_traced(task, make_model, tmp_path):
    """An answer is called right only where the data say so; of two images each is drawn, and their text is counted once."""
    head, settings, answer = TASKS[task]
    words = {"type": "WordTokenizer", "words": ["there", "are", "dogs", "in", "is", "a", "man", "cat", "caption"]}
    load = {"type": "LoadImages", "transforms": [{"type": "ResizeAndCrop"}]} if task == "NLVR2" else {"type": "LoadImage"}
    steps = [load, *([] if task == "NLVR2" else [{"type": "ResizeAndCrop"}])]
    pipeline = [*steps, {"type": "TokenizeQuestions", "tokenizer": words, "max_length": 16}, {"type": "PackVLInputs"}]
    root = str(WRITERS[task](tmp_path))
    dataset = DATASETS.build({"type": task, "data_root": root, "image_size": 32, "pipeline": pipeline, **settings})
    policy = {"type": "SmartTrim", "stable_init": False}
    model = make_model(policy, head, data_preprocessor={"type": "VisionLanguagePreprocessor"})
    loader = DataLoader(dataset, batch_size=1, collate_fn=pseudo_collate)
    images = model.backbone.images_per_text
    traces = trace_pairs(model, loader, 0, 0)
    assert [trace.answer for trace in traces] == [answer] * images
    assert (traces[0].predicted.split()[0] == "score") == (answer is None)
    pixels = dataset[0]["inputs"].view(images, 3, 32, 32).flip(1).permute(0, 2, 3, 1).numpy()
    assert all((trace.pixels == image).all() for trace, image in zip(traces, pixels, strict=True))
    with torch.inference_mode():
        data = pseudo_collate([dataset[0]])
        inputs = model.data_preprocessor(data, False)["inputs"]
        record = model.trace(inputs if task == "NLVR2" else inputs.select(torch.tensor([0])))[1]
    assert traces[0].multiply_adds == pytest.approx(float(record.multiply_adds()[0]))
    layer = next(entry for entry in record.steps if entry.step.name == "fusion.1")
    for number, trace in enumerate(traces):
        assert (trace.patches["fusion.1"] == patch_grid(layer.tokens["image"], number)).all()
        assert len(trace.kept_words["fusion.1"]) == len(trace.kept_words["text.0"]) == len(trace.words)
