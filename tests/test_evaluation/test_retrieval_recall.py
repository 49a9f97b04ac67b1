import pytest
import torch

from smarttrim_mm.evaluation.retrieval_recall import RetrievalRecall, wrong_candidates

NAMES = ["text_r1", "text_r5", "text_r10", "image_r1", "image_r5", "image_r10"]


def samples(scores, image_ids, caption_image_ids) -> list[dict]:
    rows = zip(torch.as_tensor(scores, dtype=torch.float), image_ids, strict=True)
    return [{"scores": row, "image_id": image_id, "caption_image_ids": caption_image_ids} for row, image_id in rows]


def recall(*arguments) -> list[float]:
    metric = RetrievalRecall()
    items = samples(*arguments)
    metric.process(None, items)
    assert len(metric.results) == len(items)  # one an item, as mmengine's gathering expects
    metrics = metric.evaluate(len(items))
    values = [metrics[f"retrieval/{name}"] for name in NAMES]
    assert metrics == dict(zip((f"retrieval/{name}" for name in NAMES), values, strict=True)) | {
        "retrieval/recall_mean": pytest.approx(sum(values) / 6)
    }
    return values


def test_any_caption_of_an_image_is_a_hit_and_each_caption_has_one_image():
    scores = [[9, 0, 8, 0], [5, 1, 4, 3]]  # captions 0 and 1 belong to image 7, 2 and 3 to image 3
    # text: image 7 finds caption 0 first, image 3 caption 2 second; images: captions 1 and 2 prefer the other image
    assert recall(scores, [7, 3], [7, 7, 3, 3]) == [0.5, 1, 1, 0.5, 1, 1]


def test_ties_count_against_the_model():
    assert recall(torch.ones(2, 2), [0, 1], [0, 1]) == [0, 1, 1, 0, 1, 1]
    assert recall(torch.full((2, 2), -torch.inf), [0, 1], [0, 1]) == [0, 1, 1, 0, 1, 1]


def test_ties_between_captions_of_one_image_are_no_ties():
    assert recall([[1, 1, 0], [0, 0, 1]], ["a", "b"], ["a", "a", "b"]) == [1] * 6


def test_fewer_candidates_than_k_are_all_in_the_top_k():
    assert recall([[0, 1], [1, 0]], [0, 1], [0, 1]) == [0, 1, 1, 0, 1, 1]
    assert recall([[0.5]], [0], [0]) == [1] * 6


def test_ranks_at_the_borders_of_the_top():
    scores = torch.full((12, 12), -1.0)
    for image in range(12):
        scores[image, torch.arange(12) < image] = 2  # image i has i captions before its own
        scores[image, image] = 1
    expected = [1 / 12, 5 / 12, 10 / 12]
    assert recall(scores, range(12), torch.arange(12)) == pytest.approx(expected * 2)


def test_as_an_independent_ranking():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 40, (20, 60), generator=generator).float()  # with ties
    rows = torch.arange(60).remainder(20)[torch.randperm(60, generator=generator)]
    text, image = wrong_candidates(scores, rows)
    for i in range(20):
        # wrong ones first among equals
        order = sorted(range(60), key=lambda j: (-scores[i, j].item(), bool(rows[j] == i)))
        assert text[i] == next(rank for rank, j in enumerate(order) if rows[j] == i)
    for j in range(60):
        order = sorted(range(20), key=lambda i: (-scores[i, j].item(), bool(rows[j] == i)))
        assert image[j] == order.index(rows[j].item())


@pytest.mark.parametrize("top_k", [10, 12, None])
def test_as_lavis_ranks(top_k, tmp_path):
    """With as many captions an image as it happens; where some pairs were not scored, LAVIS breaks their ties anyhow."""
    from lavis.common.registry import registry
    from lavis.tasks.retrieval import RetrievalTask

    registry.mapping["paths"]["output_dir"] = str(tmp_path)
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(1, 5, (30,), generator=generator)
    rows = torch.arange(30).repeat_interleave(captions)
    matrices = torch.randn(2, 30, len(rows), generator=generator)
    matrices[:, rows, torch.arange(len(rows))] += 1.5
    if top_k is not None:  # each image has its captions, each caption its images
        for matrix, axis in zip(matrices, (1, 0), strict=True):
            least = matrix.topk(top_k, dim=axis).values.amin(axis, keepdim=True)
            matrix[matrix < least] = -100
    of_text = {image: (rows == image).nonzero()[:, 0].tolist() for image in range(30)}
    theirs = RetrievalTask._report_metrics(matrices[0].numpy(), matrices[1].T.numpy(), dict(enumerate(rows.tolist())), of_text)
    items = samples(matrices[0], range(30), rows)
    for item, row in zip(items, matrices[1], strict=True):
        item["image_scores"] = row
    metric = RetrievalRecall()
    metric.process(None, items)
    ours = metric.evaluate(30)
    for name in NAMES:
        kind, at = name.split("_")
        assert 0 < ours[f"retrieval/{name}"] < 1
        assert ours[f"retrieval/{name}"] == pytest.approx(theirs[f"{'txt' if kind == 'text' else 'img'}_{at}"] / 100)
    assert ours["retrieval/recall_mean"] == pytest.approx(theirs["r_mean"] / 100)


def test_a_pair_that_only_a_caption_chose_does_not_help_its_image():
    items = samples([[-100, 3, 2], [-100, 4, 5]], [0, 1], [0, 1, 1])
    for item, row in zip(items, ([9.0, 1, -100], [8.0, -100, 7]), strict=True):
        item["image_scores"] = torch.tensor(row)
    metric = RetrievalRecall()
    metric.process(None, items)
    found = metric.evaluate(2)
    assert found["retrieval/text_r1"] == 0.5 and found["retrieval/image_r1"] == pytest.approx(2 / 3)


def test_a_row_of_a_large_matrix_is_kept_alone():
    metric = RetrievalRecall()
    metric.process(None, samples(torch.eye(50), range(50), list(range(50))))
    assert metric.results[3].scores.untyped_storage().nbytes() == 50 * 4
    assert all(row.caption_image_ids is metric.results[0].caption_image_ids for row in metric.results)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.ones(3)}, r"scores \(3,\) of image 7: expected \[2\]"),
        ({"scores": torch.tensor([0, torch.nan])}, "scores of image 7 has NaN"),
        ({"image_scores": torch.ones(1)}, r"image_scores \(1,\) of image 7: expected \[2\]"),
        ({"image_scores": torch.tensor([torch.nan, 0])}, "image_scores of image 7 has NaN"),
    ],
)
def test_bad_rows(changes, message):
    with pytest.raises(ValueError, match=message):
        RetrievalRecall().process(None, [samples([[1, 0]], [7], [7, 8])[0] | changes])


@pytest.mark.parametrize("field", ["scores", "image_id", "caption_image_ids"])
def test_missing_fields_are_named(field):
    (item,) = samples([[1]], [7], [7])
    del item[field]
    with pytest.raises(ValueError, match=f"RetrievalRecall reads {field}, but the data sample of image"):
        RetrievalRecall().process(None, [item])


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (samples([[1, 0]], [7], [7, 8]), "1 images have captions but no row of scores, or .* the first is 8"),
        (samples([[1], [0]], [7, 8], [7]), "1 images have captions but no row .* the first is 8"),
        (samples([[1], [1]], [7, 7], [7]), "image 7 has two rows"),
        (samples([[1, 0]], [7], [7, 8]) + samples([[1, 0]], [8], [8, 7]), "caption_image_ids of image 8 differs .* image 7"),
    ],
)
def test_rows_that_do_not_fit_together(items, message):
    metric = RetrievalRecall()
    metric.process(None, items)
    with pytest.raises(ValueError, match=message):
        metric.evaluate(len(items))
