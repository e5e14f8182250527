"""A Ray cluster that is there: found, joined, and told in one sentence what is wrong with it.

As a program (``python -m nmoe_flower.engine.cluster ADDRESS``) it joins the cluster and prints what
it is made of in JSON, so that a caller learns it without becoming a part of the cluster itself.
"""

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from nmoe_flower.addresses import MAX_PORT
from nmoe_flower.engine.spawn import WORKER_ENVIRONMENT, cause_of_death
from nmoe_flower.errors import EngineError
from nmoe_flower.plurals import how_many

__all__ = ["ADDRESS", "Cluster", "Node", "cluster_at", "join_cluster", "living", "named_address"]

ADDRESS = "RAY_ADDRESS"
"""The variable in which Ray looks for its cluster."""

_AUTO = "auto"
_LOCAL = "local"
_ALLOWED = "auto, HOST:PORT of the head's `ray start`, or local: a Ray of the run's own"
_CONNECT_SECONDS = 5.0
_JOIN_SECONDS = 90.0
_BAD_CONNECTION = "the Ray cluster at {address} does not answer"


class Node(NamedTuple):
    """A machine of the cluster, or rather the raylet that runs on it."""

    id: str
    name: str
    """Its host name and address, for people."""
    cpus: float
    gpus: float

    def slots(self, cpus: float, gpus: float) -> int:
        """How many clients fit that take so many cores and so much of a GPU each.

        >>> Node("1", "here", 8, 1).slots(1, 0.25), Node("1", "here", 8, 0).slots(1, 0.25)
        (4, 0)
        """
        fit = int(self.cpus / cpus) if cpus else sys.maxsize
        return min(fit, int(self.gpus / gpus + 1e-6)) if gpus else fit


class Cluster(NamedTuple):
    """What a cluster is made of."""

    address: str
    nodes: tuple[Node, ...]

    def __str__(self) -> str:
        nodes = how_many(len(self.nodes), "node")
        cores = sum(node.cpus for node in self.nodes)
        gpus = sum(node.gpus for node in self.nodes)
        return f"the Ray cluster at {self.address}: {nodes}, {cores:g} cores, {gpus:g} GPUs"

    def gpu_share(self) -> float:
        """What of a GPU a client may take so that one runs on every core of a node with GPUs.

        >>> Cluster("h:1", (Node("1", "a", 8, 2), Node("2", "b", 4, 0))).gpu_share()
        0.25
        >>> Cluster("h:1", (Node("1", "a", 8, 0),)).gpu_share()
        1.0
        """
        shares = [node.gpus / max(node.cpus, 1) for node in self.nodes if node.gpus]
        return min(1.0, int(10_000 * min(shares)) / 10_000) if shares else 1.0


def named_address(argument: str | None, environment: Mapping[str, str]) -> str | None:
    """The cluster that is meant: the argument's, else that of ``RAY_ADDRESS``; None: none.

    Args:
        argument: ``auto``, ``HOST:PORT``, ``local``, or None.
        environment: Variables to look into.

    Raises:
        EngineError: The text is no address of a cluster.

    >>> named_address("10.0.0.1:6379", {}), named_address(None, {"RAY_ADDRESS": "auto"})
    ('10.0.0.1:6379', 'auto')
    >>> named_address("local", {"RAY_ADDRESS": "auto"}), named_address(None, {"RAY_ADDRESS": ""})
    (None, None)
    """
    source = "the address of the Ray cluster" if argument is not None else ADDRESS
    text = environment.get(ADDRESS, "") if argument is None else argument
    if argument is None and not text:
        return None
    if text in (_AUTO, _LOCAL):
        return None if text == _LOCAL else text
    host, _, port = text.rpartition(":")
    whole = re.fullmatch(r"[0-9]{1,5}", port) is not None and 0 < int(port) <= MAX_PORT
    if "://" in text or "/" in text or re.search(r"\s", text):
        hint = " (Ray's clients and its dashboard have other ports)" if "://" in text else ""
    elif host and whole and (":" not in host or re.fullmatch(r"\[[0-9A-Fa-f:.]+\]", host)):
        return text
    else:
        hint = ""
    raise EngineError(f"{source} is {text[:80]!r}{hint}; allowed: {_ALLOWED}")


def join_cluster(address: str) -> None:
    """Make this process a driver of the cluster; nothing of Ray is started.

    Args:
        address: Cluster to look for: ``auto`` or ``HOST:PORT``.

    Raises:
        EngineError: There is no cluster, none of this version, or none that this machine is in.
    """
    import ray

    _check_reachable(address)
    path = os.pathsep.join(filter(None, [*sys.path, os.environ.get("PYTHONPATH")]))
    variables = {**WORKER_ENVIRONMENT, "PYTHONPATH": path}
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (Exception, SystemExit) as error:
        raise EngineError(_in_words(address, error)) from None


def living() -> list[Node]:
    """The nodes of the cluster that this process has joined and that are alive, by id."""
    import ray

    listed: Any = ray.nodes  # it says nothing of its types
    found = []
    for node in listed():
        if node["Alive"]:
            resources = node["Resources"]
            found.append(
                Node(
                    node["NodeID"],
                    f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
                    float(resources.get("CPU", 0)),
                    float(resources.get("GPU", 0)),
                )
            )
    return sorted(found)


def cluster_at(address: str) -> Cluster:
    """Look at a cluster from a process of its own.

    Args:
        address: Cluster to look for: ``auto`` or ``HOST:PORT``.

    Raises:
        EngineError: As `join_cluster`, or nothing there speaks Ray.
    """
    _check_reachable(address)
    environment = {**os.environ, ADDRESS: "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nmoe_flower.engine.cluster", address],
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=_JOIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"{_BAD_CONNECTION.format(address=address)} within {_JOIN_SECONDS:g} s: does a head "
            "started with `ray start --head` listen there?"
        ) from None
    lines = done.stdout.splitlines() or [""]
    try:
        answer = json.loads(lines[-1])
    except ValueError:
        last = (done.stderr.strip().splitlines() or [cause_of_death(done.returncode)])[-1]
        raise EngineError(f"{_BAD_CONNECTION.format(address=address)}: {last[:500]}") from None
    if "error" in answer:
        raise EngineError(answer["error"])
    return Cluster(answer["address"], tuple(Node(*node) for node in answer["nodes"]))


def _check_reachable(address: str) -> None:
    """Ray itself would try for a minute."""
    if address == _AUTO:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise EngineError(
            f"there is no Ray cluster at {address}: {error.strerror or error}; start its head "
            f"there: ray start --head --port={port}"
        ) from None


def _in_words(address: str, error: BaseException) -> str:
    """What Ray says about a cluster that cannot be joined, in one sentence."""
    text = " ".join(str(error).split())
    if "Version mismatch" in text:
        theirs, ours = (
            dict(zip(("Ray", "Python"), pair, strict=True))
            for pair in re.findall(r"Ray: (\S+) Python: (\S+)", text)[:2]
        )
        return (
            f"the Ray cluster at {address} runs Ray {theirs['Ray']} on Python {theirs['Python']}, "
            f"here is Ray {ours['Ray']} on Python {ours['Python']}: every machine needs the same"
        )
    if isinstance(error, ConnectionError) and address == _AUTO:
        return (
            "no Ray cluster runs on this machine: ray start --head makes it the first node of one, "
            "ray start --address=HOST:PORT a node of another"
        )
    if "node" in text and ("local" in text or "Can't find" in text or "Could not find" in text):
        return (
            f"this machine is no node of the Ray cluster at {address}: make it one with "
            f"ray start --address={address} ({text[:200]})"
        )
    return f"{_BAD_CONNECTION.format(address=address)}: {type(error).__name__}: {text[:300]}"


def _look(address: str) -> dict[str, Any]:
    import ray

    try:
        join_cluster(address)
    except EngineError as error:
        return {"error": str(error)}
    try:
        return {"address": ray.get_runtime_context().gcs_address, "nodes": living()}
    finally:
        ray.shutdown()


if __name__ == "__main__":
    print(json.dumps(_look(sys.argv[1])))
