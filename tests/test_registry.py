import pytest
from mmengine.registry import Registry as HostRegistry

from smarttrim_mm import registry
from smarttrim_mm.registry import HOOKS, MODELS, POLICIES, TRIMMERS


def test_every_registry_of_mmengine_has_a_child():
    """Else mmengine warns, and falls back to its own registry, at every build under our scope."""
    from mmengine import registry as mmengine_registry

    hosts = {name: value for name, value in vars(mmengine_registry).items() if isinstance(value, HostRegistry)}
    for name, host in hosts.items():
        assert getattr(registry, name).parent is host, name
        assert getattr(registry, name).scope == "smarttrim_mm"


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (POLICIES, "SmartTrim"),
        (TRIMMERS, "TokenTrimmer"),
        (MODELS, "METER"),
        (MODELS, "TrimmedVLM"),
        (MODELS, "ComputeBudget"),
        (HOOKS, "CurriculumHook"),
    ],
)
def test_files_are_found_without_a_list(where, name):
    assert where.get(name).__name__ == name
    assert where.get(f"smarttrim_mm.{name}") is where.get(name)


@pytest.mark.parametrize(
    ("where", "wrong", "right"),
    [
        (POLICIES, "SmartTrimm", "SmartTrim"),
        (POLICIES, "random", "Random"),
        (MODELS, "Meter", "METER"),
        (HOOKS, "CuriculumHook", "CurriculumHook"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(where, wrong, right):
    with pytest.raises(KeyError, match=f"{wrong}.*Did you mean.*'{right}'"):
        where.build({"type": wrong})


def test_a_name_like_no_other_lists_what_there_is():
    with pytest.raises(KeyError, match=r"xyzzy.*Registered here: .*Dense, .*Random, SmartTrim"):
        POLICIES.build({"type": "xyzzy"})


def test_a_parent_is_searched_too():
    assert HOOKS.get("CheckpointHook").__module__.startswith("mmengine")
    with pytest.raises(KeyError, match="'CheckpointHook'"):
        HOOKS.get("CheckpointHok")


def test_a_dotted_path_that_does_not_exist():
    with pytest.raises(KeyError, match=r"no\.such\.Thing"):
        POLICIES.get("no.such.Thing")


def test_a_class_under_a_dotted_path():
    assert POLICIES.get("smarttrim_mm.policies.dense.Dense").__name__ == "Dense"
