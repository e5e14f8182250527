"""A round of published systems beside the same arithmetic written by hand.

One thread everywhere. Ours goes through a worker process, messages and strategy; the bare loop
trains in this process, on the same networks, batches and augmentation, steps as torch does unless
told otherwise, and adds up weights. Both take turns. Where clients hold a part of the experts, here
they hold all. pFedMoAP learns heads on latents of a given extractor: here of `Pixels`.
"""

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.by_flower import device_at, rounds_of
from benchmarks.yardstick import Blocks, machine_line, quotients, start_as_workers, told, write_rows
from nmoe_flower.arguments import SEED, OutputFile, Parser, Whole
from nmoe_flower.baselines import Baseline, expert_of
from nmoe_flower.baselines.fedmoe_da import mixing_weights
from nmoe_flower.baselines.network import ExpertNetwork
from nmoe_flower.baselines.row_attention import RowAttention
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.clients.device import Device
from nmoe_flower.config import Config
from nmoe_flower.data import normalise
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.provenance import provenance
from nmoe_flower.records import Action
from nmoe_flower.training import autocast, batch_indices, generator, seeded

__all__ = ["SYSTEMS", "main"]

Heads = dict[str, Tensor]
"""A linear head's arrays, by name."""
GOAL = 1.15
BLOCK = 2  # rounds in a turn


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0 if it measured, whatever the figures are."""
    args = _parser().parse_args(argv)
    source, threads = provenance(args.seed), torch.get_num_threads()
    torch.set_num_threads(1)
    systems = args.systems or SYSTEMS
    measured: dict[str, dict[str, Any]] = {}
    width = max(map(len, systems))
    print(f"{'':{width}} {'per client round':>17} {'x bare':>8}", flush=True)
    try:
        for name in systems:
            measured[name] = one = _measure(args, name)
            verdict = "met" if one["x"] <= GOAL else "missed"
            took = f"{one['seconds'] / args.clients * 1e3:>14.1f} ms {one['x']:>8.3f}"
            print(f"{name:{width}} {took}  <= {GOAL:g} {verdict}", flush=True)
    finally:
        torch.set_num_threads(threads)
    print(machine_line(source, args.workers))
    if args.json is not None:
        content = {"provenance": source, "clients": args.clients, "systems": measured}
        write_rows(args.json, content)
    return 0


def _measure(args: argparse.Namespace, system: str) -> dict[str, Any]:
    """Rounds of both in several launches: where memory lies moves the time of one by 5 %."""
    blocks: Blocks = []
    beside: Blocks = []
    for _ in range(args.launches):
        with tempfile.TemporaryDirectory() as folder:
            _launch(_config(args, system, folder), args, blocks, beside)
    seconds = statistics.median(s for block in blocks for s in block)
    each = quotients(blocks, beside)  # of the turns, in order
    return {
        "x": statistics.median(each),
        "seconds": seconds,
        "quotients": [round(one, 3) for one in each],
    }


def _launch(config: Config, args: argparse.Namespace, blocks: Blocks, beside: Blocks) -> None:
    """Rounds through a fresh worker, and rounds of a fresh bare loop, in turn."""
    bare, clients = _Bare(config), config.data.num_clients
    app = "nmoe_flower.client_app:app"
    with closing(
        InProcessGrid(
            app if args.workers else found(app),
            clients,
            run_config=config.flat(),
            workers=args.workers,
        )
    ) as grid:
        ours = _flower(config, grid)
        bare.round(1)
        ours(1)
        for number in range(max(1, args.rounds // BLOCK)):
            turns: list[tuple[Blocks, Callable[[int], object]]]
            turns = [(beside, bare.round), (blocks, ours)]
            for kept, run in turns if number % 2 else reversed(turns):
                kept.append([_seconds(run, 2 + number * BLOCK + k) for k in range(BLOCK)])


def _seconds(run: Callable[[int], object], server_round: int) -> float:
    started = time.perf_counter()
    run(server_round)
    return round(time.perf_counter() - started, 6)  # to the microsecond


class Pixels(nn.Module):
    """A given extractor: the pixels as they are."""

    def __init__(self, *, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.latent_dim = in_channels * image_size[0] * image_size[1]
        self.scale = nn.Parameter(torch.ones(1))  # what has no weights is no network

    def forward(self, images: Tensor) -> Tensor:
        """Latents [B, D] of images [B, C, H, W]."""
        return self.scale * images.flatten(1)


class _Bare:
    """Rounds by hand: no Flower, no messages, no checks.

    Attributes:
        weights: What the server has for all alike.
    """

    def __init__(self, config: Config) -> None:
        clients = config.data.num_clients
        self.devices = [device_at(config, clients, i) for i in range(clients)]
        self.settings, data = config.baseline, self.devices[0].data
        system: Baseline = found(BASELINES[config.run.system].system)
        given = config.extractor.is_given
        latent_dim = math.prod(data.image_shape) if given else 0
        network = system.network(config, data.image_shape, data.num_classes, latent_dim=latent_dim)
        self.seen = [_latents(device) if given else None for device in self.devices]
        self.pool: dict[int, Heads] = {}  # pFedMoAP's
        self.attention: dict[int, nn.Module] = {}
        self.network = network.to(memory_format=torch.channels_last)
        self.gates = [_gate(self.network) for _ in range(clients)]
        start = {name: value.clone() for name, value in self.network.state_dict().items()}
        own = config.run.system == "fedmoe-da"  # experts are each client's, the server mixes them
        self.weights = {
            name: value
            for name, value in start.items()
            if system.travels(name) and not (own and name.startswith("expert."))
        }
        private = {name: value for name, value in start.items() if name not in self.weights}
        self._home = [dict(private) for _ in range(clients)]
        self.beside = [copy.deepcopy(self.network) for _ in range(clients)]  # Ditto's own
        self._neighbours = config.baseline.neighbours if own else -1
        self._mixing: np.ndarray = np.zeros((0, 0))
        experts = len(self.network.expert)
        self.mixture = [torch.full((experts,), 1 / experts) for _ in range(clients)]
        self._client = SYSTEMS[config.run.system]

    def round(self, server_round: int) -> None:
        """All clients, then the weighted mean."""
        total: dict[str, Tensor] = {}
        weight: dict[str, float] = {}
        rows: list[np.ndarray] = []
        self._heads: dict[int, Heads] = {}
        for client, device in enumerate(self.devices):
            self.network.load_state_dict(self.weights | self._home[client])
            masses = self._client(self, client, server_round)
            if self._neighbours >= 0:
                gate = self.network.gate.values()
                rows += [
                    row.get_parameter("weight").detach().numpy().ravel().copy() for row in gate
                ]
            for name, value in self.network.state_dict().items():
                if name not in self.weights:
                    self._home[client][name] = value.clone()
                    continue
                expert = expert_of(name)
                mass = float(len(device.train_labels))
                if masses is not None and expert is not None:
                    mass = float(masses[expert])
                total[name] = total.get(name, torch.zeros(())) + mass * value
                weight[name] = weight.get(name, 0.0) + mass
            if self.seen[client] is not None:
                head = self.network.expert["0"].state_dict()
                self._heads[client] = {name: value.clone() for name, value in head.items()}
        self.weights = {name: value / weight[name] for name, value in total.items()}
        self.pool = {**self.pool, **self._heads}
        if rows:
            self._mix(np.stack(rows), server_round)

    def held(self, client: int) -> dict[str, Tensor]:
        """All that a client goes on with."""
        return self.weights | self._home[client]

    def _mix(self, rows: np.ndarray, server_round: int) -> None:
        """Experts of all clients, mixed by how alike their router rows are."""
        if server_round % 5 == 1:
            self._mixing = mixing_weights(rows, self._neighbours)
        names = sorted(name for name in self._home[0] if name.startswith("expert.0."))
        count = len(self.network.expert)
        for name in names:
            rest = name.split(".", 2)[2]
            every = torch.stack(
                [home[f"expert.{k}.{rest}"] for home in self._home for k in range(count)]
            )
            mixed = torch.from_numpy(self._mixing).float() @ every.flatten(1)
            for place, value in enumerate(mixed.view_as(every)):
                self._home[place // count][f"expert.{place % count}.{rest}"] = value.clone()

    def steps(
        self,
        client: int,
        server_round: int,
        parameters: Sequence[nn.Parameter],
        loss: Callable[[Tensor, Tensor, np.ndarray], Tensor],
        *,
        purpose: str = "",
        part: slice = slice(None),
        noise: Sequence[str] = (),
    ) -> None:
        """SGD on augmented images, for a part of the round's steps."""
        device, settings = self.devices[client], self.settings
        first, last, _ = part.indices(settings.local_steps)
        decayed = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others},
        ]
        optimizer = torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
        seen = self.seen[client]
        drawn = generator(device.seed("baseline-augment", purpose, server_round, *noise))
        labels = torch.from_numpy(device.train_labels)
        self.network.train()
        for chosen in batch_indices(
            len(labels),
            settings.batch_size,
            first=(server_round - 1) * settings.local_steps + first,
            count=last - first,
            seed=device.seed("baseline-batches", purpose),
        ):
            if seen is None:
                images = device.augment(normalise(device.train_images[chosen]), drawn)
            else:
                images = seen[chosen]
            optimizer.zero_grad()
            with autocast(device.bf16 and seen is None, device.torch_device):
                value = loss(images, labels[chosen], chosen)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.network.eval()

    @torch.inference_mode()
    def outputs(self, client: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, logits of all experts and labels of a client's training images."""
        device, parts = self.devices[client], []
        for start in range(0, len(device.train_labels), 512):
            parts.append(self.network.both(normalise(device.train_images[start : start + 512])))
        latents, logits = (torch.cat(part).float() for part in zip(*parts, strict=True))
        return latents, logits, torch.from_numpy(device.train_labels)


def _latents(device: Device) -> Tensor:
    """What members read of a given extractor: centred, and of one length."""
    pixels = normalise(device.train_images).flatten(1)
    return 8 * F.normalize(pixels - pixels.mean(dim=1, keepdim=True), dim=1)


def _gate(network: ExpertNetwork) -> nn.Linear:
    gate = nn.Linear(network.latent_dim, len(network.expert))
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    return gate


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    count = logits.shape[1]
    wide = labels[:, None].expand(-1, count).reshape(-1)
    return F.cross_entropy(logits.flatten(0, 1), wide, reduction="none").view(-1, count)


def _fedavg(bare: _Bare, client: int, server_round: int) -> None:
    network = bare.network

    def loss(images: Tensor, labels: Tensor, _: np.ndarray) -> Tensor:
        return F.cross_entropy(network(images)[:, 0].float(), labels)

    bare.steps(client, server_round, list(network.parameters()), loss)


def _fedprox(bare: _Bare, client: int, server_round: int) -> None:
    network, pull = bare.network, bare.settings.proximal
    received = [p.detach().clone() for p in network.parameters()]

    def loss(images: Tensor, labels: Tensor, _: np.ndarray) -> Tensor:
        return F.cross_entropy(network(images)[:, 0].float(), labels) + _pull(
            network, received, pull
        )

    bare.steps(client, server_round, list(network.parameters()), loss)


def _ditto(bare: _Bare, client: int, server_round: int) -> None:
    own, pull = bare.beside[client], bare.settings.proximal
    received = [p.detach().clone() for p in bare.network.parameters()]
    _fedavg(bare, client, server_round)

    def loss(images: Tensor, labels: Tensor, _: np.ndarray) -> Tensor:
        return F.cross_entropy(own(images)[:, 0].float(), labels) + _pull(own, received, pull)

    own.train()
    bare.steps(client, server_round, list(own.parameters()), loss, purpose="personal")


def _pull(network: nn.Module, received: Sequence[Tensor], pull: float) -> Tensor:
    parts = [
        (p - old).square().sum() for p, old in zip(network.parameters(), received, strict=True)
    ]
    return pull / 2 * torch.stack(parts).sum()


def _fedrep(bare: _Bare, client: int, server_round: int) -> None:
    network = bare.network
    head = (bare.settings.local_steps + 1) // 2

    def loss(images: Tensor, labels: Tensor, _: np.ndarray) -> Tensor:
        return F.cross_entropy(network(images)[:, 0].float(), labels)

    for learners, still, part, noise in (
        (network.expert, network.trunk, slice(head), ()),
        (network.trunk, network.expert, slice(head, None), ("trunk",)),
    ):
        still.requires_grad_(False)
        bare.steps(client, server_round, list(learners.parameters()), loss, part=part, noise=noise)
        still.requires_grad_(True)


def _pfedmoe(bare: _Bare, client: int, server_round: int) -> None:
    network = bare.network
    gate, own = network.get_submodule("weigh"), network.get_submodule("own")

    def loss(images: Tensor, labels: Tensor, _: np.ndarray) -> Tensor:
        parts = gate(images).float().softmax(dim=1)
        latents = parts[:, :1] * network.trunk(images).float() + parts[:, 1:] * own(images).float()
        return F.cross_entropy(network.expert["0"](latents).float(), labels)

    bare.steps(client, server_round, list(network.parameters()), loss)
    with torch.inference_mode():
        images = normalise(bare.devices[client].train_images)
        _ = gate(images).softmax(dim=1)[:, 0].mean()  # how far the shared part counts


def _fedem(bare: _Bare, client: int, server_round: int) -> None:
    network = bare.network
    _, logits, labels = bare.outputs(client)
    parts = (bare.mixture[client].log() - _losses(logits, labels)).softmax(dim=1).clone()
    bare.mixture[client] = parts.mean(dim=0)

    def loss(images: Tensor, labels: Tensor, chosen: np.ndarray) -> Tensor:
        losses = _losses(network(images).float(), labels)
        value: Tensor = (parts[chosen] * losses).sum(dim=1).mean()
        return value

    bare.steps(client, server_round, list(network.parameters()), loss)


def _fedmix(bare: _Bare, client: int, server_round: int) -> Tensor:
    network, gate = bare.network, bare.gates[client]
    latents, logits, labels = bare.outputs(client)
    with torch.no_grad():
        prior = gate(latents.clone()).log_softmax(dim=1)
        parts = (prior - _losses(logits.clone(), labels)).softmax(dim=1)

    def loss(images: Tensor, labels: Tensor, chosen: np.ndarray) -> Tensor:
        latents, logits = network.both(images)
        losses = _losses(logits.float(), labels) - gate(latents.float()).log_softmax(dim=1)
        value: Tensor = (parts[chosen] * losses).sum(dim=1).mean()
        return value

    bare.steps(client, server_round, [*network.parameters(), *gate.parameters()], loss)
    masses: Tensor = parts.sum(dim=0)
    return masses


def _mixed_steps(bare: _Bare, client: int, server_round: int, *, detached: bool = False) -> None:
    """Train trunk, experts and router on mixed logits; ``detached``: the router, not the trunk."""
    network = bare.network

    def loss(images: Tensor, labels: Tensor, _: np.ndarray) -> Tensor:
        latents, logits = network.both(images)
        seen = latents.detach() if detached else latents
        weights = network.scores(seen.float()).softmax(dim=1)
        return F.cross_entropy((weights[:, :, None] * logits.float()).sum(dim=1), labels)

    bare.steps(client, server_round, list(network.parameters()), loss)


def _mixture(bare: _Bare, client: int, server_round: int) -> Tensor:
    """The usage of experts after training the mixture."""
    network = bare.network
    _mixed_steps(bare, client, server_round)
    latents, logits, labels = bare.outputs(client)
    with torch.inference_mode():
        weights = network.scores(latents).softmax(dim=1)
        right = (logits.argmax(dim=2) == labels[:, None]).float()
        masses = weights.sum(dim=0)
        _ = (weights * right).sum(dim=0) / masses  # the accuracies
        return masses


def _fedmoe(bare: _Bare, client: int, server_round: int) -> None:
    _mixture(bare, client, server_round)


def _fedjets(bare: _Bare, client: int, server_round: int) -> None:
    network = bare.network
    _mixed_steps(bare, client, server_round, detached=True)
    with torch.inference_mode():
        images = normalise(bare.devices[client].train_images)
        _ = network.scores(network.trunk(images)).softmax(dim=1).mean(dim=0)


def _fedmoe_da(bare: _Bare, client: int, server_round: int) -> None:
    _mixed_steps(bare, client, server_round)


def _pfedmoap(bare: _Bare, client: int, server_round: int) -> None:
    head, device = bare.network.expert["0"], bare.devices[client]
    (weight,) = (p for p in head.parameters() if p.ndim > 1)
    others = [bare.pool[other] for other in sorted(bare.pool) if other != client]
    if client in bare.pool:
        others.sort(key=lambda other: _apart(bare.pool[client], other))
    peers = [_rows(other) for other in others[: bare.settings.experts - 1]]
    if client not in bare.pool or not peers:

        def alone(latents: Tensor, labels: Tensor, _: np.ndarray) -> Tensor:
            return F.cross_entropy(head(latents), labels)

        bare.steps(client, server_round, list(head.parameters()), alone)
        return
    if client not in bare.attention:
        with seeded(device.seed("pfedmoap-gate")):
            bare.attention[client] = RowAttention(
                weight.shape[1], features=128, parts=8, scale=10.0, dropout=0.1
            )
    gate = bare.attention[client].train()
    weights, biases = (torch.stack(part) for part in zip(*peers, strict=True))

    def loss(latents: Tensor, labels: Tensor, _: np.ndarray) -> Tensor:
        own = head(latents)
        said = torch.einsum("bd,kcd->bkc", latents, weights) + biases
        logits = torch.cat([own[:, None], said], dim=1)
        share = gate(latents, torch.cat([weight[None], weights]))
        return F.cross_entropy((share * logits.transpose(1, 2)).sum(dim=2) + own / 2, labels)

    with seeded(device.seed("pfedmoap-dropout", server_round)):
        bare.steps(client, server_round, [*head.parameters(), *gate.parameters()], loss)


def _apart(one: Heads, other: Heads) -> float:
    return float(sum((one[name] - other[name]).square().sum() for name in one))


def _rows(head: Heads) -> tuple[Tensor, Tensor]:
    """The matrix of a head, and its bias."""
    matrix, bias = sorted(head.values(), key=lambda value: -value.ndim)
    return matrix, bias


SYSTEMS: dict[str, Callable[[_Bare, int, int], Tensor | None]] = {
    "fedavg": _fedavg,
    "fedprox": _fedprox,
    "ditto": _ditto,
    "fedper": _fedavg,
    "fedrep": _fedrep,
    "pfl-moe": _fedavg,
    "fedem": _fedem,
    "fedmix": _fedmix,
    "fedmoe": _fedmoe,
    "flex-moe": _mixture,
    "fedjets": _fedjets,
    "fedmoe-da": _fedmoe_da,
    "pfedmoe": _pfedmoe,
    "pfedmoap": _pfedmoap,
}
"""By system: a client's part of a round by hand, which gives the masses of its experts if any."""


def _flower(config: Config, grid: InProcessGrid) -> Callable[[int], dict[str, np.ndarray]]:
    """A round of the strategy and the real client; gives the weights."""
    system: Baseline = found(BASELINES[config.run.system].system)
    strategy = system.strategy(config, action=Action.BASELINE)
    return rounds_of(strategy, grid, Action.BASELINE_INITIAL)


def _config(args: argparse.Namespace, system: str, folder: str) -> Config:
    given = {
        "extractor.method": "pretrained",
        "extractor.backbone": f"{__spec__.name if __spec__ else __name__}:Pixels",
    }
    return Config.parse(
        {
            "data.dataset": args.dataset,
            "data.num-clients": args.clients,
            "data.train-per-client": args.images,
            "extractor.backbone": args.backbone,
            "baseline.experts": args.experts,
            "baseline.held": args.experts,
            "baseline.anchors": False,
            "baseline.local-steps": args.steps,
            "run.system": system,
            "run.seed": args.seed,
            "run.out": folder,
            **(given if BASELINES[system].needs_given else {}),
        }
    )


def _known(name: str) -> str:
    if name not in SYSTEMS:
        raise argparse.ArgumentTypeError(f"{name!r} is unknown; allowed: {', '.join(SYSTEMS)}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.systems",
        description="Seconds of a round of published systems, as multiples of a bare loop.",
    )
    parser.add_argument(
        "systems",
        nargs="*",
        type=_known,
        metavar="SYSTEM",
        help=f"{', '.join(SYSTEMS)} (all)",
    )
    parser.add_argument("--dataset", default="digits", help="digits, a hub name, or a folder")
    parser.add_argument("--backbone", default="digits", help="extractor.backbone (digits)")
    parser.add_argument("--clients", type=Whole(2, 10_000), default=4, help="(4)")
    parser.add_argument("--images", type=Whole(1), default=160, help="of a client (160)")
    parser.add_argument("--experts", type=Whole(1, 1024), default=3, help="(3)")
    parser.add_argument("--steps", type=Whole(1), default=10, help="per round and client (10)")
    parser.add_argument(
        "--rounds", type=Whole(1), default=8, help="measured rounds of a launch of each (8)"
    )
    parser.add_argument(
        "--launches", type=Whole(1), default=4, help="fresh workers, one after the other (4)"
    )
    parser.add_argument("--workers", type=Whole(0, 1), default=1, help="0: in this process (1)")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--json", type=OutputFile(), metavar="FILE", help="write all figures there")
    return parser


if __name__ == "__main__":
    start_as_workers()
    sys.exit(told(main))
