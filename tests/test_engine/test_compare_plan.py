"""Plans: what they may say, and that the shipped ones can be run."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from fake_comparison import CONFIGS, REPOSITORY

from smarttrim_mm.engine.building import build_model
from smarttrim_mm.engine.compare_estimate import without_teacher
from smarttrim_mm.engine.compare_plan import ComparePlan, RowPlan, plan_from, read_plan
from smarttrim_mm.engine.compare_tables import notes_of
from smarttrim_mm.engine.compare_variants import differences, resolve
from smarttrim_mm.policies.random import Random
from smarttrim_mm.registry import HOOKS
from smarttrim_mm.testing import random_inputs

SHIPPED = sorted((REPOSITORY / "configs" / "compare").glob("*.py"))
SMARTTRIM = f"{CONFIGS}/quickstart_smarttrim.py"
PLAN = {"name": "plan", "dense": f"{CONFIGS}/quickstart_dense.py", "rows": [{"name": "SmartTrim", "config": SMARTTRIM}]}


def resolved(tmp_path: Path, **changes):
    plan = plan_from({**PLAN, **changes})
    return resolve(plan, REPOSITORY, tmp_path / "runs")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans_have_models_that_run_and_hooks_that_fit(path, tmp_path):
    plan = read_plan(path)
    assert f"python tools/compare.py configs/compare/{path.name}" in path.read_text()
    for variant in resolve(plan, REPOSITORY, tmp_path)[1]:
        model = build_model(variant.cfg)
        for hook in variant.cfg.get("custom_hooks", []):
            HOOKS.build(hook).check(model)
        with torch.inference_mode():
            record = model.trace(random_inputs(model.backbone.input_format, [9, 8]), "masked")[1]
        most = float(record.dense_multiply_adds().mean() / record.least_multiply_adds().mean())
        alone = variant.name in ("heads", "text tokens")  # which the plan says cannot go far
        assert not variant.calibrated or (most > (1 + plan.margin) * max(variant.row.budgets or plan.budgets)) != alone


def test_the_same_recipe_has_one_folder_in_all_shipped_plans(tmp_path):
    folders = []
    for path in [path for path in SHIPPED if path.stem.startswith("easy-vqa_")]:
        _, rows = resolve(read_plan(path), REPOSITORY, tmp_path)
        folders.append({row.folder.name.rpartition("-")[2] for row in rows})
    assert len(set.intersection(*folders)) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets": [0.5]}, r"budgets holds 0\.5; expected speed-ups above 1"),
        ({"budgets": []}, "budgets is empty"),
        ({"budgets": ["2"]}, "budgets holds 2"),
        ({"seeds": [-1]}, r"seeds is \[-1\]"),
        ({"seeds": [1, 1]}, "seeds holds 1 more than once"),
        ({"margin": 1.5}, r"margin is 1\.5"),
        ({"rows": []}, "the plan has no rows"),
        ({"dense": ""}, "the plan has no dense"),
        ({"budget": [2.0]}, "a setting 'budget'; did you mean 'budgets'"),
        ({"benchmark": {"batch_sizes": [0]}}, r"benchmark\.batch_sizes is \(0,\)"),
        ({"benchmark": {"batch": [1]}}, "benchmark has a setting 'batch'; did you mean 'batch_sizes'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        plan_from({**PLAN, **changes})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"name": "a"}, "row 'a' has neither a config nor a policy"),
        ({"name": "a", "config": "x", "policy": {"type": "Dense"}}, "both a config and a policy"),
        ({"name": "a", "policy": {"kind": "Dense"}}, "policy of row 'a' is"),
        ({"name": "a", "policy": {"type": "Dense"}}, "the plan has no recipe"),
        ({"config": "x"}, "row 0 has no name"),
        ({"name": " ", "config": "x"}, "name of a row is ' '"),
        ({"name": "dense", "config": "x"}, "is the name of the dense model's"),
        ({"name": "a", "config": "x", "option": {}}, "row 'a' has a setting 'option'; did you mean 'options'"),
        ({"name": "a", "config": "x", "budgets": [1.0]}, r"budgets of row 'a' holds 1\.0"),
        ({"name": "a", "config": "x", "budgets": [2.0], "fixed": True}, "but it is fixed"),
        ({"name": "a", "config": "x", "train": False, "from_dense": False}, "there are no weights"),
        ("x", "row 0 is 'x'"),
    ],
)
def test_rows_that_do_not_fit_are_refused(row, words):
    with pytest.raises(ValueError, match=words):
        plan_from({**PLAN, "rows": [row]})


@pytest.mark.parametrize(("cls", "first"), [(ComparePlan, "setting of the plan"), (RowPlan, "setting of a row")])
def test_the_documentation_names_every_setting(cls, first):
    page = (REPOSITORY / "docs" / "compare.md").read_text()
    table = page[page.index(f"| {first} |") :].partition("\n\n")[0]
    assert {*re.findall(r"^\| `(\w+)`", table, re.MULTILINE)} | {"name"} == {field.name for field in fields(cls)}


def test_a_plan_file_may_have_helper_variables(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"_config = {SMARTTRIM!r}\ndense = 'd.py'\nrows = [dict(name='a', config=_config)]\nbudgets = [2]\n")
    plan = read_plan(path)
    assert (plan.name, plan.budgets, plan.rows[0].config) == ("mine", (2,), SMARTTRIM)
    with pytest.raises(FileNotFoundError, match="no such file; see configs/compare/"):
        read_plan(tmp_path / "none.py")


def test_a_row_of_a_policy_alone_takes_the_recipe_and_leaves_out_what_does_not_fit(tmp_path):
    policy = {"type": "Random", "streams": ["image"]}
    rows = [*PLAN["rows"], {"name": "random", "policy": policy, "options": {"model.policy.keep_ratio": 0.9}}]
    _, [smarttrim, random] = resolved(tmp_path, recipe=SMARTTRIM, rows=rows)
    assert random.policy is Random
    assert random.cfg.model.policy.to_dict() == {**policy, "keep_ratio": 0.9}
    assert random.cfg.model.distillation == smarttrim.cfg.model.distillation
    assert random.cfg.train_cfg == smarttrim.cfg.train_cfg
    assert random.cfg.model.budget is None
    assert [hook.type for hook in random.cfg.custom_hooks] == ["CurriculumHook"]
    assert random.calibrated_first
    assert not smarttrim.calibrated_first
    assert random.notes == ("no ComputeBudget: what Random keeps is not learned", "no NoiseHook: Random has no noise")
    assert "random: no NoiseHook: Random has no noise." in notes_of([smarttrim, random], {})


def test_a_search_needs_a_budget_that_slices(tmp_path):
    with pytest.raises(ValueError, match=r"row 'UPop' searches for what to slice off, and its model\.budget is None"):
        resolved(tmp_path, recipe=SMARTTRIM, rows=[{"name": "UPop", "policy": {"type": "UPop"}}])


@pytest.mark.parametrize("name", ["upop-2x", "ftkd-2x"])
def test_a_probe_needs_no_teacher_that_is_yet_to_be_trained(tmp_path, name):
    options = {"model.distillation.frozen_teacher": "{dense_checkpoint}"}
    _, [row] = resolved(tmp_path, rows=[{"name": name, "config": f"{CONFIGS}/quickstart_{name}.py", "options": options}])
    model = build_model(without_teacher(row.cfg)).train()
    inputs = random_inputs(model.backbone.input_format, [9, 8])
    losses = model.loss(replace(inputs, targets=torch.zeros(2, dtype=torch.long)))
    assert losses["loss_distill"].isfinite()
    assert row.cfg.model.distillation.frozen_teacher == "{dense_checkpoint}"


def test_recipes_that_differ_are_named(tmp_path):
    rows = [
        *PLAN["rows"],
        {"name": "declared", "config": SMARTTRIM, "options": {"train_cfg.max_iters": 9}},
        {"name": "longer", "config": f"{CONFIGS}/quickstart_dense-longer.py"},
    ]
    _, variants = resolved(tmp_path, rows=rows)
    found = differences(variants)
    assert found == {"longer": ["model.distillation.type", "model.distillation.weight"]}
    assert "longer differs from SmartTrim not in policy, hooks and budget alone" in notes_of(variants, found)[0]


def test_the_folder_follows_what_a_training_depends_on(tmp_path):
    def name(**changes) -> str:
        _, [row] = resolved(tmp_path, **changes)
        return row.folder.name

    own = name()
    assert own.startswith("smarttrim-")
    assert name(seeds=[4], budgets=[3.0]) == own  # these are below it
    assert name(options={"test_dataloader.batch_size": 8, "default_hooks.logger.interval": 3}) == own
    assert name(options={"train_dataloader.batch_size": 8}) != own
    assert name(dense_checkpoint="other-{seed}.pth") != own
    assert name(margin=0.0) != own


def test_options_that_cannot_be_set_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"options of row 'a', .* cannot be set in its config"):
        resolved(tmp_path, rows=[{"name": "a", "config": SMARTTRIM, "options": {"custom_hooks.7.schedule": "step"}}])
    with pytest.raises(FileNotFoundError, match="no such file"):
        resolved(tmp_path, rows=[{"name": "a", "config": "configs/none.py"}])
    with pytest.raises(KeyError, match="Did you mean 'Random'"):
        resolved(tmp_path, recipe=SMARTTRIM, rows=[{"name": "a", "policy": {"type": "Randomm"}}])


def test_a_written_config_reads_as_the_row_was(tmp_path):
    _, [row] = resolved(tmp_path)
    row.write_config()
    from mmengine.config import Config

    read = Config.fromfile(row.config)
    assert json.dumps(read.model, default=str, sort_keys=True) == json.dumps(row.cfg.model, default=str, sort_keys=True)
    assert build_model(read).policy.knob.name == "threshold"
