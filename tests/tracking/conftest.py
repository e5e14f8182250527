import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower import results
from nmoe_flower.config import Config
from nmoe_flower.results import RunFolder

RESULTS: dict[str, Any] = {
    "rows": [
        {"gate": "federated+prior", "test": "iid", "seed": 0, "accuracy": 0.75, "auc": None,
         "per_client": {"accuracy": [0.5, 1.0], "auc": [None, None]}},
        {"gate": "control:fedavg", "test": "local", "seed": 0, "accuracy": 0.5, "auc": 0.625,
         "per_client": {"accuracy": [0.5, 0.5], "auc": [0.5, 0.75]}},
    ],
    "routing": {},
}  # fmt: skip
PROVENANCE = {
    "started": "now",
    "versions": {"torch": "2.9", "ray": None},
    "git": {"revision": "1f"},
}
FINAL = {
    "federated_prior/iid/accuracy": 0.75,
    "control_fedavg/local/accuracy": 0.5,
    "control_fedavg/local/auc": 0.625,
}
TABLE = "gate,test,accuracy,auc\nfederated+prior,iid,0.75,\ncontrol:fedavg,local,0.5,0.625\n"


def record(stage: str, number: int, **metrics: Any) -> dict[str, Any]:
    return {
        "stage": stage,
        "round": number,
        "rounds": 9,
        "metrics": metrics,
        "clients": [0, 1],
        "failures": [{"partition": 1, "reason": "NaN"}],
        "bytes_up": 30,
        "bytes_down": 12,
        "seconds": 0.5,
    }


def finished(folder: RunFolder) -> list[Path]:
    """Write the results of a run, and draw a figure."""
    from PIL import Image

    folder.write_results(RESULTS)
    figure = folder.path / "figures" / "accuracy.png"
    figure.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 3), (255, 0, 0)).save(figure)
    return [figure]


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Nobody asks git where a made-up run comes from, and no write waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(results, "provenance", lambda seed: PROVENANCE | {"seed": seed})
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that has begun; the working folder is beside the run folders."""
    monkeypatch.chdir(tmp_path)
    return RunFolder.create(tmp_path / "runs" / "one", Config.parse({"data.tau": 0.5}))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store with its tables, which take seconds to make."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from nmoe_flower.tracking.mlflow import _make_whole

        store = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
        _make_whole(store)
    return store


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, Any]]:
    """A machine whose only way out is a proxy that nobody may call, and no setting of a tool.

    Programs that the tools start heed the proxy, too; this process may not even look up a name.
    """
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    called: list[Any] = []
    connect = socket.socket.connect

    def only_local(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            called.append(address)
            raise OSError(f"a connection to {address}")
        connect(self, address)

    def no_name(host: Any, *_: Any, **__: Any) -> None:
        called.append(host)
        raise OSError(f"a look-up of {host}")

    monkeypatch.setattr(socket.socket, "connect", only_local)
    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield {"called": called}
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert called == []
