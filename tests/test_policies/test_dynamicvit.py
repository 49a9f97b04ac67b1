import pytest
import torch

from smarttrim_mm.policies.dynamicvit import KeepPredictor, kept_counts
from smarttrim_mm.structures import TokenStream
from smarttrim_mm.testing import kept_grids


def kept(model, inputs, kind="masked"):
    with torch.no_grad():
        return kept_grids(model.trace(inputs, kind)[1])


def scores_of_places(model):
    """Lets every predictor like a token the more the later it is, so that what is kept is known."""

    def score(predictor, args, logits):
        (stream,) = args
        return stream.layout.positions().float().expand(logits.shape)

    for predictor in model.policy.predictors.values():
        predictor.register_forward_hook(score)


def test_counts_are_powers_of_the_ratio_rounded_down():
    # 0.7 of 10 is 7, of 5 is 3.5; 0.49 of 10 is 4.9, of 5 is 2.45; 0.343 of 10 is 3.43, of 5 is 1.715
    tokens = torch.tensor([10.0, 5.0, 0.0])
    assert [kept_counts(tokens, 0.7, depth).tolist() for depth in (1, 2, 3)] == [[7, 3, 0], [4, 2, 0], [3, 1, 0]]
    assert kept_counts(torch.tensor([10.0]), torch.tensor(0.7), 1).tolist() == [7]  # 0.7 of 10 is 6.9999998 in fp32
    assert kept_counts(tokens, 1.0, 3).tolist() == [10, 5, 0]


def test_stages_lie_at_the_quarters_of_the_first_encoder(make_model):
    twelve = make_model("DynamicViT", {"vision": {"image_size": 32, "patch_size": 8, "width": 48, "layers": 12, "heads": 4}})
    assert list(twelve.policy.depth.items()) == [
        (("image.3", "image"), 1), (("image.6", "image"), 2), (("image.9", "image"), 3),
    ]  # fmt: skip
    assert list(make_model("DynamicViT").policy.depth.values()) == [1, 2, 3]  # three layers: before each


@pytest.mark.parametrize("kind", ["masked", "packed"])
def test_the_best_scored_tokens_stay(make_model, make_inputs, kind):
    model = make_model({"type": "DynamicViT", "keep_ratio": 0.5, "layers": {"image": [0, 2], "text": [], "fusion": [0]}})
    scores_of_places(model)
    grids = kept(model, make_inputs(model), kind)
    # of 16 patches behind the class token: 8, 4 and 2 with the highest places
    for name, first in (("image.0/image", 9), ("image.1/image", 9), ("image.2/image", 13), ("fusion.0/image", 15)):
        assert grids[name].int().tolist() == [[1] + [0] * (first - 1) + [1] * (17 - first)] * len(grids[name]), name


def test_texts_keep_shares_of_their_own_words(make_model, make_inputs):
    model = make_model({"type": "DynamicViT", "keep_ratio": 0.5, "streams": ["text"], "layers": {"text": [0], "fusion": []}})
    grids = kept(model, make_inputs(model))
    # words between <s> and </s> of texts of 9, 4, 2, 7, 9 and 3 tokens: 7 2 0 5 7 1; half of them: 3 1 0 2 3 0
    assert grids["text.0/text"].sum(1).tolist() == [5, 3, 2, 4, 5, 2]


def test_everything_is_kept_before_the_curriculum(make_model, make_inputs):
    model = make_model({"type": "DynamicViT", "keep_ratio": 0.1})
    model.set_curriculum(0.0)
    _, record = model.trace(make_inputs(model))
    assert all((ratio == 1).all() for ratio in record.kept().values())
    assert (record.multiply_adds() > record.dense_multiply_adds()).all()  # deciding costs something


def test_the_mean_is_of_the_kept_tokens_that_are_not_protected():
    predictor = KeepPredictor(4, stable_init=False)
    predictor.embed = torch.nn.Identity()
    seen = []
    predictor.score.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.tensor([[[1.0, 0, 90, 90], [2, 0, 1, 2], [3, 0, 50, 50], [4, 0, 3, 6]]])
    stream = TokenStream.start(x, ids=torch.tensor([0])).select(torch.tensor([[1.0, 1, 0, 1]]))
    predictor(stream)
    predictor(stream.pack())
    # the class token and the dropped one play no part: (1 + 3) / 2 and (2 + 6) / 2
    assert seen[0][0].tolist() == [[1, 0, 2, 4], [2, 0, 2, 4], [3, 0, 2, 4], [4, 0, 2, 4]]
    assert seen[1].tolist() == [[1, 0, 2, 4], [2, 0, 2, 4], [4, 0, 2, 4]]


def test_the_ratio_loss(make_model, make_inputs):
    model = make_model({"type": "DynamicViT", "keep_ratio": 0.5, "streams": ["text"], "layers": {"text": [], "fusion": [0, 1]}})
    scores_of_places(model)
    with torch.no_grad():
        _, record = model.trace(make_inputs(model), "masked")
    # kept words by text: 3 of 7, 1 of 2, 0 of 0, 2 of 5, 3 of 7, 0 of 1; then 1 of 7, 0 of 2, 0 of 0, 1 of 5, 1 of 7, 0 of 1
    first = 2 * (3 / 7 - 0.5) ** 2 + 0 + 0 + (0.4 - 0.5) ** 2 + 0.5**2
    second = 2 * (1 / 7 - 0.25) ** 2 + 0.25**2 + 0 + (0.2 - 0.25) ** 2 + 0.25**2
    assert float(model.policy.losses(record)["loss_ratio"]) == pytest.approx(2 * (first / 6 + second / 6) / 2, rel=1e-5)
    model.policy.ratio_weight = 0
    assert model.policy.losses(record) == {}


def test_the_ratio_loss_trains(make_model, make_inputs):
    """A few steps on the loss alone bring the sampled share from everything to where it should be."""
    model = make_model({"type": "DynamicViT", "keep_ratio": 0.5, "layers": {"image": [0], "text": [], "fusion": []}})
    inputs = make_inputs(model)
    model.policy.train()
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=0.02)
    shares = []
    for _ in range(60):
        _, record = model.trace(inputs, "masked")
        shares.append(float(record.kept()["image.0/image"].detach().mean()))
        optimizer.zero_grad()
        model.policy.losses(record)["loss_ratio"].backward()
        optimizer.step()
    assert shares[0] > 0.9  # a stable start
    assert sum(shares[-10:]) / 10 == pytest.approx((1 + 0.5 * 16) / 17, abs=0.15)


def test_losses_of_the_model_hold_the_policys(make_model, make_inputs):
    model = make_model("DynamicViT").train()
    losses = model.loss(make_inputs(model))
    assert losses["loss_ratio"].requires_grad and "loss_task" in losses
    assert "loss_ratio" not in make_model().train().loss(make_inputs(model))


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("keep_ratio", 0, r"keep_ratio is 0; expected a number in \(0, 1\]"),
        ("keep_ratio", 1.5, r"keep_ratio is 1.5; expected a number in \(0, 1\]"),
        ("ratio_weight", -1, "ratio_weight is -1; expected a number >= 0"),
        ("temperature", 0, "temperature is 0; expected a positive number"),
        ("noise", -1, "noise is -1; expected a number >= 0"),
        ("streams", ["audio"], r"streams holds \['audio'\]"),
        ("layers", {"fusion": [9]}, r"layers names layers \[9\] of stage 'fusion'"),
        ("layers", {"image": [], "fusion": []}, r"streams is \['image'\] and layers .*: no chosen layer of this backbone"),
    ],
)
def test_impossible_values(make_model, argument, value, message):
    with pytest.raises(ValueError, match=message):
        make_model({"type": "DynamicViT", argument: value})


def test_a_width_that_cannot_be_halved():
    with pytest.raises(ValueError, match="width of the stream is 6; expected a multiple of 4"):
        KeepPredictor(6, stable_init=True)
