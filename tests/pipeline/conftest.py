from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from nmoe_flower.checkpoint import Checkpoints
from nmoe_flower.client_app import app
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.pipeline import Run, run_pipeline

CLIENTS = 4


class InterruptedRunError(Exception):
    """Stands for kill -9."""


@dataclass
class Pipeline:
    """A tiny run on the digits; call it to run, or to go on with, its pipeline."""

    config: Config
    folder: Path
    lines: list[Mapping[str, Any]] = field(default_factory=list)
    run: Run | None = None

    def __call__(
        self,
        *,
        client_app: Callable[[Message, Context], Message] | None = None,
        stop: Callable[[Mapping[str, Any]], bool] = lambda _: False,
        foreign: int = 0,
    ) -> dict[str, Any]:
        """Run it; ``foreign`` nodes more hold partitions that it does not have."""

        def journal(record: Mapping[str, Any]) -> None:
            self.lines.append(record)
            if stop(record):
                raise InterruptedRunError

        checkpoints = Checkpoints(self.folder / "checkpoints", keep=2)
        clients = self.config.data.num_clients
        with InProcessGrid(
            client_app or app,
            clients + foreign,
            run_config=self.config.flat(),
            stack=self.config.engine.stack,
        ) as grid:
            self.run = Run(grid, self.config, journal, checkpoints=checkpoints)
            if checkpoint := checkpoints.latest():
                self.run.restore(checkpoint)
            return run_pipeline(self.run)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        assert self.run is not None
        return self.run.artifacts.named()


class FailingApp(ClientApp):
    """The real app, but one client raises on one action the first ``times`` times."""

    def __init__(self, action: str, partition: int, times: int) -> None:
        super().__init__()
        self.action, self.partition, self.times = action, partition, times

    def __call__(self, message: Message, context: Context) -> Message:
        mine = context.node_config["partition-id"] == self.partition
        if mine and message.metadata.message_type == self.action and self.times > 0:
            self.times -= 1
            raise OSError("disk full")
        return app(message, context)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded digits, shared by all runs."""
    return tmp_path_factory.mktemp("cache")


def pipelines(cache: Path, folder: Path) -> Callable[..., Pipeline]:
    """What makes tiny runs below a folder, by name and changes of the configuration."""

    def make(name: str, changes: Mapping[str, Any] | None = None) -> Pipeline:
        values = {
            "data.num-clients": CLIENTS,
            "data.cache-dir": str(cache),
            "data.train-per-client": 60,
            "data.test-per-client": 30,
            "extractor.backbone": "linear",
            "extractor.rounds": 5,
            "extractor.batch-size": 16,
            "expert.hidden": "16",
            "expert.epochs": 2,
            "gate.rounds": 3,
            "gate.local-steps": 2,
            "run.name": name,
            "run.out": str(folder),
            "run.checkpoint-every": 2,
            **(changes or {}),
        }
        return Pipeline(Config.parse(values), folder / name)

    return make


@pytest.fixture
def new_pipeline(cache: Path, tmp_path: Path) -> Callable[..., Pipeline]:
    """What makes the tiny runs of one test."""
    return pipelines(cache, tmp_path)


@pytest.fixture(scope="module")
def shared_pipeline(
    cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Pipeline]:
    """What makes tiny runs that several tests of a module look at."""
    return pipelines(cache, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def failing_app() -> type[FailingApp]:
    return FailingApp


@pytest.fixture
def interrupted() -> type[Exception]:
    return InterruptedRunError
