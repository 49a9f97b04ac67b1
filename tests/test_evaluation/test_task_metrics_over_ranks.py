import json
from pathlib import Path

import pytest
import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.multiprocessing import spawn

from smarttrim_mm.evaluation.caption_scores import CaptionScores
from smarttrim_mm.evaluation.class_accuracy import ClassAccuracy
from smarttrim_mm.evaluation.mmpretrain_metric import MMPretrainMetric
from smarttrim_mm.evaluation.nlvr2_accuracy import NLVR2Accuracy
from smarttrim_mm.evaluation.retrieval_recall import RetrievalRecall
from smarttrim_mm.evaluation.vqa_accuracy import VQAAccuracy
from smarttrim_mm.evaluation.vqa_submission import VQASubmission


def sample(image: int, predicted: list[int], targets: list[int]) -> dict:
    """An item with what every metric reads; the number of questions differs between items."""
    names = ["no", "yes"]
    return {
        "image_id": image,
        "pred_scores": torch.eye(2)[predicted],
        "targets": torch.tensor(targets),
        "question_ids": torch.arange(len(targets)) + 10 * image,
        "gt_answers": [[names[target]] * 2 + ["maybe"] * 8 for target in targets],
        "answer_types": ["yes/no"] * len(targets),
        "identifiers": [f"dev-{i}-{image}-0" for i in range(len(targets))],
        "scores": torch.tensor([3.0, 2.0, 1.0]).roll(image // 2),
        "caption_image_ids": [0, 1, 2],
    }


def items() -> list[dict]:
    return [sample(0, [0, 1, 1], [0, 1, 0]), sample(1, [1], [1]), sample(2, [0, 0], [0, 1])]


def evaluate(mine: list[dict], out_file: Path) -> dict[str, float]:
    results = {}
    for metric in (VQAAccuracy(), VQASubmission(out_file=str(out_file)), NLVR2Accuracy(), ClassAccuracy(), RetrievalRecall()):
        metric.dataset_meta = {"classes": ("no", "yes")}
        metric.process(None, mine)
        results |= metric.evaluate(3)
    theirs = MMPretrainMetric(metric={"type": "mmpretrain.VQAAcc"})
    theirs.dataset_meta = {"classes": ("no", "yes")}
    theirs.process(None, [{**one, "pred_scores": one["pred_scores"][:1], "gt_answer": "no"} for one in mine])
    results |= theirs.evaluate(3)
    captions = CaptionScores(tokenizer="plain", out_file=str(out_file.with_suffix(".captions")))
    said = {0: "a dog runs", 1: "two cats", 2: "a dog sits"}
    for one in mine:
        image = one["image_id"]
        captions.process(None, [{"image_id": image, "pred_caption": said[image], "gt_answers": [["A dog.", said[image]]]}])
    return results | captions.evaluate(3)


def _evaluate_as_rank(rank: int, folder: str) -> None:
    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    first, second, third = items()
    # as DefaultSampler deals three items to two ranks: the second rank gets the first item again
    results = evaluate([first, third] if rank == 0 else [second, first], Path(folder, "of_two.json"))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    destroy_process_group()


def test_two_ranks_report_what_one_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # mmengine gathers through files of the working directory
    spawn(_evaluate_as_rank, args=(str(tmp_path),), nprocs=2)
    expected = evaluate(items(), tmp_path / "of_one.json")
    assert expected["vqa/accuracy"] == pytest.approx(0.6 * 4 / 6) and expected["class/accuracy"] == pytest.approx(4 / 6)
    assert expected["VQA/acc"] == pytest.approx(200 / 3)
    assert expected["nlvr2/consistency"] == pytest.approx(1 / 3) and expected["retrieval/text_r1"] == pytest.approx(1 / 3)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == pytest.approx(expected)
    assert expected["caption/bleu_2"] == pytest.approx(1, abs=1e-6)
    captions = json.loads((tmp_path / "of_two.captions").read_text())
    assert captions == json.loads((tmp_path / "of_one.captions").read_text()) and len(captions) == 3
    answers = json.loads((tmp_path / "of_two.json").read_text())
    assert answers == json.loads((tmp_path / "of_one.json").read_text())
    assert [answer["question_id"] for answer in answers] == [0, 1, 2, 10, 20, 21]
