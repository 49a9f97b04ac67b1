"""What goes with the package: a model index of every config, without invented results, and builds that carry ``.mim``."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope

from smarttrim_mm.engine.building import build_model
from smarttrim_mm.engine.cost_sheet import cost_sheet
from smarttrim_mm.utils import register_all_modules
from smarttrim_mm.utils.config import read_config

ROOT = Path(__file__).resolve().parent.parent
INDEX = yaml.safe_load((ROOT / "model-index.yml").read_text())
META = {path: yaml.safe_load((ROOT / path).read_text()) for path in INDEX["Import"]}
MODELS = {model["Name"]: model for meta in META.values() for model in meta["Models"]}
RESULTS = [
    (name, metric, value)
    for name, model in MODELS.items()
    for result in model.get("Results", [])
    for metric, value in result["Metrics"].items()
]
COUNTED = [name for name, model in MODELS.items() if any("Multiply-Adds" in key for key in model["Metadata"])]
MADE_BY_THE_INSTALLED = """
import json
import smarttrim_mm.registry
from mmengine.config import Config
from mmengine.hub import get_config

named = get_config("smarttrim_mm::meter/meter-base_nlvr2_smarttrim-1.5x.py")
inherited = Config.fromfile("mine.py")
print(json.dumps([smarttrim_mm.__file__, named.filename, named.model.budget.speedup, inherited.model.to_dict()]))
"""
MINE = """
_base_ = "smarttrim_mm::meter/quickstart_smarttrim.py"
model = dict(budget=dict(speedup=1.25))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what a build reads, so that nothing is built in the source tree."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", ".mim", "*.egg-info")
    for name in ("configs", "tools", "smarttrim_mm", "requirements"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "model-index.yml"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, words)],
        cwd=cwd,
        env=environment or None,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shipped() -> set[str]:
    """Files of ``.mim``, as the repository has them."""
    found = {path for name in ("configs", "tools") for path in (ROOT / name).rglob("*") if path.is_file()}
    return {"model-index.yml", *(path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts)}


def test_every_folder_of_configs_has_its_metafile():
    without_models = {"_base_", "compare"}  # parts of configs, and plans of comparisons
    folders = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir() and path.name not in without_models}
    assert {f"configs/{folder}/metafile.yml" for folder in folders} == set(INDEX["Import"])


@pytest.mark.parametrize("path", META)
def test_a_metafile_lists_the_configs_of_its_folder(path):
    folder = ROOT / path.removesuffix("/metafile.yml")
    listed = [model["Config"] for model in META[path]["Models"]]
    assert sorted(listed) == sorted(file.relative_to(ROOT).as_posix() for file in folder.glob("*.py"))
    collections = {collection["Name"] for collection in META[path]["Collections"]}
    assert {model["In Collection"] for model in META[path]["Models"]} == collections


def test_names_are_those_of_the_files_and_each_is_there_once():
    """``mim train`` finds a config by the name of its file."""
    names = [model["Name"] for meta in META.values() for model in meta["Models"]]
    assert len(names) == len(set(names))
    assert names == [Path(model["Config"]).stem for meta in META.values() for model in meta["Models"]]
    collections = [collection["Name"].lower() for meta in META.values() for collection in meta["Collections"]]
    assert len(collections) == len(set(collections))


@pytest.mark.parametrize("name", MODELS)
def test_metadata_are_the_configs(name):
    model = MODELS[name]
    cfg = Config.fromfile(ROOT / model["Config"]).model
    assert model["Metadata"]["Policy"] == cfg.policy.type
    assert model["Metadata"].get("Speedup Target") == (cfg.get("budget") or {}).get("speedup")


def test_no_weights_are_promised():
    assert not [name for name, model in MODELS.items() if "Weights" in model]


@pytest.mark.parametrize(("name", "metric", "value"), RESULTS)
def test_results_are_those_of_the_documentation(name, metric, value):
    kind, seed = re.fullmatch(r"(.+) \(seed (\d)\)", metric).groups()
    written = f"{value:.4f}".lstrip("0") if kind == "Accuracy" else f"{value:.2f}"
    readme, results = (ROOT / "README.md").read_text(), (ROOT / "docs" / "results.md").read_text()
    if name in ("quickstart_dense", "quickstart_smarttrim"):
        [row] = re.findall(rf"^\| {seed} \|.*$", readme, re.MULTILINE)
        cells = [cell.strip().lstrip("0") for cell in row.split("|")]
        assert written == cells[{"Accuracy": 2 if name.endswith("dense") else 3, "Dense / Decided Multiply-Adds": 6}[kind]]
    elif name.startswith("quickstart"):
        assert f"0{written}" in readme
    else:
        titles = {"emoji": "mmpretrain's BLIP retrieval", "blip-tiny": "mmpretrain's BLIP VQA", "-single_": "The same model"}
        title = next((title for part, title in titles.items() if part in name), "LAVIS's BLIP VQA")
        section = results[results.index(f"## {title}") :]
        row = "| dense |" if name.endswith("dense") else "| SmartTrim, calibrated to 2x |"
        cells = f"{section[section.index(row) :].splitlines()[0]} ".replace("| |", "|")
        if "R@1" in kind:  # a cell has the recalls at 1, 5 and 10
            column = 2 if kind.startswith("Text to Image") else 3
            assert cells.split("|")[column].strip().startswith(f"{written}, ")
        else:
            assert f"| {written} |" in cells


def check_count(name: str) -> None:
    metadata = MODELS[name]["Metadata"]
    [(key, value)] = [(key, value) for key, value in metadata.items() if "Multiply-Adds" in key]
    sheet = cost_sheet(build_model(read_config(str(ROOT / MODELS[name]["Config"]))), text_length=metadata.get("Text Length"))
    assert value == pytest.approx(sheet.dense / {"(M)": 1e6, "(G)": 1e9}[key.split()[-1]], rel=1e-3)


def test_the_quickstart_takes_what_the_index_says():
    check_count("quickstart_smarttrim")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COUNTED if "dense" in name or "px" in name])
def test_models_take_what_the_index_says(name):
    check_count(name)


def test_a_wheel_carries_its_configs_and_tools(source, tmp_path):
    """And mmengine finds them there: by name, and as the base of a config elsewhere."""
    run("setup.py", "-q", "bdist_wheel", "--dist-dir", tmp_path, cwd=source)
    [wheel] = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    mim = installed / "smarttrim_mm" / ".mim"
    assert {path.relative_to(mim).as_posix() for path in mim.rglob("*") if path.is_file()} == shipped()

    (tmp_path / "mine.py").write_text(MINE)
    printed = run("-c", MADE_BY_THE_INSTALLED, cwd=tmp_path, PYTHONPATH=str(installed), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    module, named, speedup, inherited = json.loads(printed.splitlines()[-1])
    assert Path(module).is_relative_to(installed)
    assert Path(named) == mim / "configs" / "meter" / "meter-base_nlvr2_smarttrim-1.5x.py"
    assert speedup == 1.5
    assert inherited["budget"]["speedup"] == 1.25
    assert inherited["policy"]["type"] == "SmartTrim"


def test_a_second_build_drops_what_is_gone(source, tmp_path):
    extra = source / "configs" / "meter" / "gone.py"
    extra.write_text("")
    run("setup.py", "-q", "build_py", "--build-lib", tmp_path, cwd=source)
    built = tmp_path / "smarttrim_mm" / ".mim" / "configs" / "meter" / "gone.py"
    assert built.is_file()
    extra.unlink()
    run("setup.py", "-q", "build_py", "--build-lib", tmp_path, cwd=source)
    assert not built.exists()
    assert built.with_name("quickstart_dense.py").is_file()


def test_a_source_distribution_carries_what_a_build_needs(source, tmp_path):
    run("setup.py", "-q", "sdist", "--dist-dir", tmp_path, cwd=source)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert shipped() <= names
    assert {"setup.py", "pyproject.toml", "README.md", "requirements/core.txt", "smarttrim_mm/cli.py"} <= names


def test_an_editable_installation_leads_to_the_source(source, tmp_path):
    run("setup.py", "-q", "editable_wheel", "--dist-dir", tmp_path, cwd=source)
    mim = source / "smarttrim_mm" / ".mim"
    assert {path.name: path.resolve() for path in mim.iterdir()} == {
        name: source / name for name in ("configs", "tools", "model-index.yml")
    }
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [names] = [name for name in archive.namelist() if name.endswith("top_level.txt")]
        # mmengine and openmim: site-packages / the first line
        assert Path("site-packages") / archive.read(names).decode().splitlines()[0] == source / "smarttrim_mm"


def test_names_without_a_scope_are_ours_where_mmengine_asks():
    with DefaultScope.overwrite_default_scope("mmengine"):
        register_all_modules(False)
        assert DefaultScope.get_current_instance().scope_name == "mmengine"
        register_all_modules()
        assert DefaultScope.get_current_instance().scope_name == "smarttrim_mm"


def test_what_a_build_leaves_is_no_change_of_the_repository():
    done = subprocess.run(
        ["git", "check-ignore", "smarttrim_mm/.mim/", "smarttrim_mm.egg-info/", "build/"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout.splitlines() == ["smarttrim_mm/.mim/", "smarttrim_mm.egg-info/", "build/"]
