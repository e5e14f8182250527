"""What each command says to somebody who installed no extra: one line that names it, or success."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXTRAS = (
    *("matplotlib", "datasets", "flwr_datasets", "pandas", "pyarrow", "ray", "opacus"),
    *("tensorboard", "mlflow", "wandb", "grpc_health", "prometheus_client"),
)
TINY = [
    "data.num-clients=2", "extractor.rounds=1", "extractor.backbone=linear", "gate.rounds=1",
    "gate.methods=federated,local", "expert.epochs=1", "expert.hidden=4", "run.controls=",
    "data.crop-padding=0",
]  # fmt: skip
# What is typed, the exit code, how what is said ends, and the extra it names.
SAID: dict[str, tuple[list[str], int, str, str]] = {
    "run": (["run", "--workers", "0", "--out", ".", "--name", "one", "--set", *TINY], 0,
            "figures need matplotlib: pip install", "report"),
    "report": (["report", "one"], 1, "figures need matplotlib: pip install", "report"),
    "partition": (["partition"], 0,
                  "not drawn: figures need matplotlib: pip install", "report"),
    "partition --out": (["partition", "--out", "x.png"], 1,
                        "figures need matplotlib: pip install", "report"),
    "hub": (["run", "--name", "hub", "--set", "data.dataset=uoft-cs/cifar10"], 1,
            "needs datasets: pip install", "data"),
    "tensorboard": (["run", "--name", "t", "--tensorboard"], 1,
                    "tracking needs TensorBoard: pip install", "tracking"),
    "mlflow": (["run", "--name", "t", "--track", "mlflow"], 1,
               "tracking needs MLflow: pip install", "mlflow"),
    "wandb": (["run", "--name", "t", "--track", "wandb"], 1,
              "tracking needs Weights & Biases: pip install", "wandb"),
    "ray": (["run", "--name", "r", "--engine", "ray"], 1,
            "the ray engine needs ray, which is not installed here: pip install", "simulation"),
    "private weights": (
        ["run", "--name", "w", "--set", *TINY, "privacy.weights=true", "privacy.delta=1e-6",
         "privacy.secure=false", "extractor.method=fedsc", "head.rounds=1", "contrast.first=1",
         "contrast.projector-norm=none"], 1,
        "privacy.weights = true needs Opacus: pip install", "privacy"),
    "dirichlet": (["run", "--name", "d", "--set", "data.scheme=dirichlet"], 1,
                  "needs flwr_datasets: pip install", "data"),
    "serve": (["serve", "bundles/0", "--insecure"], 1,
              "nmoe serve needs ", "serve"),
}  # fmt: skip

CODE = """
import contextlib, io, json, sys
for name in {extras!r}:
    sys.modules[name] = None
from nmoe_flower.cli import main
found = {{}}
for name, words in {commands!r}.items():
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    found[name] = code, told.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and errors of every command, from one process."""
    commands = {name: words for name, (words, *_) in SAID.items()}
    commands = {"run": commands["run"], "bundle": ["bundle", "one"], **commands}
    folder = tmp_path_factory.mktemp("newcomer")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE.format(extras=EXTRAS, commands=commands)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (folder / "one" / "results.json").is_file()
    told = json.loads(ran.stdout.splitlines()[-1])
    return {name: (code, errors) for name, (code, errors) in told.items()}


@pytest.mark.parametrize("name", SAID)
def test_a_missing_extra_is_named_in_a_line(found: dict[str, tuple[int, str]], name: str) -> None:
    code, told = found[name]
    _, wanted, line, extra = SAID[name]
    assert "Traceback" not in told
    last = told.splitlines()[-1]
    assert line in last
    assert last.endswith(f"[{extra}]'")
    assert code == wanted


def test_nothing_is_left_by_what_was_refused(
    found: dict[str, tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert found["bundle"] == (0, "")  # needs no extra
    folder = next(Path(tmp_path_factory.getbasetemp()).glob("newcomer*"))
    assert sorted(path.name for path in folder.iterdir()) == ["bundles", "one"]
