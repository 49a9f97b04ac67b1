"""Packaging; tool settings are in pyproject.toml, exact pins in requirements/."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent


def read_requirements(name: str) -> list[str]:
    """Requirements of one file, without comments and references to other files."""
    lines = (line.strip() for line in (ROOT / "requirements" / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


version = re.search(r'__version__ = "(.+)"', (ROOT / "smarttrim_mm" / "version.py").read_text())
assert version is not None

setup(
    name="smarttrim_mm",
    version=version.group(1),
    description="Per-instance, per-layer trimming of vision-language models for mmengine, mmpretrain and LAVIS",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["smarttrim_mm", "smarttrim_mm.*"]),
    install_requires=read_requirements("core.txt"),
)
