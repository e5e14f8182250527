"""A ClientApp for the tests, importable by worker processes."""

import os
import signal
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Multiply by the partition id, count the calls of this node."""
    partition = context.node_config["partition-id"]
    seen = context.state["seen"]["calls"] if "seen" in context.state else 0
    context.state["seen"] = MetricRecord({"calls": seen + 1})
    arrays = {
        name: Array(np.asarray(array.numpy() * np.float32(1.1 + partition)))
        for name, array in message.content["arrays"].items()
    }
    del message.content["arrays"]
    message.content["config"]["edited"] = True
    metrics = MetricRecord({"num-examples": partition + 1, "calls": seen + 1})
    return Message(
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message
    )


@app.query("environment")
def environment(message: Message, context: Context) -> Message:
    names = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MALLOC_TOP_PAD_")
    found = ConfigRecord({name: os.environ.get(name, "") for name in names})
    found["pid"] = os.getpid()
    return Message(RecordDict({"config": found}), reply_to=message)


@app.query("context")
def context(message: Message, context: Context) -> Message:
    found = {**context.run_config, **context.node_config, "node-id": context.node_id}
    return Message(RecordDict({"config": ConfigRecord(found)}), reply_to=message)


@app.query("trouble")
def trouble(message: Message, context: Context) -> Message:
    """Do what the config says for this partition."""
    action = message.content["config"].get(str(context.node_config["partition-id"]), "")
    if action == "raise":
        raise ValueError("bad shape (3, 4)")
    if action == "exit":
        raise SystemExit("no data")
    if action == "die":
        os._exit(7)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        time.sleep(600)
    if action == "none":
        return None
    return Message(RecordDict({"config": ConfigRecord({"action": action})}), reply_to=message)


@app.query("long")
def long(message: Message, context: Context) -> Message:
    """Reply with arrays larger than the request's and a long config."""
    size = message.content["config"]["size"]
    partition = context.node_config["partition-id"]
    return Message(
        RecordDict(
            {
                "arrays": ArrayRecord([np.full(size, partition, np.float64)]),
                "config": ConfigRecord(
                    {"text": message.content["config"]["text"] + str(partition)}
                ),
            }
        ),
        reply_to=message,
    )
