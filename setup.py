"""Packaging; tool settings are in pyproject.toml, exact pins in requirements/."""

import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = pathlib.Path(__file__).resolve().parent
PACKAGE = "smarttrim_mm"
# what mmengine and openmim look for in PACKAGE/.mim
MIM = ("configs", "tools", "model-index.yml")


def read_requirements(name: str) -> list[str]:
    """Requirements of one file, without comments and references to other files."""
    lines = (line.strip() for line in (ROOT / "requirements" / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


class BuildPy(build_py):
    """Puts ``.mim`` beside the modules: copies into a build, links to the source tree for an editable installation."""

    def run(self) -> None:
        super().run()
        folder = (ROOT if self.editable_mode else pathlib.Path(self.build_lib)) / PACKAGE / ".mim"
        shutil.rmtree(folder, ignore_errors=True)  # no file of an earlier build stays
        folder.mkdir(parents=True)
        for name in MIM:
            if self.editable_mode:
                (folder / name).symlink_to(pathlib.Path("..", "..", name))
            elif (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, folder / name)


class EditableWheel(editable_wheel):
    """An editable installation whose ``.mim`` is found.

    mmengine and openmim take a package to lie in the folder of its metadata, under the name in the first line of
    ``top_level.txt``. An editable package's metadata are not where its modules are: the first line is their folder's full path.
    """

    def _run_build_commands(self, dist_name: str, unpacked_wheel: str, *folders: str) -> tuple[list[str], dict[str, str]]:
        names = pathlib.Path(unpacked_wheel, pathlib.Path(self.dist_info_dir).name, "top_level.txt")
        names.write_text(f"{ROOT / PACKAGE}\n{PACKAGE}\n")
        return super()._run_build_commands(dist_name, unpacked_wheel, *folders)


version = re.search(r'__version__ = "(.+)"', (ROOT / PACKAGE / "version.py").read_text())
assert version is not None

setup(
    name=PACKAGE,
    version=version.group(1),
    description="Per-instance, per-layer trimming of vision-language models for mmengine, mmpretrain and LAVIS",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    install_requires=read_requirements("core.txt"),
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel},
)
