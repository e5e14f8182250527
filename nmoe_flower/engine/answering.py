"""Run a ClientApp on one message: find the app, build its context, catch what it raises."""

import importlib
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp

from nmoe_flower.engine.described import describe
from nmoe_flower.engine.flower import ErrorCode
from nmoe_flower.engine.signals import StopSignal
from nmoe_flower.errors import EngineError
from nmoe_flower.records import NUM_PARTITIONS, PARTITION_ID

__all__ = ["Nodes", "answer_message", "load_client_app", "refusal"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The virtual nodes ``1 .. num_nodes``; node ``i + 1`` holds partition ``i``."""

    num_nodes: int
    run_id: int = 1
    run_config: Mapping[str, UserConfigValue] = field(default_factory=dict)
    node_config: Mapping[str, UserConfigValue] = field(default_factory=dict)

    def context(self, node_id: int, state: RecordDict) -> Context:
        """What the ClientApp of this node is given besides the message."""
        config = {PARTITION_ID: node_id - 1, NUM_PARTITIONS: self.num_nodes, **self.node_config}
        return Context(self.run_id, node_id, config, state, dict(self.run_config))


def load_client_app(reference: str) -> ClientApp:
    """Import ``"package.module:attribute"``.

    Raises:
        EngineError: The text has another form, the import fails, or the attribute is no ClientApp.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise EngineError(f"client app {reference!r} must have the form 'package.module:attribute'")
    try:
        app = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:
        raise EngineError(f"cannot import client app {reference!r}: {describe(error)}") from error
    if not isinstance(app, ClientApp):
        raise EngineError(f"{reference!r} is a {type(app).__name__}, not a ClientApp")
    return app


def answer_message(
    app: ClientApp,
    message: Message,
    context: Context,
    *,
    stops: tuple[type[BaseException], ...] = (StopSignal, KeyboardInterrupt),
) -> Message:
    """The app's reply; what it raises becomes an error reply.

    Also what is no ``Exception``: ``SystemExit``, ``asyncio.CancelledError``, ``GeneratorExit``.

    Args:
        app: App that answers.
        message: Message to the app.
        context: What the node keeps between messages.
        stops: What is let through: the signals to stop, which reach clients of this process first.
    """
    try:
        reply = _called(app, message, context)
    except stops:
        raise
    except BaseException as error:
        _log.exception("partition %s failed", context.node_config.get(PARTITION_ID))
        return refusal(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, describe(error))
    if not isinstance(reply, Message):
        kind = type(reply).__name__
        return refusal(
            message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"returned {kind}, not a Message"
        )
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        return refusal(
            message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "returned a reply to another message"
        )
    return reply


def _called(app: ClientApp, message: Message, context: Context) -> object:
    """What the app returns, once: a copy that it forked ends here and answers nobody."""
    own = os.getpid()
    try:
        return app(message, context)
    finally:
        if os.getpid() != own:
            os._exit(0 if sys.exception() is None else 1)


def refusal(message: Message, code: int, reason: str | None) -> Message:
    """An error reply to ``message``."""
    return Message(Error(code, reason), reply_to=message)
