import io
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from smarttrim_mm.utils.plain_state import from_plain, to_plain


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "text", b"bytes", (1, (2, 3))], 3: {"b": {4, 5}}},
        OrderedDict([("z", 1), ("a", Counter("aab"))]),
        {"dtype": torch.float16, "size": torch.Size([1, 2])},
    ],
)
def test_plain_data_passes_unchanged(value):
    back = from_plain(through_a_file(to_plain(value)))
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.int64(3), np.bool_(True), np.arange(6, dtype=np.int16).reshape(2, 3), np.eye(2) > 0]
)
def test_numpy_keeps_its_type(value):
    back = from_plain(through_a_file(to_plain({"x": [value]})))["x"][0]
    assert type(back) is type(value) and back.dtype == value.dtype and np.array_equal(back, value)


def test_history_buffers():
    buffer = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 2], max_length=7)
    back = from_plain(through_a_file(to_plain({"loss": buffer}, history=2)))["loss"]
    assert back.data[0].tolist() == [2.0, 6.0] and back.data[1].tolist() == [1, 2]
    assert back.max_length == 7 and back.mean(2) == buffer.mean(2)
    assert len(to_plain(HistoryBuffer(), history=None)["values"]) == 0


def test_texts_of_other_types_become_texts():
    assert to_plain([Path("a/b"), np.str_("c")]) == [str(Path("a/b")), "c"]


def test_tensors_are_not_copied():
    tensor = torch.ones(2)
    assert to_plain({"a": [tensor]})["a"][0] is tensor


def test_what_has_no_plain_form():
    value = {"keep": 1, "hooks": {"f": print, "g": [print]}}
    with pytest.raises(TypeError, match=r"hooks\.f is a builtins\.builtin_function_or_method"):
        to_plain(value)
    dropped: list[str] = []
    assert to_plain(value, dropped=dropped) == {"keep": 1, "hooks": {}}
    assert dropped == ["hooks.f (builtins.builtin_function_or_method)", "hooks.g (builtins.list)"]
    with pytest.raises(TypeError, match=r"\[1\] is a"):
        to_plain([1, print])
    with pytest.raises(TypeError, match=r"numpy\.ndarray"):
        to_plain(np.array([print]))
