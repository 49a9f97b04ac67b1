"""The documentation is run: its snippets, its commands, its links, and the defaults that its tables name.

Fences in the Markdown:

- ``python``: runs; the blocks of a page share one namespace and an empty folder beside a copy of ``configs/``.
- ``python title="PATH"``: a file of that name. A module of the package is then imported, a config can be read.
- ``python no-run: REASON``: is not run.
- ``bash``: each command's arguments are read by the tool's own parser; nothing else happens.
"""

import argparse
import importlib.util
import inspect
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from smarttrim_mm import registry
from smarttrim_mm.engine.building import build_model, read_config
from smarttrim_mm.policies.base import Policy

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)")
EXAMPLES_OF_PATHS = re.compile(r"^(work_dirs|data)/")
SHELL_TOOLS = {"git", "cd", "pip", "python", "python3.11", "make", "bash", "mim"}


@dataclass
class Block:
    language: str
    info: str
    code: str

    @property
    def title(self) -> str | None:
        found = re.search(r'title="([^"]+)"', self.info)
        return found and found[1]

    @property
    def runs(self) -> bool:
        if "no-run" in self.info:
            assert re.search(r"no-run: \S", self.info), f"a block that does not run needs a reason: {self.info}"
            return False
        return self.language == "python"


def blocks_of(page: Path) -> list[Block]:
    return [Block(*match.groups()) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]


def pages_with(language: str) -> list[str]:
    return sorted(name for name, page in PAGES.items() if any(block.language == language for block in blocks_of(page)))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder that looks like the repository to a page's snippets."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def import_file() -> Iterator[Callable[[Path], None]]:
    """Imports a file as a module of the package; afterwards neither the module nor what it registered is there."""
    registries = [registry.POLICIES, registry.MODELS, registry.ATTENTION_BACKENDS]
    for one in registries:
        one.import_from_location()
    before = [dict(one.module_dict) for one in registries]
    imported = []

    def load(path: Path) -> None:
        name = ".".join(path.with_suffix("").parts)
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        imported.append(name)
        spec.loader.exec_module(module)

    yield load
    for one, classes in zip(registries, before, strict=True):
        one.module_dict.clear()
        one.module_dict.update(classes)
    for name in imported:
        del sys.modules[name]


def provide_checkpoints(code: str) -> None:
    """Untrained weights where a snippet reads a checkpoint of a training."""
    for config, checkpoint in re.findall(r'(?:read_config|Inferencer)\("([^"]+)".*?"(work_dirs/[^"]+\.pth)"', code, re.DOTALL):
        Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": build_model(read_config(config)).state_dict(), "meta": {}}, checkpoint)


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page, folder, import_file):
    namespace = {"__name__": "__main__"}
    for block in blocks_of(PAGES[page]):
        if not block.runs:
            continue
        if block.title is None:
            provide_checkpoints(block.code)
            exec(compile(block.code, f"{page}: {block.code.splitlines()[0]}", "exec"), namespace)
            continue
        path = Path(block.title)
        assert not path.exists(), f"{page} writes {path}, which the repository has"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code, encoding="utf-8")
        if path.parts[0] == "smarttrim_mm":
            import_file(path)
        else:
            hooks_fit(path)


def hooks_fit(config: Path) -> None:
    """A hook that needs something of the model finds it."""
    cfg = read_config(str(config))
    if "model" not in cfg:  # of data alone
        return
    model = build_model(cfg)
    for hook in cfg.get("custom_hooks", []):
        registry.HOOKS.build(hook).check(model)


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_is_clean(page):
    """Files must pass the project's lint and format; the other blocks of a page are linted together."""
    together = []
    for block in blocks_of(PAGES[page]):
        if block.language != "python":
            continue
        if block.title:
            ruff(["check", f"--stdin-filename={block.title}"], block.code)
        else:
            together.append(block.code)
        ruff(["format", "--check", f"--stdin-filename={block.title or 'tests/page.py'}"], block.code)
    ruff(["check", "--stdin-filename=tests/page.py", "--ignore=E402"], "\n\n".join(together))


def ruff(arguments: list[str], code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *arguments, "-"], input=code, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Parsed(Exception):
    """A tool's parser has accepted its arguments."""


@pytest.fixture
def run_as_far_as_arguments(monkeypatch):
    """Runs a Python tool until its arguments are read; an argument that it does not know ends in SystemExit."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse_args(self, args, namespace)
        raise Parsed

    def run(words: list[str]) -> None:
        script = ROOT / words[0]
        assert script.is_file(), f"no such tool: {words[0]}"
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        monkeypatch.setattr(sys, "argv", [str(script), *words[1:]])
        try:
            with pytest.raises(Parsed):
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: not accepted")

    return run


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_exist(page, tmp_path, run_as_far_as_arguments):
    made_here = {block.title for block in blocks_of(PAGES[page]) if block.title}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks_of(PAGES[page]):
        if block.language != "bash":
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace(".venv/bin/", ""), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]  # a variable of the environment
            if not words:
                continue
            assert words[0] in SHELL_TOOLS, f"{page}: unknown command {line!r}"
            for word in words[1:]:
                if "/" in word and "=" not in word and re.search(r"\.(py|sh|txt)$", word) and not EXAMPLES_OF_PATHS.match(word):
                    assert word in made_here or (ROOT / word).is_file(), f"{page}: no file {word} ({line!r})"
            if words[0] == "make":
                named = [word for word in words[1:] if "=" not in word]
                assert set(named) <= targets, f"{page}: no such target in {line!r}"
            elif words[0] == "bash":
                run_as_far_as_arguments(words_of_launched_tool(words[1:], tmp_path))
            elif words[0] == "python" and words[1].startswith("tools/"):
                run_as_far_as_arguments(words[1:])
            elif words[:1] == ["mim"] and words[1] in ("train", "test"):
                run_as_far_as_arguments(words_of_mim(words))


def words_of_mim(words: list[str]) -> list[str]:
    """The tool that ``mim train PACKAGE CONFIG`` or ``mim test`` would start, and its arguments."""
    _, command, package, config, *others = words
    assert package == "smarttrim_mm"
    assert len(list((ROOT / "configs").rglob(config))) == 1, f"mim finds no config {config}, or several"
    options = " ".join(others)
    options = re.sub(r"--gpus \d+ ?", "", options).replace("--checkpoint ", "")
    return [f"tools/{command}.py", config, *options.split()]


def test_checkpoints_are_named_as_training_writes_them():
    texts = [*PAGES.values(), *(ROOT / "configs").rglob("*.py")]
    named = {
        found for path in texts for found in re.findall(r"work_dirs/(quickstart_[\w-]+)/iter_(\d+)\.pth", path.read_text())
    }
    assert named
    for config, iterations in named:
        cfg = read_config(str(ROOT / "configs" / "meter" / f"{config}.py"))
        assert cfg.train_cfg.max_iters == int(iterations), f"{config} ends at iteration {cfg.train_cfg.max_iters}"


def words_of_launched_tool(words: list[str], tmp_path: Path) -> list[str]:
    """The Python tool that a shell script would start, and its arguments."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    environment = {**os.environ, "PYTHON": "echo", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    started = done.stdout.split()
    return started[next(i for i, word in enumerate(started) if re.match(r"tools/\w+\.py$", word)) :]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", PAGES[page].read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (PAGES[page].parent / file).resolve() if file else PAGES[page]
        assert target.exists(), f"{page}: {link} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page}: {target.name} has no heading for #{anchor}"


def tables_of_settings() -> dict[str, dict[str, str]]:
    """In get_started.md, per class its settings and their defaults: the rows of the tables below ``### `NAME` ``."""
    tables = {}
    for section in re.split(r"^#+ ", PAGES["docs/get_started.md"].read_text(encoding="utf-8"), flags=re.MULTILINE):
        name = re.match(r"`(\w+)`", section)
        if name:
            tables[name[1]] = dict(re.findall(r"^\| `(\w+)` \| `?(.*?)`? \|", section, re.MULTILINE))
    return tables


@pytest.mark.parametrize("name", sorted(tables_of_settings()))
def test_tables_name_every_setting_and_its_default(name):
    cls = registered(name)
    given_by_the_package = {"self", "width", "own", "guides", "heads", "data_preprocessor", "init_cfg"}
    if issubclass(cls, Policy):
        given_by_the_package.add("steps")
    expected = {
        parameter.name: "required" if parameter.default is parameter.empty else plain(parameter.default)
        for parameter in inspect.signature(cls.__init__).parameters.values()
        if parameter.name not in given_by_the_package
    }
    assert tables_of_settings()[name] == expected


def registered(name: str) -> type:
    for one in (registry.POLICIES, registry.TRIMMERS, registry.MODELS, registry.HOOKS):
        one.import_from_location()
        if name in one.module_dict:
            return one.module_dict[name]
    pytest.fail(f"get_started.md describes {name}, which is not registered")


def plain(value: object) -> str:
    """A default as a config would write it."""
    if isinstance(value, dict):
        return f"dict({', '.join(f'{key}={plain(item)}' for key, item in value.items())})"
    return repr(value).replace("'", '"')
