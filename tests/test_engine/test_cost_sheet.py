import re
from pathlib import Path

import pytest
import torch

from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.engine.cost_sheet import cost_sheet
from smarttrim_mm.utils.flop_count import count_multiply_adds
from smarttrim_mm.utils.random_inputs import random_inputs

ROOT = Path(__file__).parents[2]
# the small METER: 17 image tokens of width 48, text of width 32, fusion of width 64, 4 heads everywhere
IMAGE_ATTENTION = 17 * 4 * 48 * 48 + 2 * 17 * 17 * 48
IMAGE_LAYER = IMAGE_ATTENTION + 17 * 8 * 48 * 48
IMAGE_ONLY = {
    "type": "SmartTrim",
    "streams": ["image"],
    "token_layers": {"image": [1], "text": [], "fusion": []},
    "head_layers": {"image": [], "text": [], "fusion": [1]},
}


def fusion_layer(text, image, heads=4):
    """By hand: two self-attentions, two cross-attentions, two MLPs of 64 by 128."""
    queries = 4 * (text + image) * 64 * 64 + 2 * (text**2 + image**2) * 64  # q, k, v, out; scores and sums
    crossed = 2 * (text + image) * 64 * 64 * 2 + 4 * text * image * 64
    return heads / 4 * (queries + crossed) + 2 * (text + image) * 64 * 128


@pytest.fixture
def ranker(make_model):
    return lambda policy="Dense", **more: make_model(policy, {"num_classes": None, "head_name": "rank_output", **more})


def by_name(items):
    return {item.name: item for item in items}


def test_parts_and_layers_by_hand(make_model):
    sheet = cost_sheet(make_model(), text_length=6)
    layers, parts = by_name(sheet.layers), by_name(sheet.parts)
    assert layers["image.1"].dense == IMAGE_LAYER
    assert layers["image.1"].tokens == {"image": 17}
    assert layers["image.1"].heads == 4
    assert layers["image.patches"].dense == 16 * 3 * 8 * 8 * 48
    assert layers["image.transform"].dense == 17 * 48 * 64
    assert layers["text.0"].dense == 6 * 4 * 32 * 32 + 2 * 6 * 6 * 32 + 6 * 2 * 32 * 64
    assert layers["fusion.1"].dense == fusion_layer(6, 17)
    assert layers["fusion.1"].heads == 16
    assert layers["head.vqa_classifier"].dense == 128 * 128 + 128 * 7
    assert list(parts) == ["text", "image", "fusion", "head"]
    assert parts["image"].dense == 3 * IMAGE_LAYER + 16 * 3 * 8 * 8 * 48 + 17 * 48 * 64
    assert parts["fusion"].if_free == pytest.approx(sheet.dense / (sheet.dense - 2 * fusion_layer(6, 17)))
    assert all(layer.left is None for layer in sheet.layers)


def test_places_by_hand(make_model):
    sheet = cost_sheet(make_model(IMAGE_ONLY), text_length=6)
    dense, places = sheet.dense, by_name(sheet.places)
    saved = {
        "heads of image": 3 * IMAGE_ATTENTION,
        "heads of fusion": 2 * (fusion_layer(6, 17) - fusion_layer(6, 17, heads=0)),
        # the class token stays, and <s> and </s> of the text
        "image tokens, from fusion on": 2 * (fusion_layer(6, 17) - fusion_layer(6, 1)),
        "text tokens, from fusion on": 2 * (fusion_layer(6, 17) - fusion_layer(2, 17)),
        "tokens and heads of fusion": 2 * (fusion_layer(6, 17) - fusion_layer(2, 1, heads=0)),
    }
    one = 12 * 48 * 48 + 2 * 48  # an image layer on the class token
    saved["image tokens, from image on"] = 3 * (IMAGE_LAYER - one) + 16 * 48 * 64 + saved["image tokens, from fusion on"]
    for name, less in saved.items():
        assert places[name].best == pytest.approx(dense / (dense - less), rel=1e-6), name
    assert by_name(sheet.layers)["fusion.0"].best_from_here == pytest.approx(
        dense / (dense - 2 * (fusion_layer(6, 17) - fusion_layer(2, 1))), rel=1e-6
    )
    assert places["heads of image"].best_of_policy is None
    assert places["text tokens, from text on"].best_of_policy is None
    mine = dense - 2 * (IMAGE_LAYER - one) - 16 * 48 * 64 - saved["image tokens, from fusion on"] + sheet.policy_dense
    assert places["image tokens, from image on"].best_of_policy == pytest.approx(dense / mine, rel=1e-6)
    assert 1 < places["heads of fusion"].best_of_policy < places["heads of fusion"].best


def test_budget_cuts_where_the_policy_may(make_model):
    sheet = cost_sheet(make_model(IMAGE_ONLY), text_length=6, speedup=1.5)
    share, layers = sheet.budget.share, by_name(sheet.layers)
    assert sheet.budget.cuts == "SmartTrim"
    assert layers["image.0"].left == layers["image.0"].dense
    tokens = 1 + 16 * share
    assert layers["image.1"].left_tokens == {"image": pytest.approx(tokens)}
    assert layers["image.1"].left == pytest.approx(tokens * 12 * 48 * 48 + 2 * tokens**2 * 48)
    assert layers["fusion.0"].left == pytest.approx(fusion_layer(6, tokens))
    assert layers["fusion.1"].left == pytest.approx(fusion_layer(6, tokens, heads=4 * share))
    assert layers["fusion.1"].left_heads == pytest.approx(16 * share)
    assert layers["text.0"].left_tokens == {"text": 6}
    # its own: a token trimmer, which scores every token, and four head trimmers
    assert {name for name, layer in layers.items() if layer.policy} == {"image.1", "fusion.1"}
    assert by_name(sheet.parts)["policy"].left == pytest.approx(sheet.policy_dense)
    assert sum(part.left for part in sheet.parts) == pytest.approx(sheet.dense / 1.5, rel=1e-5)


def test_a_policy_that_cuts_nothing_is_planned_for_as_any(make_model):
    sheet = cost_sheet(make_model(), text_length=6, speedup=3.0)
    assert sheet.budget.cuts == "any policy"
    assert sheet.best_of_policy is None
    tokens = by_name(sheet.layers)["fusion.0"].left_tokens
    assert tokens == {"text": pytest.approx(2 + 4 * sheet.budget.share), "image": pytest.approx(1 + 16 * sheet.budget.share)}
    assert all(layer.policy == 0 for layer in sheet.layers)


def test_budget_of_the_config_is_the_default(make_model):
    model = make_model("SmartTrim", budget={"type": "ComputeBudget", "speedup": 1.7})
    assert cost_sheet(model).budget.speedup == 1.7
    assert cost_sheet(model, speedup=1.2).budget.speedup == 1.2
    assert (
        cost_sheet(make_model("SmartTrim", budget={"type": "RatioBudget", "token_ratio": 0.5, "head_ratio": 1.0})).budget
        is None
    )


def test_two_images_read_one_text(make_model):
    two = cost_sheet(make_model("Dense", {"images_per_text": 2}), text_length=6)
    layers = by_name(two.layers)
    assert two.pairs_per_sample == 2
    assert layers["image.0"].dense == 2 * IMAGE_LAYER
    assert layers["text.0"].dense == 6 * 4 * 32 * 32 + 2 * 6 * 6 * 32 + 6 * 2 * 32 * 64
    assert layers["fusion.0"].dense == 2 * fusion_layer(6, 17)
    assert layers["head.vqa_classifier"].dense == 256 * 128 + 128 * 7  # [2 pairs x 2 streams x 64] -> 128
    assert two.counted == pytest.approx(two.dense, rel=1e-6)


@torch.no_grad()
def test_ranking_is_what_encoding_once_costs(ranker):
    """Two images and three texts, all pairs, on the host's own forward."""
    model = ranker()
    ranking = cost_sheet(model, text_length=6, ranked=(2, 3)).ranking
    inputs = random_inputs(model.backbone.input_format, [6] * 6, [0, 0, 0, 1, 1, 1])
    shared = inputs.__class__(
        **{
            **vars(inputs),
            "input_ids": inputs.input_ids[:3],
            "text_mask": inputs.text_mask[:3],
            "special_mask": inputs.special_mask[:3],
            "text_index": torch.tensor([0, 1, 2] * 2),
            "text_ids": torch.arange(3),
        }
    )
    _, once = count_multiply_adds(lambda: model.host_forward(shared))
    _, apart = count_multiply_adds(lambda: model.host_forward(inputs.unshared()))
    assert ranking.dense[0] * 6 == pytest.approx(apart, rel=1e-6)
    assert ranking.dense[1] * 6 == pytest.approx(once, rel=1e-6)
    assert ranking.image == 3 * IMAGE_LAYER + 16 * 3 * 8 * 8 * 48 + 17 * 48 * 64
    assert ranking.left is None


def test_ranking_is_for_single_scores(ranker, make_model):
    sheet = cost_sheet(ranker("SmartTrim"), speedup=1.5)
    ranking = sheet.ranking
    assert (ranking.images, ranking.texts) == (1000, 5000)
    assert ranking.dense == (
        pytest.approx(sheet.dense),
        pytest.approx(ranking.image / 5000 + ranking.text / 1000 + ranking.pair),
    )
    assert ranking.left[0] == pytest.approx(sheet.dense / 1.5, rel=1e-4)
    assert ranking.left[1] < ranking.dense[1]
    assert cost_sheet(make_model()).ranking is None
    assert cost_sheet(make_model(), ranked=(1, 1)).ranking.dense[1] == pytest.approx(cost_sheet(make_model()).dense)


def test_an_image_that_the_text_guides_is_encoded_for_each_pair(make_model):
    ranking = cost_sheet(make_model(backbone={"text_first": True}), ranked=(10, 10)).ranking
    assert ranking.image == 0
    assert ranking.pair > 3 * IMAGE_LAYER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speedup": 0.5}, r"speedup is 0\.5; expected a number >= 1"),
        ({"speedup": float("nan")}, "speedup is nan"),
        ({"text_length": 1}, "text length is 1; expected 2 to 22, the positions"),
        ({"text_length": 23}, "text length is 23; expected 2 to 22"),
        ({"ranked": (0, 5)}, "number of images to rank is 0"),
        ({"ranked": (5, -1)}, "number of texts to rank is -1"),
    ],
)
def test_impossible_requests_are_refused(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        cost_sheet(make_model(), **arguments)


def test_pairs_of_a_sample_are_not_ranked(make_model):
    with pytest.raises(ValueError, match="has 2 image-text pairs; ranking is of single pairs"):
        cost_sheet(make_model("Dense", {"images_per_text": 2}), ranked=(5, 5))


def test_speed_up_beyond_reach_names_what_is_reachable(make_model):
    most = cost_sheet(make_model(IMAGE_ONLY)).best_of_policy
    with pytest.raises(ValueError, match=rf"speedup is 50\.0, .* SmartTrim reaches at most {re.escape(f'{most:.2f}')} "):
        cost_sheet(make_model(IMAGE_ONLY), speedup=50.0)
    assert cost_sheet(make_model(IMAGE_ONLY), speedup=most).budget.share == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_the_paper_s_meter():
    """Its published parts at text length 50, torch's own count, and the table of the documentation."""
    published = {288: (27.3, 4.3, 22.6), 384: (50.9, 4.3, 39.2), 576: (130.2, 4.3, 93.0)}
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    for size, figures in published.items():
        options = {"model.backbone.vision.image_size": size}
        sheet = cost_sheet(build_model(read_config(str(ROOT / "configs/meter/meter-base_288px_smarttrim-2x.py"), options)))
        parts, places = by_name(sheet.parts), by_name(sheet.places)
        assert [parts[name].dense / 1e9 for name in ("image", "text", "fusion")] == pytest.approx(figures, rel=0.01)
        assert sheet.counted == pytest.approx(sheet.dense, rel=0.01)
        row = re.search(rf"^\| {size} px \|(.*)\|$", page, re.MULTILINE)[1].split("|")
        costs = [parts[name].dense for name in ("image", "text", "fusion", "head")] + [sheet.dense]
        assert [cell.strip() for cell in row] == [f"{cost / 1e9:.2f}" for cost in costs]
        for name, place in places.items():
            row = re.search(rf"^\| {name} \|(.*)\|$", page, re.MULTILINE)[1].split("|")
            assert row[sorted(published).index(size)].strip() == f"{place.best:.2f}x", (size, name)
