"""Re-ranking: which pairs are chosen, what they score, and what they cost."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from smarttrim_mm.models.all_pairs import UNSCORED, PairScorer
from smarttrim_mm.models.encodings import joined, moved, num_bytes
from smarttrim_mm.models.top_pairs import TopPairScorer
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import count_multiply_adds, random_inputs

RANKING = {"num_classes": None, "head_name": "rank_output"}
POLICIES = {
    "merging": {"type": "ToMe", "merge_ratio": 0.2},
    "exits, with notes": {"type": "MuE", "similarity": 0.5},
    "dense": "Dense",
    "random": {"type": "Random", "keep_ratio": 0.7},
    "smarttrim": {"type": "SmartTrim", "stable_init": False},
}
LENGTHS = (9, 4, 2, 7, 9, 3, 5, 6)
OWN = (0, 0, 1, 1, 1, 2, 3, 4)


@pytest.fixture
def make_similar(make_model):
    """A small METER with similarities of first tokens."""

    def make(policy):
        model = make_model(policy, RANKING, data_preprocessor={"type": "VisionLanguagePreprocessor"})
        model.backbone.similarities = lambda texts, images: normalize(images.guide()) @ normalize(texts.guide()).T
        return model

    return make


def scorer_of(model, inputs, size=3):
    texts = [ids[mask].tolist() for ids, mask in zip(inputs.input_ids, inputs.text_mask, strict=True)]
    begins = range(0, len(texts), size)
    batches = [model.data_preprocessor.texts(texts[i : i + size], inputs.sample_ids[i : i + size]) for i in begins]
    return PairScorer(model, batches, pairs_per_batch=4)


def images_of(inputs, rows):
    return replace(inputs, images=inputs.images[rows], image_ids=inputs.image_ids[rows], image_index=None)


def rerank(scorer, inputs, top_k, parts=((0, 1, 2, 3, 4),)):
    """Both matrices [I, M], what it took, and the number of pairs; ``parts``: the images of each batch."""
    top = TopPairScorer(scorer, top_k, images=5)
    for part in parts:
        top.add(images_of(inputs, list(part)), torch.tensor(part))
    pairs, seen = top.choose(), []
    found = list(top.scores(seen.append))
    assert sum(seen) == pairs
    order = torch.tensor([image for part in parts for image in part]).argsort()
    trim = {name: torch.cat([each.trim[name] for each in found])[order] for name in found[0].trim}
    return (
        torch.cat([each.of_texts for each in found])[order],
        torch.cat([each.of_images for each in found])[order],
        trim,
        pairs,
    )


def chosen_by_hand(similarities, k):
    """As sets of (image, text): of the images, and of the texts."""
    images, texts = range(similarities.shape[0]), range(similarities.shape[1])
    rows, columns = similarities.tolist(), similarities.T.tolist()
    return (
        {(i, m) for i in images for m in sorted(texts, key=lambda m: (-rows[i][m], m))[:k]},
        {(i, m) for m in texts for i in sorted(images, key=lambda i: (-columns[m][i], i))[:k]},
    )


def scored(matrix):
    return {tuple(pair) for pair in (matrix != UNSCORED).nonzero().tolist()}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@torch.no_grad()
def test_the_best_pairs_score_as_among_all(make_similar, policy):
    model = make_similar(policy)
    inputs = random_inputs(model.backbone.input_format, LENGTHS, OWN)
    scorer = scorer_of(model, inputs)
    every = images_of(inputs, list(range(5)))
    whole = scorer.score(every)[0]
    similarities = scorer.similarities(scorer.encode(every))
    assert similarities.shape == (5, 8) and similarities.std() > 0.01
    for k in (1, 3):
        of_texts, of_images, _, pairs = rerank(scorer, inputs, k)
        by_images, by_texts = chosen_by_hand(similarities, k)
        assert scored(of_texts) == by_images and scored(of_images) == by_texts and by_images != by_texts
        assert pairs == len(by_images | by_texts)
        for matrix in (of_texts, of_images):
            chosen = matrix != UNSCORED
            torch.testing.assert_close(matrix[chosen], whole[chosen], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_more_than_there_are_means_all(make_similar):
    model = make_similar(POLICIES["smarttrim"])
    inputs = random_inputs(model.backbone.input_format, LENGTHS, OWN)
    scorer = scorer_of(model, inputs)
    whole, taken = scorer.score(images_of(inputs, list(range(5))), images=5)
    of_texts, of_images, trim, pairs = rerank(scorer, inputs, 1000, parts=((0, 1), (2, 3, 4)))
    assert pairs == 40
    for matrix in (of_texts, of_images):
        torch.testing.assert_close(matrix, whole, atol=1e-4, rtol=1e-4)
    for name in trim:
        if name != "executed_multiply_adds":  # a batch's mean
            torch.testing.assert_close(trim[name], taken[name])
    of_texts, of_images, _, _ = rerank(scorer, inputs, 6)  # all images, and not all texts
    assert (of_images != UNSCORED).all() and (of_texts != UNSCORED).sum(1).tolist() == [6] * 5


@torch.no_grad()
def test_batches_do_not_matter(make_similar):
    model = make_similar(POLICIES["smarttrim"])
    inputs = random_inputs(model.backbone.input_format, LENGTHS, OWN)
    one = rerank(scorer_of(model, inputs, size=8), inputs, 2)
    other = rerank(scorer_of(model, inputs, size=3), inputs, 2, parts=((3,), (4, 0, 2), (1,)))
    assert one[3] == other[3]
    for matrix, same in zip(one[:2], other[:2], strict=True):
        assert scored(matrix) == scored(same)
        torch.testing.assert_close(matrix, same, atol=1e-4, rtol=1e-4)
    for name in one[2]:
        if name != "executed_multiply_adds":
            torch.testing.assert_close(one[2][name], other[2][name])


@torch.no_grad()
def test_ties_go_to_the_first(make_similar):
    model = make_similar("Dense")
    model.backbone.similarities = lambda texts, images: torch.ones(images.layout.batch_size, texts.layout.batch_size)
    inputs = random_inputs(model.backbone.input_format, LENGTHS, OWN)
    of_texts, of_images, _, pairs = rerank(scorer_of(model, inputs), inputs, 2, parts=((4, 1), (3, 0, 2)))
    assert scored(of_texts) == {(i, m) for i in range(5) for m in (0, 1)}
    assert scored(of_images) == {(i, m) for i in (0, 1) for m in range(8)}
    assert pairs == 10 + 16 - 4


@torch.no_grad()
def test_what_runs_is_counted(make_similar):
    """By an independent count of what torch dispatches; the dense reference has the same pairs."""
    model = make_similar("Dense")
    inputs = random_inputs(model.backbone.input_format, (6,) * 8, OWN)  # attention pads texts of unequal length

    trim, counted = count_multiply_adds(lambda: rerank(scorer_of(model, inputs), inputs, 2)[2])
    for name in ("multiply_adds", "dense_multiply_adds", "executed_multiply_adds"):
        assert trim[name].sum().item() == pytest.approx(counted, rel=0.01)


@dataclass(frozen=True)
class Encoded:
    stream: TokenStream
    features: Tensor


def test_encodings_of_any_kind_are_joined_and_moved():
    streams = [TokenStream.start(torch.rand(2, n, 4), ids=torch.tensor([n, n + 10])) for n in (3, 5)]
    keep = torch.tensor([[1, 0, 1], [1, 1, 0]])
    streams[0] = streams[0].select(keep)
    streams = [replace(stream, carried={"note": torch.rand(2, 3)}) for stream in streams]
    parts = [Encoded(stream.pack(), torch.rand(2, 6)) for stream in streams]
    whole = joined(parts)
    assert torch.equal(whole.stream.carried["note"], torch.cat([stream.carried["note"] for stream in streams]))
    tokens, mask = whole.stream.pad()
    assert mask.sum(1).tolist() == [2, 2, 5, 5] and whole.stream.layout.full().tolist() == [3, 3, 5, 5]
    assert torch.equal(tokens[:2, :2], parts[0].stream.pad()[0]) and torch.equal(tokens[2:], streams[1].x)
    assert whole.stream.layout.ids.tolist() == [3, 13, 5, 15]
    assert whole.stream.layout.kept_grid()[:, :3].tolist() == [*keep.bool().tolist(), [True] * 3, [True] * 3]
    assert torch.equal(whole.features, torch.cat([part.features for part in parts]))
    ids = torch.tensor([7, 8])
    some = whole.stream.expand(torch.tensor([2, 1]), ids)
    assert torch.equal(some.x, torch.cat([streams[1].x[0], streams[0].x[1, :2]])) and some.layout.lengths == (5, 2)
    away = moved(whole, "meta")
    assert away.features.is_meta and away.stream.carried["note"].is_meta
    assert away.stream.layout.cu_seqlens.is_meta and away.stream.layout.lengths == (2, 2, 5, 5)
    layout = whole.stream.layout
    tensors = [value for value in vars(layout).values() if isinstance(value, Tensor)]
    assert num_bytes(whole) == 4 * 6 * 4 + 4 * 3 * 4 + 14 * 4 * 4 + sum(each.nbytes for each in tensors)
    with pytest.raises(TypeError, match="an encoding holds a list"):
        joined([[], []])


@torch.no_grad()
def test_what_cannot_be_reranked(make_similar, make_model):
    model = make_similar("Dense")
    inputs = random_inputs(model.backbone.input_format, LENGTHS, OWN)
    scorer = scorer_of(model, inputs)
    with pytest.raises(ValueError, match="top_k=0: expected at least 1"):
        TopPairScorer(scorer, 0, images=5)
    top = TopPairScorer(scorer, 1, images=5)
    model.backbone.similarities = lambda texts, images: torch.tensor([[0.0] * 8, [torch.nan] * 8])
    with pytest.raises(ValueError, match=f"similarities of image {int(inputs.image_ids[3])} have NaN"):
        top.add(images_of(inputs, [2, 3]), torch.tensor([2, 3]))
    del model.backbone.similarities
    with pytest.raises(TypeError, match=r"top_k=1, but the backbone, a METER, has no similarities\(\)"):
        TopPairScorer(scorer, 1, images=5)
