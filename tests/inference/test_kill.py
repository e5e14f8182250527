"""Ten peers in four processes, with certificates; one process is killed or frozen, then back."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower.certificates import Authority
from nmoe_flower.config import Config
from nmoe_flower.inference.ask.client import Client
from nmoe_flower.inference.ask.record import CallRecord
from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.protocol.peers import PeerEntry, PeerList
from nmoe_flower.inference.protocol.signing import sign_list
from nmoe_flower.models import Expert, Gate

PEERS, CLASSES, LATENT = 10, 5, 16
OWN = PEERS  # the asking device has the eleventh expert
PROCESSES = ((0, 1, 2), (3, 4, 5), (6, 7), (8, 9))
DEADLINE = 0.5
PATIENCE = 60.0
CONFIG = Config.parse(
    {"extractor.backbone": "linear", "expert.hidden": (32,), "data.num-clients": PEERS + 1}
)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1), np.uint8)


def state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = Gate(LATENT, PEERS + 1)
        torch.nn.init.normal_(gate.head.weight)
        experts = [Expert(LATENT, CLASSES, hidden=(32,)) for _ in range(PEERS + 1)]
    return [
        Bundle.write(
            folder / str(partition),
            partition=partition,
            config=CONFIG,
            classes=list("abcde"),
            image_shape=(1, 4, 4),
            extractor={},
            gate=state(gate),
            expert=state(expert),
        )
        for partition, expert in enumerate(experts)
    ]


class Farm:
    """Starts and kills processes of peers. Each comes back on the ports it had."""

    def __init__(self, zygote: "subprocess.Popen[str]", peers: list[dict[str, Any]]) -> None:
        self._zygote = zygote
        self._peers = peers
        self._pids: dict[int, int] = {}

    def start(self, process: int) -> None:
        members = PROCESSES[process]
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        print(json.dumps([self._peers[i] for i in members]), file=self._zygote.stdin, flush=True)
        told = json.loads(self._zygote.stdout.readline())
        self._pids[process] = told["pid"]
        for member, port in zip(members, told["ports"], strict=True):
            self._peers[member]["port"] = port

    def kill(self, process: int) -> None:
        """As ``kill -9``: connections break."""
        os.kill(self._pids.pop(process), signal.SIGKILL)

    def freeze(self, process: int) -> None:
        """Connections stay, and nothing comes."""
        os.kill(self._pids[process], signal.SIGSTOP)

    def thaw(self, process: int) -> None:
        os.kill(self._pids[process], signal.SIGCONT)

    @property
    def entries(self) -> tuple[PeerEntry, ...]:
        return tuple(
            PeerEntry(f"peer-{i}", i, f"127.0.0.1:{peer['port']}")
            for i, peer in enumerate(self._peers)
        )


@pytest.fixture(scope="module")
def keys(
    forest: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    folder: Path = tmp_path_factory.mktemp("keys")
    (folder / "ca.pem").write_bytes(forest.certificate_pem)

    def issue(name: str) -> dict[str, str]:
        forest.issue(folder, name)
        files = {"certificate": f"{name}.pem", "key": f"{name}.key", "authority": "ca.pem"}
        return {kind: str(folder / file) for kind, file in files.items()}

    return issue


@pytest.fixture(scope="module")
def farm(bundles: list[Bundle], keys: Callable[[str], dict[str, str]]) -> Iterator[Farm]:
    peers = [
        {"bundle": str(bundle.folder), "port": 0, **keys(f"peer-{bundle.partition}")}
        for bundle in bundles[:PEERS]
    ]
    command = [sys.executable, str(Path(__file__).with_name("farm.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as zygote:
        made = Farm(zygote, peers)
        for process in range(len(PROCESSES)):
            made.start(process)
        yield made
        assert zygote.stdin is not None
        zygote.stdin.close()
        zygote.wait(PATIENCE)


@pytest.fixture
def open_client(
    farm: Farm,
    bundles: list[Bundle],
    keys: Callable[[str], dict[str, str]],
    forest: Authority,
    tmp_path: Path,
) -> Iterator[Callable[[float], Client]]:
    """Opens a client with a deadline; closed at the end."""
    now, path = int(time.time()), tmp_path / "peers.json"
    sign_list(PeerList(farm.entries, 1, now, now + 86_400), forest).write(path)
    made: list[Client] = []

    def make(deadline: float) -> Client:
        made.append(
            Client.open(bundles[OWN].folder, peers=path, deadline=deadline, **keys("asker"))
        )
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def truth(bundles: list[Bundle]) -> torch.Tensor:
    """Every expert's logits of every image, computed here: [N, E, C]."""
    latents = bundles[0].extractor()(normalised(IMAGES))
    with torch.inference_mode():
        return torch.stack([bundle.expert()(latents) for bundle in bundles], dim=1)


def normalised(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).float().permute(0, 3, 1, 2) / 255 - 0.5) / 0.25


def test_logits_equal_those_of_local_experts(
    open_client: Callable[[float], Client], truth: torch.Tensor
) -> None:
    client = open_client(PATIENCE)
    latents = normalised(IMAGES).flatten(1)
    everyone = torch.arange(PEERS + 1).expand(len(IMAGES), -1)
    logits, record = client.experts.ask(latents, everyone)
    assert record.answered_by.tolist() == everyone.tolist()
    assert (logits - truth).abs().max() < 1e-5


class Stream(threading.Thread):
    """Queries without a pause; every record and answer is kept."""

    def __init__(self, client: Client) -> None:
        super().__init__(name="stream")
        self._client = client
        self._changed = threading.Condition()
        self._stopped = False
        self.records: list[CallRecord] = []
        self.answers: list[tuple[np.ndarray, np.ndarray]] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        rng = np.random.default_rng(1)
        try:
            while not self._stopped:
                rows = rng.integers(0, len(IMAGES), 8)
                answer = self._client.predict(IMAGES[rows])
                with self._changed:
                    self.records.append(answer.record)
                    self.answers.append((rows, answer.probabilities))
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self.error = error
                self._changed.notify_all()

    def wait_for(self, condition: Callable[[list[CallRecord]], bool]) -> int:
        """Wait until the records fulfil the condition; how many there are then."""
        with self._changed:
            done = self._changed.wait_for(lambda: self.error or condition(self.records), PATIENCE)
            assert self.error is None
            assert done, "it did not happen in time"
            return len(self.records)

    def stop(self) -> None:
        self._stopped = True
        self.join(PATIENCE)
        assert self.error is None


def experts_in(records: list[CallRecord]) -> set[int]:
    """Who answered at least one row."""
    return {int(expert) for record in records for expert in record.answered_by.ravel()}


def not_asked(records: list[CallRecord]) -> set[str]:
    """Peers whose breaker was found open."""
    return {sent.peer for record in records for sent in record.sent if sent.outcome == "open"}


@pytest.mark.alone
@pytest.mark.parametrize(("harm", "heal"), [("kill", "start"), ("freeze", "thaw")])
def test_every_query_is_answered_while_three_of_ten_peers_are_gone(
    open_client: Callable[[float], Client], farm: Farm, truth: torch.Tensor, harm: str, heal: str
) -> None:
    victims = set(PROCESSES[0])
    names = {f"peer-{victim}" for victim in victims}
    stream = Stream(open_client(DEADLINE))
    stream.start()
    try:
        well = stream.wait_for(lambda r: len(r) >= 100 and victims <= experts_in(r))
        getattr(farm, harm)(0)
        gone = stream.wait_for(lambda r: names <= not_asked(r[well:]))
        healed = stream.wait_for(lambda r: len(r) >= gone + 200)
        getattr(farm, heal)(0)
        back = stream.wait_for(lambda r: victims <= experts_in(r[healed:]))
        stream.wait_for(lambda r: len(r) >= back + 100)
    finally:
        stream.stop()

    records = stream.records
    for (rows, probabilities), record in zip(stream.answers, records, strict=True):
        by = torch.from_numpy(record.answered_by[:, 0])
        expected = truth[torch.from_numpy(rows), by].softmax(dim=1)
        assert np.abs(probabilities - expected.numpy()).max() < 1e-5
    assert np.percentile([record.ms for record in records], 99) <= 1.2 * 1000 * DEADLINE
    without = records[gone:healed]
    assert not victims & experts_in(without)
    assert sum(record.summary()["next_best"] for record in without) > 0
