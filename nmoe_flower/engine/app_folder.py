"""Folders that Flower takes for an app: one for a single run, and this project's own."""

import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from nmoe_flower.engine import flower
from nmoe_flower.errors import EngineError
from nmoe_flower.files import to_toml, write_text

__all__ = ["export_app", "write_app"]


def write_app(
    folder: Path,
    run_config: Mapping[str, bool | int | float | str],
    *,
    serverapp: str = "nmoe_flower.server_app:app",
    clientapp: str = "nmoe_flower.client_app:app",
) -> Path:
    """Write the smallest Flower app folder: it names two installed apps and their configuration.

    Args:
        folder: Made if missing.
        run_config: Every key the app knows, ``table.name`` or ``name``, and its value.
        serverapp: ``package.module:attribute`` of the server's half.
        clientapp: ``package.module:attribute`` of the client's half.

    Returns:
        The folder, ready for :func:`run_simulation` or ``flwr run``.
    """
    tables: dict[str, Any] = {}
    for key, value in run_config.items():
        table, dot, name = key.partition(".")
        if dot:
            tables.setdefault(table, {})[name] = value
        else:
            tables[key] = value
    told = {
        "project": {
            "name": "nmoe-run",
            "version": "1.0.0",
            "description": "One run of nmoe-flower",
            "license": {"file": "LICENSE"},
            "dependencies": [flower.requirement()],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "nmoe",
                    "fab-format-version": 1,
                    "flwr-version-target": f"{flower.KNOWN_VERSIONS[0]}.0",
                    "components": {"serverapp": serverapp, "clientapp": clientapp},
                    "config": tables,
                }
            }
        },
    }
    write_text(folder / "pyproject.toml", to_toml(told))
    write_text(folder / "LICENSE", "Apache-2.0\n")
    return folder


def export_app(checkout: Path, folder: Path) -> Path:
    """Write what the bundle of an app holds into a folder of its own, and nothing else.

    ``flwr app publish`` uploads all of a folder, whatever ``fab-include`` says; from this one it
    uploads the app.

    Args:
        checkout: The app with everything beside it.
        folder: A new one, or an empty one; its name is an app's: letters, digits and hyphens.

    Returns:
        The folder.

    Raises:
        EngineError: Flower cannot bundle the app, its Hub would refuse the folder, or the folder
            holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EngineError(f"{folder} holds something already: name a new folder")
    with zipfile.ZipFile(BytesIO(flower.build_fab(checkout))) as bundle:
        names = [name for name in bundle.namelist() if not name.startswith(".info/")]
        bundle.extractall(folder, names)
    flower.hub_files(folder)
    return folder
