"""The folder that Flower takes for an app: it names two installed apps and their configuration."""

import json
from collections.abc import Mapping
from pathlib import Path

from nmoe_flower.engine import flower

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
    folder.mkdir(parents=True, exist_ok=True)
    values = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in run_config.items()
    ]
    lines = [
        "[project]",
        'name = "nmoe-run"',
        'version = "1.0.0"',
        'description = "One run of nmoe-flower"',
        'license = { file = "LICENSE" }',
        f"dependencies = [{json.dumps(flower.requirement())}]",
        "[tool.flwr.app]",
        'publisher = "nmoe"',
        "fab-format-version = 1",
        f'flwr-version-target = "{flower.KNOWN_VERSIONS[0]}.0"',
        "[tool.flwr.app.components]",
        f"serverapp = {json.dumps(serverapp)}",
        f"clientapp = {json.dumps(clientapp)}",
        "[tool.flwr.app.config]",
        *values,
        "",
    ]
    (folder / "pyproject.toml").write_text("\n".join(lines), encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n", encoding="utf-8")
    return folder
