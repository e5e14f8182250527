"""The package's ClientApp with one planted fault, importable by worker processes.

The environment variable NMOE_FAULT says, as JSON, which: ``kind``, ``type`` (of the message),
``partition``, ``round`` (0: of a message without rounds) and whether it happens ``once``.
"""

import json
import os

import numpy as np
from flwr.app import Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from nmoe_flower import client_app, records
from nmoe_flower.records import METRICS, NUM_EXAMPLES, SERVER_ROUND


class Faulty(ClientApp):
    """Answers as the real app does, but for the one message the fault is meant for."""

    def __call__(self, message: Message, context: Context) -> Message:
        fault = json.loads(os.environ.get("NMOE_FAULT", "{}"))
        if not _is_meant(fault, message, context):
            return client_app.app(message, context)
        context.state["faults"] = MetricRecord({"seen": 1})
        if fault["kind"] == "raise":
            raise ValueError("the camera is broken")
        if fault["kind"] == "die":
            os._exit(7)
        reply = client_app.app(message, context)
        _spoil(reply, fault["kind"])
        return reply


def _is_meant(fault: dict[str, object], message: Message, context: Context) -> bool:
    return bool(
        fault
        and message.metadata.message_type == fault["type"]
        and context.node_config["partition-id"] == fault["partition"]
        and records.config_of(message).get(SERVER_ROUND, 0) == fault["round"]
        and not (fault["once"] and "faults" in context.state)
    )


def _spoil(reply: Message, kind: str) -> None:
    content = reply.content
    metrics = content.metric_records[METRICS]
    if kind == "missing":
        del metrics[NUM_EXAMPLES]
    elif kind == "negative":
        metrics[NUM_EXAMPLES] = -5
    elif kind == "nan-metric":
        metrics["loss"] = float("nan")
    else:
        (name, record), *_ = content.array_records.items()
        first, *others = records.to_numpy(record).items()
        key, value = first
        spoilt = {
            "nan": {key: np.full_like(value, np.nan)},
            "infinite": {key: np.full_like(value, np.inf)},
            "shape": {key: value[..., None]},
            "names": {f"{key}-of-mine": value},
        }[kind]
        content[name] = records.from_numpy(spoilt | dict(others))


app = Faulty()
