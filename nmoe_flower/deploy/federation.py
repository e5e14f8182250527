"""A federation whose parties all run on this machine, by the scripts of its folder."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from nmoe_flower.addresses import Address, free_ports
from nmoe_flower.deploy.folder import FederationPlan, write_federation
from nmoe_flower.deploy.probes import ask_superlink
from nmoe_flower.deploy.sandbox import Sandbox
from nmoe_flower.pipeline import exchanges

__all__ = ["LocalFederation", "local_plan"]

_START_SECONDS = 120.0
_PER_EXCHANGE = 120.0  # a deadline, not an estimate: a busy machine is slow
_ANSWER_SECONDS = 30.0  # likewise; connections are opened within it
_EXPIRY = 90.0  # a killed node is let in again when its heartbeats have expired


def local_plan(plan: FederationPlan) -> FederationPlan:
    """The same plan with every place on the loopback, at ports that are free."""
    count = len(plan.peers)
    ports = free_ports(2 * count + 1)
    return replace(
        plan,
        server=Address("127.0.0.1", ports[0]),
        peers=tuple(Address("127.0.0.1", port) for port in ports[1 : count + 1]),
        runtime_ports=tuple(ports[count + 1 :]),
    )


@dataclass
class LocalFederation:
    """Runs a plan in a sandbox. The methods are called in the order in which they are written.

    Attributes:
        sandbox: Where its processes live, entered; its folder is the federation's.
        plan: A plan on the loopback, as ``local_plan`` makes it.
        nodes: The scripts that keep the SuperNodes going.
    """

    sandbox: Sandbox
    plan: FederationPlan
    nodes: "list[subprocess.Popen[str]]" = field(default_factory=list)

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.sandbox.folder / "server"

    @property
    def node_folders(self) -> list[Path]:
        """The nodes' folders, by partition."""
        return [self.sandbox.folder / "nodes" / f"node-{i}" for i in range(len(self.plan.peers))]

    @property
    def run_folder(self) -> Path:
        """Folder of the run, on the server."""
        return self.server / "runs" / self.plan.config.run.name

    def write(self, *, wheel: Path | None = None) -> None:
        """Write all folders. Arguments and errors as of ``write_federation``."""
        write_federation(self.sandbox.folder, self.plan, wheel=wheel)

    def start_superlink(self) -> None:
        """Start the SuperLink and let the nodes' keys in.

        Raises:
            EngineError: It did not answer over TLS in time.
        """
        log = self.server / "logs" / "superlink.log"
        child = self.sandbox.start(["sh", "superlink.sh"], folder=self.server, log=log)
        authority = self.server / "ca.pem"
        self.sandbox.wait(
            lambda: not ask_superlink(self.plan.server, authority, seconds=2.0).problem,
            _START_SECONDS,
            "the SuperLink",
            log=log,
            alive=child,
        )
        self.sandbox.run(
            ["sh", "register.sh"],
            folder=self.server,
            log=self.server / "logs" / "register.log",
            seconds=_START_SECONDS + 20.0 * len(self.plan.peers),
        )

    def start_nodes(self) -> None:
        """Start every SuperNode; each is started again whenever it ends."""
        for folder in self.node_folders:
            log = folder / "logs" / "supernode.log"
            self.nodes.append(self.sandbox.start(["sh", "start.sh"], folder=folder, log=log))

    def train(self, *, on_tick: Callable[[], None] = lambda: None) -> None:
        """Train to the end; ``on_tick`` is called about ten times per second.

        Raises:
            EngineError: The run failed, or took too long.
        """
        needed = sum(exchanges(self.plan.config).values())
        self.sandbox.run(
            ["sh", "train.sh"],
            folder=self.server,
            log=self.server / "logs" / "train.log",
            seconds=_START_SECONDS + _EXPIRY + _PER_EXCHANGE * needed,
            on_tick=on_tick,
        )

    def start_peers(self) -> None:
        """Write every node's bundle and start its peer service.

        Raises:
            EngineError: One did not serve in time.
        """
        started = []
        for folder in self.node_folders:
            log = folder / "logs" / "peer.log"
            started.append(
                (folder, log, self.sandbox.start(["sh", "serve.sh"], folder=folder, log=log))
            )
        for folder, log, child in started:
            self.sandbox.wait(
                lambda log=log: '"serving"' in log.read_text(encoding="utf-8"),  # type: ignore[misc]
                _START_SECONDS,
                f"the peer service of {folder.name}",
                log=log,
                alive=child,
            )

    def ask(self, images: Path, *, node: int = 0) -> list[str]:
        """Classify images on one node with its peers' help: the lines of ``nmoe infer``.

        Raises:
            EngineError: The question failed.
        """
        folder = self.node_folders[node]
        log = folder / "logs" / "infer.log"
        command = ["nmoe", "infer", "--node", ".", str(images.resolve())]
        command += ["--deadline", f"{_ANSWER_SECONDS:g}"]
        seconds = _START_SECONDS + _ANSWER_SECONDS
        self.sandbox.run(command, folder=folder, log=log, seconds=seconds)
        lines = log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith("{")]
