"""Helpers, and the one name that mmengine looks for in a package's ``utils``."""

from mmengine.registry import init_default_scope


def register_all_modules(make_default: bool = True) -> None:
    """Gets the package ready for ``mmengine.hub.get_model`` and for look-ups in registries without classes of their own.

    Nothing is to be registered: each registry imports its folders at its first look-up.

    Args:
        make_default: Whether names without a scope are this package's from now on.
    """
    if make_default:
        init_default_scope("smarttrim_mm")
