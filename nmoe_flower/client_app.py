"""The ClientApp: every `Action` with its handler. The same app runs simulated and on SuperNodes."""

from flwr.clientapp import ClientApp

from nmoe_flower.catalogue import found
from nmoe_flower.records import Action

__all__ = ["app"]

app = ClientApp()

for action in Action:
    register = getattr(app, action.category)
    room = "" if action.handler.startswith("baselines.") else "clients."
    register(action.verb)(found(f"nmoe_flower.{room}{action.handler}"))
