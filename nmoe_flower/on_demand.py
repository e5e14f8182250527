"""Public names of a package that are loaded when they are first used.

So a command that needs one light name of a package does not wait for torch. The package imports its
names under ``TYPE_CHECKING``, for type checkers and editors, and says in a table where each is.
"""

from collections.abc import Collection, Mapping
from importlib import import_module
from sys import modules
from typing import Any

__all__ = ["first_used"]


def first_used(package: str, name: str, homes: Mapping[str, Collection[str]]) -> Any:
    """The value of a name, for a package's ``__getattr__``; the package keeps it from then on.

    Args:
        package: Full name of the package, ``__name__``.
        name: What was asked for.
        homes: Full names of modules, and for each the names that are there.

    Raises:
        AttributeError: No module has it.

    >>> first_used("nmoe_flower", "run", {"nmoe_flower.running": ("run",)}).__name__
    'run'
    """
    home = next((module for module, names in homes.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    setattr(modules[package], name, value)
    return value
