"""The folder that Flower takes for an app: it names two installed apps and their configuration."""

from collections.abc import Mapping
from pathlib import Path

from nmoe_flower.engine import flower
from nmoe_flower.files import to_toml, write_text

__all__ = ["write_app"]


def write_app(
    folder: Path,
    run_config: Mapping[str, bool | int | float | str],
    *,
    serverapp: str = "nmoe_flower.server_app:app",
    clientapp: str = "nmoe_flower.client_app:app",
) -> Path:
    """Write the smallest Flower app folder: it names two installed apps and their configuration.

    Returns:
        The folder, ready for :func:`run_simulation` or ``flwr run``.
    """
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
                    "config": run_config,
                }
            }
        },
    }
    write_text(folder / "pyproject.toml", to_toml(told))
    write_text(folder / "LICENSE", "Apache-2.0\n")
    return folder
