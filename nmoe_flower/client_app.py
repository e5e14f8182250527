"""The ClientApp: every `Action` with its handler. The same app runs simulated and on SuperNodes."""

from collections.abc import Mapping
from typing import Any

from flwr.clientapp import ClientApp

from nmoe_flower.catalogue import found
from nmoe_flower.engine import flower
from nmoe_flower.records import Action

__all__ = ["app", "check_node"]

app = ClientApp()

for action in Action:
    register = getattr(app, action.category)
    room = "" if action.handler.startswith("baselines.") else "clients."
    register(action.verb)(found(f"nmoe_flower.{room}{action.handler}"))


def check_node(run_config: Mapping[str, Any]) -> None:
    """Open the data as clients of this machine will: what a node of a Ray cluster must be able to.

    Args:
        run_config: The run's configuration.

    Raises:
        NMoEError: The data cannot be read here.
    """
    from nmoe_flower.config import Config
    from nmoe_flower.data import configured_images
    from nmoe_flower.data.text import configured_text

    config = Config.parse(run_config)
    if config.run.system == "language":
        configured_text(config)
    else:
        configured_images(config)


flower.use_cluster(check_node)
