"""A ClientApp that does what other people's clients do, importable by worker processes."""

import asyncio
import enum
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


class MuteError(Exception):
    """An exception without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class LeavingError(Exception):
    """Whose text ends the program."""

    def __str__(self) -> str:
        raise SystemExit(3)


@app.query("fork")
def fork(message: Message, context: Context) -> Message:
    """The copy comes back, too: it returns, raises or leaves."""
    asked = message.content["config"]
    if os.fork() == 0:
        if asked["how"] == "raise":
            raise ValueError("in the copy")
        if asked["how"] == "leave":
            sys.exit(3)
        return Message(RecordDict({"metrics": MetricRecord({"copy": 1})}), reply_to=message)
    os.wait()
    return Message(RecordDict({"metrics": MetricRecord({"copy": 0})}), reply_to=message)


class Colour(enum.IntEnum):
    """A number of a class of its own."""

    RED = 3


def raised(kind: str) -> BaseException:
    """An exception of this kind, by name."""
    if kind == "unpicklable":
        error = ValueError("holds a lambda")
        error.cause = lambda: None  # type: ignore[attr-defined]
        return error
    if kind == "local class":
        return type("Local", (Exception,), {})("made\nhere \ud800")
    errors = {
        "mute": MuteError(),
        "leaving": LeavingError(),
        "cancelled": asyncio.CancelledError("too late"),
        "generator": GeneratorExit(),
        "base": BaseException("at the root"),
        "group": BaseExceptionGroup("several", [MuteError(), KeyboardInterrupt()]),
        "interrupt": KeyboardInterrupt(),
        "long": ValueError("x" * 100_000),
    }
    return errors[kind]


@app.query("raise")
def raise_(message: Message, context: Context) -> Message:
    """Raise what the config says."""
    raise raised(str(message.content["config"]["kind"]))


@app.query("children")
def children(message: Message, context: Context) -> Message:
    """Compute in a process of its own, as a DataLoader does."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=theirs.send, args=(os.getpid(),), daemon=True)
    child.start()
    found = {"parent": ours.recv(), "pid": os.getpid(), "child": child.pid}
    child.join()
    return Message(RecordDict({"config": ConfigRecord(found)}), reply_to=message)


@app.query("offspring")
def offspring(message: Message, context: Context) -> Message:
    """Start two processes that would live for minutes; then do what the config says."""
    forked = multiprocessing.Process(target=time.sleep, args=(600,))
    forked.start()
    sleeper = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    context.state["started"] = MetricRecord({"pids": [forked.pid, sleeper.pid]})
    kind = message.content["config"]["kind"]
    if kind == "die":
        told = Path(str(message.content["config"]["file"]))
        told.write_text(f"{forked.pid} {sleeper.pid}", encoding="utf-8")
        os._exit(7)
    pids = MetricRecord({"pids": [forked.pid, sleeper.pid]})
    return Message(RecordDict({"metrics": pids}), reply_to=message)


@app.query("edit")
def edit(message: Message, context: Context) -> Message:
    """Say what came, then spoil everything that can be reached."""
    seen = {
        "list": list(message.content["config"]["list"]),
        "sum": float(message.content["arrays"]["0"].numpy().sum()),
    }
    for array in message.content["arrays"].values():
        array.data = b"gone"
        array.shape = (99,)
    message.content["arrays"]["more"] = Array(np.zeros(3))
    message.content["config"]["list"].append(7)
    message.content["config"]["list"] = [8]
    message.metadata.dst_node_id = 2
    message.metadata.ttl = 1.0
    return Message(RecordDict({"config": ConfigRecord(seen)}), reply_to=message)


@app.query("types")
def types(message: Message, context: Context) -> Message:
    """Answer in numbers and texts of classes of its own."""
    text = type("Text", (str,), {})
    real = type("Real", (float,), {})
    metrics: Any = MetricRecord({"colour": Colour.RED, "real": real(0.5), "list": [real(1.5)]})
    metrics["numpy"] = np.float64(2.5)
    config = ConfigRecord({"text": text("abc"), "texts": [text("d")]})
    return Message(RecordDict({"metrics": metrics, "config": config}), reply_to=message)


@app.query("state")
def state(message: Message, context: Context) -> Message:
    """Count the calls; keep a state that cannot be pickled where the config says so."""
    calls = context.state["n"]["calls"] + 1 if "n" in context.state else 1
    context.state["n"] = MetricRecord({"calls": calls})
    if message.content["config"]["spoil"]:
        text = type("Text", (str,), {})
        context.state["text"] = ConfigRecord({"text": text("abc")})
    return Message(RecordDict({"n": context.state["n"]}), reply_to=message)


@app.query("large")
def large(message: Message, context: Context) -> Message:
    """Answer far more than was asked."""
    size = int(message.content["config"]["size"])
    content = {"arrays": ArrayRecord([np.full(size, context.node_id, np.uint8)])}
    return Message(RecordDict(content), reply_to=message)


@app.query("broken")
def broken(message: Message, context: Context) -> Message:
    """Answer with an array without bytes."""
    record = ArrayRecord([np.zeros(3)])
    record["0"].data = None
    return Message(RecordDict({"arrays": record}), reply_to=message)
