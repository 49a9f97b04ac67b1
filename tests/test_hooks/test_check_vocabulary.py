from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner

from smarttrim_mm.hooks.check_vocabulary import CheckVocabularyHook, check_vocabulary
from smarttrim_mm.registry import DATASETS

ANSWERS = {"classes": ("yes", "no")}


def model(num_classes: int | None = 3, **more) -> SimpleNamespace:
    return SimpleNamespace(backbone=SimpleNamespace(input_format={"num_classes": num_classes}, **more))


def data(**metainfo) -> SimpleNamespace:
    return SimpleNamespace(metainfo=metainfo)


def test_both_numbers_the_data_set_and_the_remedy_are_named():
    with pytest.raises(
        ValueError,
        match=r"val_dataloader\.dataset is easy-VQA with 2 answers, and the model's head has 3: expected the same number\. "
        r"Set model\.backbone\.num_classes=2, or correct",
    ):
        check_vocabulary(model(), data(dataset_name="easy-VQA", **ANSWERS), "val_dataloader.dataset")
    with pytest.raises(ValueError, match="x is SimpleNamespace with 2 answers"):
        check_vocabulary(model(), data(**ANSWERS), "x")


def test_answers_are_compared_by_name_where_the_model_knows_them():
    named = model(3)
    named.backbone.answers = ("yes", "no", "red")
    check_vocabulary(named, data(classes=("yes", "no", "red")), "x")
    with pytest.raises(
        ValueError,
        match=r"test_dataloader\.dataset is VQAv2, whose answer 1 is 'red'; model\.backbone\.answers has 'no' there, and 2 of "
        r"its 3 answers differ: expected the same in the same order",
    ):
        check_vocabulary(named, data(dataset_name="VQAv2", classes=("yes", "red", "no")), "test_dataloader.dataset")
    with pytest.raises(ValueError, match=r"with 2 answers, .* has 3: .* Set model\.backbone\.answers to the data set's list"):
        check_vocabulary(named, data(**ANSWERS), "x")
    named.backbone.answers = None  # given as token ids
    check_vocabulary(named, data(classes=("yes", "red", "no")), "x")


def test_what_has_no_answers_is_not_checked():
    check_vocabulary(model(2), data(**ANSWERS), "x")
    check_vocabulary(model(None), data(**ANSWERS), "x")
    check_vocabulary(model(), data(dataset_name="Karpathy retrieval"), "x")
    check_vocabulary(model(), object(), "x")
    check_vocabulary(torch.nn.Linear(1, 1), data(**ANSWERS), "x")
    check_vocabulary(SimpleNamespace(backbone=torch.nn.Linear(1, 1)), data(**ANSWERS), "x")


@pytest.fixture
def reordered(toy_run, toy_config, tmp_path, monkeypatch) -> Callable[..., Runner]:
    """A run that starts from a checkpoint whose answers were numbered the other way round."""
    toy_run("first")

    def build(name: str = "second", **changes) -> Runner:
        monkeypatch.setattr(DATASETS.get("ToyData"), "metainfo", {"classes": ("no", "yes"), "dataset_name": "toys"})
        return Runner.from_cfg(toy_config(name, load_from=str(tmp_path / "first" / "iter_4.pth"), **changes))

    return build


def test_a_checkpoint_is_tested_and_resumed_with_its_own_answers(reordered):
    said = (
        "_dataloader.dataset is toys, whose answer 0 is 'no'; the checkpoint was trained with 'yes' there, and 2 of its 2 "
        "answers differ: expected the same in the same order"
    )
    runner = reordered()
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    with pytest.raises(ValueError, match=f"val{said}"):
        runner.val()
    assert all(torch.equal(value, before[name]) for name, value in runner.model.state_dict().items())
    with pytest.raises(ValueError, match=f"train{said}"):
        reordered("third", resume=True).train()


def test_a_training_may_start_from_other_answers_and_says_so(reordered, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("smarttrim_mm.hooks.check_vocabulary.print_log", lambda message, **_: said.append(message))
    reordered().train()
    assert len(said) == 1 and said[0].endswith("2 of its 2 answers differ: its head is learnt anew")


def test_default_hooks_have_it(toy_config):
    assert toy_config().default_hooks.vocabulary == {"type": CheckVocabularyHook.__name__}
