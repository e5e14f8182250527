"""A device needs no Ray, no pandas and no matplotlib, neither to train nor to serve."""

import subprocess
import sys
import tomllib
from collections import deque
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

UNWANTED = {"ray", "pandas", "matplotlib", "pyarrow", "seaborn", "datasets", "flwr-datasets"}
BLOCKED = (
    *("ray", "pandas", "matplotlib", "pyarrow", "seaborn", "datasets", "flwr_datasets"),
    *("sklearn", "tensorboard", "opacus"),
)
ROOT = Path(__file__).parents[2]

BLOCK = "import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"

# One device of two: it describes its folder of images, trains an expert, and is asked again.
TRAIN = """
import numpy as np
from flwr.app import ConfigRecord, RecordDict
from nmoe_flower import records
from nmoe_flower.client_app import app
from nmoe_flower.clients.device import device_of
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.pipeline import Run, run_pipeline

config = Config.parse({{
    "data.num-clients": 2, "data.cache-dir": {cache!r}, "data.crop-padding": 0,
    "extractor.backbone": "linear", "extractor.rounds": 1, "expert.hidden": "4",
    "expert.epochs": 1, "gate.methods": "local", "run.controls": "", "run.out": {cache!r},
}})

def with_own_images(message, context):
    context.node_config["data-path"] = {folder!r}
    return app(message, context)

with InProcessGrid(with_own_images, 2, run_config=config.flat()) as grid:
    results = run_pipeline(Run(grid, config, lambda line: None))
print(results["partition"]["classes"], sum(results["partition"]["train"][0]))
"""


def run(code: str, blocked: Iterable[str] = BLOCKED) -> subprocess.CompletedProcess[str]:
    code = BLOCK.format(blocked=tuple(blocked)) + code
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """All that is installed with ``requirements`` here, and for the sake of what."""
    waiting = deque((Requirement(text), "nmoe-flower") for text in requirements)
    found: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    while waiting:
        wanted, wanting = waiting.popleft()
        name = canonicalize_name(wanted.name)
        found.setdefault(name, wanting)
        for extra in {"", *wanted.extras} - {e for n, e in done if n == name}:
            done.add((name, extra))
            for text in metadata.distribution(name).requires or []:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    waiting.append((further, name))
    return found


def project() -> dict[str, list[str]]:
    """The requirements of this checkout, by extra; "" is the base."""
    described = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": described["dependencies"], **described["optional-dependencies"]}


def test_installing_for_a_device_brings_nothing_that_only_simulations_need() -> None:
    extras = project()
    found = closure([*extras[""], *extras["serve"]])
    assert {"torch", "flwr", "grpcio", "cryptography"} <= found.keys()
    assert {name: found[name] for name in UNWANTED & found.keys()} == {}


def test_the_extras_bring_what_a_device_does_without() -> None:
    """The test above would pass if the closure were never followed."""
    extras = project()
    assert {"pandas", "pyarrow", "matplotlib"} <= closure(extras["data"]).keys()
    others = [text for text in extras["simulation"] if not text.startswith("nmoe-flower")]
    assert extras["simulation"] == ["nmoe-flower[data]", *others]
    assert "ray" in closure(others)


OF_A_DEVICE = (
    *("client_app", "server_app", "cli.serve", "inference", "cli.infer", "cli.images"),
    *("cli.bundle", "cli.deploy", "deploy"),
)


def test_a_device_runs_and_trains_without_what_only_simulations_need(tmp_path: Path) -> None:
    """On its own folder of images, through all stages, decoding included, in one process.

    5 of 6 images of each class are for training.
    """
    for row in range(12):
        path = tmp_path / "own" / ("cat", "dog")[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * row, np.uint8)).save(path)
    places = {"folder": str(tmp_path / "own"), "cache": str(tmp_path / "cache")}
    modules = "".join(f"import nmoe_flower.{name}\n" for name in OF_A_DEVICE)
    done = run(modules + TRAIN.format(**places))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['cat', 'dog'] 10"


def test_a_blocked_module_is_blocked() -> None:
    """The tests above would pass if nothing were blocked."""
    assert "import of torch halted" in run("import nmoe_flower.client_app", ["torch"]).stderr
