"""A device needs no Ray, no pandas and no matplotlib, neither to train nor to serve."""

import subprocess
import sys

import pytest

BLOCKED = ("ray", "pandas", "matplotlib", "datasets", "flwr_datasets", "sklearn", "tensorboard")

IMPORTS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Refuse())
import {module}
"""


def imports(module: str, blocked: tuple[str, ...] = BLOCKED) -> subprocess.CompletedProcess[str]:
    code = IMPORTS.format(module=module, blocked=set(blocked))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "module",
    [
        "nmoe_flower.client_app",
        "nmoe_flower.cli.serving",
        "nmoe_flower.cli.answering",
        "nmoe_flower.cli.deploying",
    ],
)
def test_a_device_runs_without_what_only_simulations_need(module: str) -> None:
    done = imports(module)
    assert done.returncode == 0, done.stderr


def test_a_blocked_module_is_blocked() -> None:
    """The test above would pass if nothing were blocked."""
    done = imports("nmoe_flower.client_app", ("torch",))
    assert "blocked: torch" in done.stderr
