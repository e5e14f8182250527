"""The packages of the extra ``data``, which bring pandas along: imported only where needed."""

from importlib import import_module
from typing import Any

from nmoe_flower.errors import DataError
from nmoe_flower.installation import install_hint

__all__ = ["import_extra"]


def import_extra(name: str, purpose: str) -> Any:
    """Import ``datasets`` or ``flwr_datasets``, which a device with images of its own lacks.

    Raises:
        DataError: It is not installed; says what needs it and how to get it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise DataError(f"{purpose} needs {error.name or name}: {install_hint('data')}") from error
