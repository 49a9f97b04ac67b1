import json
import subprocess
import sys

import pytest
import torch

from smarttrim_mm import compat

PROBE = """
import json, sys
import torch
before = set(sys.modules)
import smarttrim_mm
new = set(sys.modules) - before
print(json.dumps(sorted({name.partition('.')[0] for name in new})), len(new))
import torchvision
from torchvision.transforms import functional
"""


def test_importing_is_light_and_torchvision_loads_after_it():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packages, number = done.stdout.rsplit(maxsplit=1)
    assert set(json.loads(packages)) <= {"smarttrim_mm", *sys.stdlib_module_names}
    assert int(number) < 100


def test_declared_operators_are_callable_nowhere():
    if compat._declared is None:
        pytest.skip("torchvision's own operators load here")
    assert hasattr(torch.ops.torchvision, "nms")
    with pytest.raises(NotImplementedError):
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_nothing_is_declared_twice():
    assert compat.declare_torchvision_operators() is False


@pytest.mark.parametrize("version", ["cuda", "hip"])
def test_nothing_is_done_on_a_gpu_build(monkeypatch, version):
    monkeypatch.setattr(compat, "_declared", None)
    monkeypatch.setattr(torch.version, version, "12.4")
    monkeypatch.setattr(compat, "_native_operators_load", lambda: pytest.fail("looked for libraries"))
    assert compat.declare_torchvision_operators() is False


def test_nothing_is_done_where_the_library_loads(monkeypatch):
    monkeypatch.setattr(compat, "_declared", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(compat, "_native_operators_load", lambda: True)
    assert compat.declare_torchvision_operators() is False


def test_nothing_is_done_without_torchvision(monkeypatch):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    assert compat._native_operators_load() is True
