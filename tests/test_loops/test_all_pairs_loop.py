"""Retrieval through the loop: the samples that metrics get, on one rank and on two."""

import os
from dataclasses import replace
from types import SimpleNamespace

import official_files
import pytest
import torch
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.dist import get_world_size
from mmengine.evaluator import Evaluator
from torch.distributed import destroy_process_group, init_process_group
from torch.multiprocessing import start_processes
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from smarttrim_mm.evaluation.compute_report import ComputeReport
from smarttrim_mm.evaluation.retrieval_recall import RetrievalRecall
from smarttrim_mm.layers.execution import Execution
from smarttrim_mm.loops import all_pairs
from smarttrim_mm.loops.all_pairs import AllPairsTestLoop, AllPairsValLoop
from smarttrim_mm.registry import DATASETS

WORDS = ["caption", "of", "image", ".", *map(str, range(50))]
PIPELINE = [
    {"type": "LoadImage"},
    {"type": "ResizeAndCrop"},
    {"type": "TokenizeQuestions", "tokenizer": {"type": "WordTokenizer", "words": WORDS}, "max_length": 12},
    {"type": "PackVLInputs"},
]
RANKING = {"num_classes": None, "head_name": "rank_output", "text": {"vocab_size": 60}}


@pytest.fixture
def model(make_model):
    preprocessor = {"type": "VisionLanguagePreprocessor", "rank_texts": True}
    text = {**make_model().backbone.small_configs()["shared images"]["text"], "vocab_size": 60}
    policy = {"type": "SmartTrim", "stable_init": False}
    return make_model(policy, {**RANKING, "text": text}, data_preprocessor=preprocessor)


@pytest.fixture
def dataset(tmp_path):
    """Three images of a colour of their own with five captions each."""
    root = official_files.write_karpathy(tmp_path, "flickr30k", images=26)
    for number, path in enumerate(sorted((root / "flickr30k-images").iterdir())):
        official_files.write_image(path, value=9 * number)
    return DATASETS.build(
        {
            "type": "KarpathyRetrieval",
            "source": "flickr30k",
            "split": "val",
            "data_root": str(root),
            "image_size": 32,
            "pipeline": PIPELINE,
        }
    )


@pytest.fixture
def similar(model):
    """The model, with similarities of first tokens, by which most texts like the first image best."""
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    model.backbone.similarities = lambda texts, images: normalize(images.guide()) @ weight @ normalize(texts.guide()).T
    return model


def run(model, dataset, loop=AllPairsTestLoop, sampler=None, top_k=None):
    """Runs a loop; returns its metrics, what the evaluator saw, and the hooks that were called."""
    seen, called = [], []
    runner = SimpleNamespace(
        model=model, visualizer=SimpleNamespace(), call_hook=lambda name, **_: called.append(name), logger=None
    )
    sampler = sampler or DefaultSampler(dataset, shuffle=False)
    loader = DataLoader(dataset, batch_size=2, sampler=sampler, collate_fn=pseudo_collate)
    evaluator = Evaluator([RetrievalRecall(), ComputeReport()])
    process = evaluator.process
    evaluator.process = lambda data_samples, data_batch: (seen.extend(data_samples), process(data_samples, data_batch))
    if len(sampler) < len(dataset) and get_world_size() == 1:  # a part of the split cannot be judged alone
        evaluator.evaluate = lambda size: {}
    return loop(runner, loader, evaluator, pairs_per_batch=4, top_k=top_k).run(), seen, called


def test_metrics_get_every_pair(model, dataset, capsys):
    metrics, samples, called = run(model, dataset)
    assert [sample.image_id for sample in samples] == [4, 14, 24]
    assert samples[0].caption_image_ids == [4] * 5 + [14] * 5 + [24] * 5
    scores = torch.stack([sample.scores for sample in samples])
    data = pseudo_collate([dataset[i] for i in range(3)])
    with torch.no_grad():
        inputs = model.data_preprocessor(data)["inputs"]
        torch.testing.assert_close(scores, model(inputs.all_pairs()), atol=1e-4, rtol=1e-4)
    own = torch.arange(15) // 5 == torch.arange(3)[:, None]
    expected = own.gather(1, scores.argmax(1, keepdim=True)).double().mean().item()
    assert metrics["retrieval/text_r1"] == pytest.approx(expected)
    assert metrics["retrieval/image_r1"] == pytest.approx((scores.argmax(0) == torch.arange(15) // 5).double().mean().item())
    assert metrics["compute/speedup"] > 1
    assert called[:3] == ["before_test", "before_test_epoch", "before_test_iter"] and called[-1] == "after_test"
    assert called.count("after_test_iter") == 2
    printed = capsys.readouterr().out
    assert "test: encoding texts [####################] 15/15" in printed
    assert "test: scoring pairs [####################] 45/45" in printed


def test_validation_calls_its_own_hooks(model, dataset):
    assert run(model, dataset, AllPairsValLoop)[2][-1] == "after_val"


def test_two_ranks_score_what_one_would(model, dataset, monkeypatch):
    """Each rank has its own images and the texts of both; the first item is dealt twice, to fill up."""
    whole = {sample.image_id: sample for sample in run(model, dataset)[1]}
    read: list[list] = []
    monkeypatch.setattr(all_pairs, "all_gather_object", lambda own: read.append(own) or [own])
    samplers = [DefaultSampler(dataset, shuffle=False), DefaultSampler(dataset, shuffle=False)]
    for rank, sampler in enumerate(samplers):
        sampler.rank, sampler.world_size, sampler.num_samples, sampler.total_size = rank, 2, 2, 4
        run(model, dataset, sampler=sampler)
    monkeypatch.setattr(all_pairs, "all_gather_object", lambda _: read[:2])
    parts = [{sample.image_id: sample for sample in run(model, dataset, sampler=sampler)[1]} for sampler in samplers]
    assert [list(part) for part in parts] == [[4, 24], [14, 4]]
    for sample in (*parts[0].values(), *parts[1].values()):
        same = whole[sample.image_id]
        assert sample.caption_image_ids == same.caption_image_ids
        torch.testing.assert_close(sample.scores, same.scores, atol=1e-4, rtol=1e-4)
        assert sample.trim["multiply_adds"].item() == pytest.approx(same.trim["multiply_adds"].item())


def test_the_best_pairs(similar, dataset, capsys):
    whole = torch.stack([sample.scores for sample in run(similar, dataset)[1]])
    capsys.readouterr()
    metrics, samples, called = run(similar, dataset, top_k=2)
    of_texts, of_images = (torch.stack([sample.get(name) for sample in samples]) for name in ("scores", "image_scores"))
    inputs = similar.data_preprocessor(pseudo_collate([dataset[i] for i in range(3)]))["inputs"]
    with torch.no_grad():
        executions = [Execution(similar.policy, sample_ids=inputs.sample_ids, kind="packed") for _ in range(2)]
        texts = similar.backbone.encode_texts(inputs, executions[0])
        images = similar.backbone.encode_images(replace(inputs, image_index=None), executions[1])
        similarities = similar.backbone.similarities(texts, images)
    for matrix, axis in ((of_texts, 1), (of_images, 0)):
        chosen = torch.zeros(3, 15, dtype=torch.bool).scatter_(axis, similarities.topk(2, dim=axis).indices, True)
        torch.testing.assert_close(matrix, whole.where(chosen, torch.tensor(-100.0)), atol=1e-4, rtol=1e-4)
    own = torch.arange(15) // 5
    assert metrics["retrieval/image_r1"] == pytest.approx((of_images.argmax(0) == own).double().mean().item())
    pairs = int(((of_texts > -100) | (of_images > -100)).sum())
    assert 30 <= pairs < 45
    assert called.count("before_test_iter") == called.count("after_test_iter") == 2
    printed = capsys.readouterr().out
    for line in ("encoding texts [####################] 15/15", "encoding images [####################] 3/3"):
        assert f"test: {line}" in printed
    assert f"test: fusing pairs [####################] {pairs}/{pairs}" in printed


def _run_as_rank(rank, folder, model, dataset):
    torch.set_num_threads(1)
    os.chdir(folder)  # mmengine gathers through files of the working directory
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metrics, samples, _ = run(model, dataset, top_k=2)
    rows = {each.image_id: (each.scores, each.image_scores, each.trim["multiply_adds"]) for each in samples}
    torch.save((metrics, [each.image_id for each in samples], rows), f"rank{rank}.pth")
    destroy_process_group()


def test_two_processes_choose_and_score_what_one_would(similar, dataset, tmp_path):
    """Three images on two ranks: the first is dealt twice, to fill up."""
    metrics, samples, _ = run(similar, dataset, top_k=2)
    start_processes(_run_as_rank, args=(str(tmp_path), similar, dataset), nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / f"rank{rank}.pth") for rank in (0, 1)]
    assert [ids for _, ids, _ in found] == [[4, 24], [14, 4]]
    whole = {each.image_id: (each.scores, each.image_scores, each.trim["multiply_adds"]) for each in samples}
    for theirs, _, rows in found:
        for image_id, values in rows.items():
            for one, other in zip(values, whole[image_id], strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        for name, value in metrics.items():
            if name.startswith("retrieval"):
                assert theirs[name] == pytest.approx(value)


def test_an_id_of_two_texts(model, dataset, monkeypatch):
    gather = all_pairs.all_gather_object
    twice = lambda own: [gather(own)[0], [[replace(own[0][0], image_id=99)]]]  # noqa: E731
    monkeypatch.setattr(all_pairs, "all_gather_object", twice)
    with pytest.raises(ValueError, match="text 20 of image 99 has the id of another text, of image 4"):
        run(model, dataset)


def test_a_model_that_cannot_rank(make_model, dataset):
    with pytest.raises(TypeError, match="a METER, has no ranking head"):
        run(make_model(data_preprocessor={"type": "VisionLanguagePreprocessor"}), dataset)
    for top_k in (None, 2):
        with pytest.raises(TypeError, match="the model is a Linear; AllPairsTestLoop expects a TrimmedVLM"):
            run(torch.nn.Linear(1, 1), dataset, top_k=top_k)


def test_what_cannot_be_reranked(model, similar, dataset):
    with pytest.raises(ValueError, match="top_k=0: expected at least 1, or None for all pairs"):
        run(similar, dataset, top_k=0)
    del model.backbone.similarities
    with pytest.raises(TypeError, match=r"top_k=3, but the backbone, a METER, has no similarities\(\)"):
        run(model, dataset, top_k=3)
