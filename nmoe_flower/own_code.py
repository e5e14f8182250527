"""Somebody's own code, named in the configuration as ``package.module:Name``.

It must be importable wherever it is used: in the command, in the workers, on every device.
Installed packages are; so is what lies in the working folder or on ``PYTHONPATH``.
"""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from nmoe_flower.errors import ConfigError, did_you_mean

__all__ = ["FORM", "call_own", "is_own", "load_own"]

FORM = "package.module:Name"
_WORD = r"[A-Za-z_][A-Za-z0-9_]*"
_OWN = re.compile(rf"{_WORD}(\.{_WORD})*:{_WORD}")


def is_own(text: str) -> bool:
    """Whether a value names somebody's own code.

    >>> is_own("my_pkg.nets:Net"), is_own("resnet18")
    (True, False)
    """
    return _OWN.fullmatch(text) is not None


def load_own(key: str, text: str) -> Any:
    """What ``package.module:Name`` names.

    Args:
        key: The configuration's key, for errors.
        text: Value of the key.

    Raises:
        ConfigError: There is no such module or name, importing it fails, or it cannot be called.

    >>> load_own("gate.objective", "math:sqrt")(9.0)
    3.0
    """
    name, _, attribute = text.partition(":")
    here = str(Path.cwd())
    if not {here, ""} & set(sys.path):
        sys.path.append(here)  # last: nothing installed is hidden by it
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{key} = {text}: {name} needs {error.name}, which is missing"
            ) from None
        raise ConfigError(
            f"{key} = {text}: there is no module {error.name!r}; it must be installed, on "
            f"PYTHONPATH, or in the working folder {here}"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"{key} = {text}: importing {name} failed: {type(error).__name__}: {error}"
        ) from error
    place = getattr(module, "__file__", None) or name
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise ConfigError(
            f"{key} = {text}: {place} has no {attribute!r}{did_you_mean(attribute, dir(module))}"
        ) from None
    if not callable(found):
        raise ConfigError(
            f"{key} = {text}: {attribute} of {place} is {type(found).__name__}; allowed: a class "
            "or a function"
        )
    return found


def call_own(key: str, text: str, function: Any, *args: Any, **options: Any) -> Any:
    """Call somebody's own code; what it raises is told with the key.

    Raises:
        ConfigError: It raised something.
    """
    try:
        return function(*args, **options)
    except ConfigError:
        raise
    except Exception as error:
        shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
        called = f" ({shown})" if shown else ""
        raise ConfigError(
            f"{key} = {text}: calling it{called} raised {type(error).__name__}: {error}"
        ) from error
