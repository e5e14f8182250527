import pytest
from flwr.clientapp import ClientApp

from nmoe_flower.engine import InProcessGrid


@pytest.fixture(scope="session", autouse=True)
def identity() -> None:
    """Flower makes messages only in a process that has a run; a grid gives it one."""
    InProcessGrid(ClientApp(), 1).close()
