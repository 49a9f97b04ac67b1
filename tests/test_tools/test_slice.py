"""A search through ``tools/train.py``, sliced by ``tools/slice.py``, and tested by ``tools/test.py`` with the same config."""

from pathlib import Path

import pytest
import torch

from smarttrim_mm import cli
from smarttrim_mm.engine import slice as slicing
from smarttrim_mm.engine.building import build_loader, build_model, model_batches, read_config

SEARCH = "model = dict(distillation=None)\ncustom_hooks = [dict(type='CurriculumHook', end=0.5)]\n"


@pytest.fixture(scope="module")
def searched(small_config, tmp_path_factory) -> tuple[str, Path]:
    config, work_dir = small_config(SEARCH, base="quickstart_upop-2x.py"), tmp_path_factory.mktemp("search")
    cli.train([config, "--work-dir", str(work_dir)])
    return config, work_dir


@pytest.fixture(scope="module")
def sliced(searched) -> tuple[str, Path, slicing.Sliced]:
    config, work_dir = searched
    out = work_dir / "sliced.pth"
    return config, out, slicing.main([config, str(work_dir / "iter_4.pth"), "--out", str(out)])


def test_half_of_the_compute_is_gone(sliced):
    _, out, found = sliced
    assert found.speedup == pytest.approx(2.0, rel=0.02)
    assert found.parameters_left < 0.7 * found.parameters
    content = torch.load(out, weights_only=True)  # plain data
    assert content["meta"]["sliced"]["source"].endswith("iter_4.pth")
    weights = content["state_dict"]
    assert sum(weights[key].numel() for key in weights if key.startswith("backbone.")) < 0.7 * found.parameters
    assert out.stat().st_size < 4.5 * found.parameters_left + 0.2e6  # fp32 weights, and names


def test_the_sliced_model_answers_as_the_searched_one(searched, sliced):
    (config, work_dir), (_, out, _) = searched, sliced
    cfg = read_config(config)
    before = build_model(cfg, str(work_dir / "iter_4.pth"))
    inputs = next(model_batches(before, build_loader(cfg, "val")))
    after = build_model(read_config(config), str(out))
    with torch.inference_mode():
        wanted, (found, record), host = before.trace(inputs)[0], after.trace(inputs), after.host_forward(inputs)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(host, wanted, atol=1e-5, rtol=1e-5)
        dense = before.trace(inputs)[1].dense_multiply_adds()
        torch.testing.assert_close(after.slices.unsliced_multiply_adds(record, after.layer_steps), dense)


def test_tools_test_takes_it_and_reports_what_it_was(sliced, tmp_path):
    config, out, found = sliced
    report = tmp_path / "compute.json"
    metrics = cli.test([config, str(out), "--work-dir", str(tmp_path), "--speedup-report", str(report)])
    assert metrics["compute/speedup"] == 1.0
    ratio = metrics["compute/unsliced_multiply_adds"] / metrics["compute/dense_multiply_adds"]
    assert ratio == pytest.approx(found.speedup, rel=0.02)
    assert "dense, before slicing" in cli.speedup_table(metrics)


def test_it_is_trained_on_and_tested_again(sliced, small_config, tmp_path):
    _, out, _ = sliced
    config = small_config("model = dict(distillation=None, budget=None)\n", base="quickstart_upop-2x.py")
    cli.train([config, "--work-dir", str(tmp_path), "--cfg-options", f"load_from={out}"])
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (out, tmp_path / "iter_4.pth"))
    assert {key: value.shape for key, value in before.items()} == {key: value.shape for key, value in after.items()}
    assert any(not torch.equal(before[key], after[key]) for key in before)
    build_model(read_config(config), str(tmp_path / "iter_4.pth"))


def test_what_cannot_be_sliced(searched, sliced, tmp_path):
    (config, work_dir), (_, out, _) = searched, sliced
    target = ["--out", str(tmp_path / "new.pth")]
    with pytest.raises(ValueError, match="the policy of the model is Dense, which does not say what to slice; expected UPop"):
        slicing.main([config, str(out), *target])
    unfinished = tmp_path / "unfinished.pth"
    content = torch.load(work_dir / "iter_4.pth", weights_only=True)
    content["state_dict"]["policy.found"].fill_(False)
    torch.save(content, unfinished)
    with pytest.raises(ValueError, match="the search of UPop is not over: it has seen 2 batches"):
        slicing.main([config, str(unfinished), *target])
    with pytest.raises(ValueError, match=r"--out is .*, a folder"):
        slicing.main([config, str(work_dir / "iter_4.pth"), "--out", str(tmp_path)])
    assert not (tmp_path / "new.pth").exists()
