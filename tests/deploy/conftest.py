from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nmoe_flower.config import Config
from nmoe_flower.deploy import FederationPlan, local_plan, places, write_federation

TINY = {
    "data.train-per-client": 40,
    "data.test-per-client": 20,
    "extractor.backbone": "linear",
    "extractor.rounds": 2,
    "expert.hidden": "8",
    "expert.epochs": 1,
    "gate.rounds": 2,
    "gate.methods": "federated",
    "run.controls": "",
}


@pytest.fixture
def new_plan() -> Callable[..., FederationPlan]:
    """A plan of so many nodes on free ports of the loopback."""

    def make(
        nodes: int = 2, *, changes: dict[str, Any] | None = None, **options: Any
    ) -> FederationPlan:
        config = Config.parse({**TINY, "data.num-clients": nodes, **(changes or {})})
        server, peers = places([], nodes)
        return local_plan(FederationPlan(server=server, peers=peers, config=config, **options))

    return make


@pytest.fixture
def federation(new_plan: Callable[..., FederationPlan], tmp_path: Path) -> Path:
    """The folder of a federation of two nodes, written just now."""
    folder = tmp_path / "lab"
    write_federation(folder, new_plan())
    return folder
