"""What each published system answers, beside its formula on the same weights, written out here.

Weights, gates and what clients keep at home are drawn, so that no two parts are alike; a client
receives the one and finds the other at home, as it does in a run.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower import records
from nmoe_flower.baselines.member import Member
from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.clients.device import Device, Store
from nmoe_flower.config import Config
from nmoe_flower.data import Portion, normalise
from nmoe_flower.models.extractor import LATENT_SCALE
from nmoe_flower.records import ARRAYS, BaselineKey, FeedbackKey
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training import batch_indices, generator
from tests.pipeline.test_baselines import settings_of

Arrays = Mapping[str, Tensor]
Loss = Callable[[np.ndarray], Tensor]
HELD = [0, 2]  # of three experts, by those who hold some
PEERS, CLASSES = 2, 10
SEVERAL = [name for name, one in BASELINES.items() if one.several]


@dataclass
class Case:
    """A client in its second round, and all that it answers with.

    Attributes:
        client: It has received its part, and what it kept is at home.
        arrays: Its network: what it received, and what is private.
        home: What else it has at home.
        portion: Four images of the test.
    """

    client: Member
    arrays: dict[str, Tensor]
    home: dict[str, Tensor]
    portion: Portion

    @property
    def images(self) -> Tensor:
        return normalise(self.portion.split.images[self.portion.rows])

    @property
    def training(self) -> Tensor:
        return normalise(self.client.device.train_images)


Cases = Callable[..., Case]


def drawn(shapes: Mapping[str, Iterable[int]], seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {n: 0.7 * torch.randn(tuple(shape), generator=source) for n, shape in shapes.items()}


def at_home(system: str, shapes: Mapping[str, Iterable[int]], dim: int) -> dict[str, Tensor]:
    """What a client of a system has kept beside the private part of its network."""
    if system == "ditto":
        return drawn(shapes, 2)
    if system == "fedem":
        return {"weights": torch.tensor([0.1, 0.65, 0.25])}
    if system == "fedmix":
        return drawn({"weight": (3, dim), "bias": (3,)}, 2)
    if system == "fedmoe-da":
        return {"held": torch.tensor([0, 1, 2])}  # all are its own
    if system in ("fedmoe", "flex-moe"):
        return {"held": torch.tensor(HELD)}
    if system == "pfedmoap":
        head = {f"head.{name.removeprefix('expert.0.')}": shape for name, shape in shapes.items()}
        gate = {"gate.query.weight": (dim, dim), "gate.query.bias": (dim,),
                "gate.key.weight": (dim, dim), "gate.key.bias": (dim,)}  # fmt: skip
        peers = {"peers.weights": (PEERS, CLASSES, dim), "peers.biases": (PEERS, CLASSES)}
        return drawn({**head, **gate, **peers}, 2)
    return {}


@pytest.fixture
def case(tmp_path: Path, cache: Path) -> Cases:
    def make(system: str, changes: dict[str, Any] | None = None) -> Case:
        values = {
            **settings_of(system),
            "data.cache-dir": str(cache),
            "run.out": str(tmp_path / "runs"),
            "extractor.head": "linear",
            "expert.init": "scratch",
            "baseline.tuning-steps": 40,
            "baseline.tuning-learning-rate": 0.1,
            **(changes or {}),
        }
        device = Device(Config.parse(values), 0, 2, Store(tmp_path / "client"))
        first, client = (Member(device, found(BASELINES[system].system), r) for r in (1, 2))
        shapes = {name: value.shape for name, value in first.network.state_dict().items()}
        arrays = drawn(shapes, 6)
        home = at_home(system, shapes, first.network.latent_dim)
        private = {name: arrays[name] for name in arrays if not first.system.travels(name)}
        if kept := {**private, **home}:
            first.keep(kept)
        sent = records.pack({name: arrays[name] for name in arrays if name not in private})
        client.load(cast(Message, SimpleNamespace(content=RecordDict({ARRAYS: sent}))))
        return Case(client, arrays, home, Portion(device.data.test, np.array([3, 14, 15, 92])))

    return make


def linear(arrays: Arrays, prefix: str, rows: Tensor) -> Tensor:
    return rows @ arrays[f"{prefix}weight"].T + arrays[f"{prefix}bias"]


def body(arrays: Arrays, prefix: str, images: Tensor) -> Tensor:
    """Latents [N, D] of an extractor of one layer."""
    rows = F.gelu(linear(arrays, f"{prefix}layers.0.", images.flatten(1)))
    centred = rows - rows.mean(dim=1, keepdim=True)
    return LATENT_SCALE * centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()


def read(arrays: Arrays, images: Tensor) -> Tensor:
    """What gates read, [N, D]: latents of the trunk; the pixels, where experts are networks."""
    trunk = "trunk.layers.0.weight" in arrays
    return body(arrays, "trunk.", images) if trunk else images.flatten(1)


def expert(arrays: Arrays, which: int, images: Tensor) -> Tensor:
    """The logits of one expert, [N, C]."""
    name = f"expert.{which}."
    if "trunk.layers.0.weight" in arrays:
        return linear(arrays, f"{name}layers.0.", body(arrays, "trunk.", images))
    return linear(arrays, f"{name}head.layers.0.", body(arrays, f"{name}extractor.", images))


def rows_of_gate(arrays: Arrays, images: Tensor, experts: Iterable[int]) -> Tensor:
    """What a gate says of experts, [N, K]."""
    seen = read(arrays, images)
    return torch.cat([linear(arrays, f"gate.{k}.", seen) for k in experts], dim=1)


def single(one: Case) -> Tensor:
    return expert(one.arrays, 0, one.images).softmax(dim=1)


def taught(learner: nn.Module, batches: Iterable[np.ndarray], loss: Loss, one: Case,
           rate: float, momentum: float) -> None:  # fmt: skip
    """Steps of Nesterov's SGD, whose decay spares what has one dimension."""
    decay = one.client.settings.weight_decay
    groups = [{"params": [p], "weight_decay": decay * (p.ndim > 1)} for p in learner.parameters()]
    descend(torch.optim.SGD(groups, rate, momentum, nesterov=momentum > 0), batches, loss)


def descend(optimizer: torch.optim.Optimizer, batches: Iterable[np.ndarray], loss: Loss) -> None:
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()


def tuning(one: Case, rows: np.ndarray, purpose: str) -> list[np.ndarray]:
    """Which images each step at home sees."""
    settings, seed = one.client.settings, one.client.device.seed("baseline-tune", purpose)
    size = settings.tuning_batch_size or settings.batch_size
    batches = batch_indices(len(rows), size, first=0, count=settings.tuning_steps, seed=seed)
    return [rows[batch] for batch in batches]


def tuned_head(one: Case, rows: np.ndarray) -> nn.Linear:
    """The head received, after steps on latents of these training images."""
    latents, labels = read(one.arrays, one.training), one.client.labels
    head, settings = nn.Linear(latents.shape[1], CLASSES), one.client.settings
    head.load_state_dict({n: one.arrays[f"expert.0.layers.0.{n}"] for n in ("weight", "bias")})
    taught(head, tuning(one, rows, "head"),
           lambda batch: F.cross_entropy(head(latents[batch]), labels[batch]),
           one, settings.tuning_learning_rate, settings.tuning_momentum)  # fmt: skip
    return head


def fedavg(one: Case) -> dict[str, Tensor]:
    """Beside it a tuned head, a network of the client's own, and its most frequent class."""
    client, settings = one.client, one.client.settings
    head = tuned_head(one, np.arange(len(client.labels)))
    alone, device = client.fresh(), client.device
    noise = generator(device.seed("baseline-augment", "own", client.server_round))

    def loss(batch: np.ndarray) -> Tensor:
        images = device.augment(one.training[batch], noise)
        return F.cross_entropy(alone(images)[:, 0], client.labels[batch])

    batches = batch_indices(
        len(client.labels), settings.batch_size, first=0, count=3 * 2,  # rounds, steps of each
        seed=device.seed("baseline-batches", "own"),
    )  # fmt: skip
    taught(alone, batches, loss, one, settings.learning_rate, settings.momentum)
    most = np.eye(CLASSES, dtype=np.float32)[np.bincount(device.train_labels).argmax()]
    return {
        "fedavg": single(one),
        "fine-tuned": head(read(one.arrays, one.images)).softmax(dim=1),
        "own": alone(one.images)[:, 0].softmax(dim=1),
        "majority": torch.from_numpy(most).expand(4, -1),
    }


def ditto(one: Case) -> dict[str, Tensor]:
    """v_i, which is at home; beside it w, which came."""
    own = expert(one.home, 0, one.images).softmax(dim=1)
    return {"ditto": own, "ditto-global": single(one)}


def pfl_moe(one: Case) -> dict[str, Tensor]:
    """g global + (1 - g) private, g one sigmoid of latents, or of pixels, by Adam."""
    labels, size = one.client.labels, len(one.client.labels)
    order = numpy_stream(one.client.device.seed("baseline-parts")).permutation(size)
    own, rest = tuned_head(one, order[: size * 3 // 4]), order[size * 3 // 4 :]

    def mixed(gate: nn.Linear, seen: Tensor, images: Tensor) -> Tensor:
        part = torch.sigmoid(gate(seen))
        private = own(read(one.arrays, images)).detach()
        return part * expert(one.arrays, 0, images) + (1 - part) * private

    def answer(purpose: str, seen: Callable[[Tensor], Tensor]) -> Tensor:
        gate = nn.Linear(seen(one.images).shape[1], 1)
        gate.load_state_dict({name: 0 * value for name, value in gate.state_dict().items()})

        def loss(batch: np.ndarray) -> Tensor:
            images = one.training[batch]
            return F.cross_entropy(mixed(gate, seen(images), images), labels[batch])

        adam = torch.optim.Adam(gate.parameters(), lr=1e-3, weight_decay=5e-4)
        descend(adam, tuning(one, rest, purpose), loss)
        assert gate.weight.abs().sum() > 0
        return mixed(gate, seen(one.images), one.images).softmax(dim=1)

    return {
        "pfl-mf": answer("mf", lambda images: read(one.arrays, images)),
        "pfl-mfe": answer("mfe", lambda images: images.flatten(1)),
        "pfl-fb": own(read(one.arrays, one.images)).softmax(dim=1),
        "fedavg": single(one),
    }


def probabilities(one: Case, experts: Iterable[int] = range(3)) -> Tensor:
    """Of each of these experts, [N, K, C]."""
    said = [expert(one.arrays, k, one.images).softmax(dim=1) for k in experts]
    return torch.stack(said, dim=1)


def beside(one: Case, experts: Sequence[int] = range(3)) -> dict[str, Tensor]:
    """All alike, a drawn one, and the one that is rightest."""
    every, labels = probabilities(one, experts), one.portion.labels
    draw = generator(one.client.device.seed("baseline-random"))
    which = torch.randint(len(experts), (4,), generator=draw).tolist()
    best = [int(every[at, :, label].argmax()) for at, label in enumerate(labels)]
    return {
        "uniform": every.mean(dim=1),
        "random": torch.stack([every[at, k] for at, k in enumerate(which)]),
        "oracle": torch.stack([every[at, k] for at, k in enumerate(best)]),
    }


def fedem(one: Case) -> dict[str, Tensor]:
    """sum_k pi_k softmax_k."""
    pi = one.home["weights"]
    return {"fedem": torch.einsum("k,nkc->nc", pi, probabilities(one)), **beside(one)}


def fedmix(one: Case) -> dict[str, Tensor]:
    """sum_k p(k|x) softmax_k, p of the gate at home."""
    gate = linear(one.home, "", read(one.arrays, one.images)).softmax(dim=1)
    return {"fedmix": torch.einsum("nk,nkc->nc", gate, probabilities(one)), **beside(one)}


def fedjets(one: Case) -> dict[str, Tensor]:
    """The expert of the highest p(e|x), of all."""
    best = rows_of_gate(one.arrays, one.images, range(3)).argmax(dim=1).tolist()
    assert len(set(best)) > 1
    every = probabilities(one)
    return {"fedjets": torch.stack([every[at, k] for at, k in enumerate(best)]), **beside(one)}


def submixture(one: Case) -> dict[str, Tensor]:
    """sum_k p(k|x) logits_k, k among those held, p in sum 1 over them."""
    held = one.home["held"].tolist()
    parts = rows_of_gate(one.arrays, one.images, held).softmax(dim=1)
    logits = torch.stack([expert(one.arrays, k, one.images) for k in held], dim=1)
    mixed = torch.einsum("nk,nkc->nc", parts, logits).softmax(dim=1)
    return {one.client.system.name: mixed, **beside(one, held)}


def pfedmoe(one: Case) -> dict[str, Tensor]:
    """The header on a_1 G(x) + a_2 F(x), a = softmax of the gate on pixels."""
    pixels = one.images.flatten(1)
    scale, shift = one.arrays["weigh.1.weight"], one.arrays["weigh.1.bias"]
    normed = (pixels - pixels.mean(dim=1, keepdim=True)) / (
        pixels.var(dim=1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    hidden = torch.sigmoid(linear(one.arrays, "weigh.2.", scale * normed + shift))
    first, second = linear(one.arrays, "weigh.4.", hidden).softmax(dim=1).T[:, :, None]
    shared, own = (body(one.arrays, part, one.images) for part in ("trunk.", "own."))
    latents = first * shared + second * own
    return {"pfedmoe": linear(one.arrays, "expert.0.layers.0.", latents).softmax(dim=1)}


def pfedmoap(one: Case) -> dict[str, Tensor]:
    """sum_k a_kc(x) logit_kc(x) + 0.5 own logit_c(x): attention in two halves of 11 numbers."""
    with torch.inference_mode():
        raw = one.client.device.extractor()(one.images)
    centred = raw - raw.mean(dim=1, keepdim=True)
    latents = 8 * centred / centred.norm(dim=1, keepdim=True)  # of length 8
    weights = torch.cat([one.home["head.layers.0.weight"][None], one.home["peers.weights"]])
    biases = torch.cat([one.home["head.layers.0.bias"][None], one.home["peers.biases"]])
    logits = torch.einsum("nd,kcd->nck", latents, weights) + biases.T  # of K heads
    asked = linear(one.home, "gate.query.", latents)
    keys = linear(one.home, "gate.key.", weights)
    share = torch.zeros(4, CLASSES, 1 + PEERS)
    for part in (slice(0, 11), slice(11, 22)):
        alike = F.cosine_similarity(asked[:, None, None, part], keys[None, ..., part], dim=3)
        share += (10 * alike).softmax(dim=1).transpose(1, 2) / 2
    return {"pfedmoap": ((share * logits).sum(dim=2) + 0.5 * logits[..., 0]).softmax(dim=1)}


FORMULAS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "fedavg": fedavg,
    "fedprox": lambda one: {"fedprox": single(one)},
    "ditto": ditto,
    "fedper": lambda one: {"fedper": single(one)},  # its head was at home
    "fedrep": lambda one: {"fedrep": single(one)},
    "pfl-moe": pfl_moe,
    "fedem": fedem,
    "fedmix": fedmix,
    "fedmoe": submixture,
    "flex-moe": submixture,
    "fedjets": fedjets,
    "fedmoe-da": submixture,
    "pfedmoe": pfedmoe,
    "pfedmoap": pfedmoap,
}


@pytest.mark.parametrize(
    ("system", "size"), [*((s, "head") for s in BASELINES), *((s, "net") for s in SEVERAL)]
)
def test_every_answer_is_that_of_its_formula(case: Cases, system: str, size: str) -> None:
    one = case(system, {"baseline.size": size})
    wanted = {name: value.detach() for name, value in FORMULAS[system](one).items()}
    first, *_ = one.client.system.answers(one.client, final=False).items()
    assert tuple(wanted) == BASELINES[system].answers or (system,)
    assert first[0] == ("fedavg" if system == "pfl-moe" else system)
    near = 1e-3 if BASELINES[system].needs_given else 2e-6  # given latents are kept as float16
    answers = one.client.system.answers(one.client, final=True)
    assert answers.keys() == wanted.keys()
    for name, answer in (first, *answers.items()):
        with torch.inference_mode():
            got = answer(one.portion)
        assert (got - wanted[name]).abs().max() < near, name
    for two in combinations(wanted, 2):  # or one could stand for the other
        assert (wanted[two[0]] - wanted[two[1]]).abs().max() > 1e-3, two


def test_an_anchor_draws_the_gate_to_its_own_expert(case: Cases) -> None:
    """One step by hand: with one expert held, p is 1, and only the second term moves the gate."""
    one = case("fedjets", {"baseline.local-steps": 1, "data.crop-padding": 0})
    client, settings = one.client, one.client.settings
    (batch,) = batch_indices(
        len(client.labels), settings.batch_size, first=1, count=1,
        seed=client.device.seed("baseline-batches", ""),
    )  # fmt: skip
    latents = read(one.arrays, one.training)
    gate = nn.Linear(latents.shape[1], 3)  # its rows, as one layer
    for name, value in gate.named_parameters():
        value.data.copy_(torch.cat([one.arrays[f"gate.{k}.{name}"] for k in range(3)]))
    before = gate(latents).softmax(dim=1)[:, 1].mean()
    wanted = torch.full((len(batch),), 1)
    taught(gate, [batch], lambda rows: F.cross_entropy(gate(latents[rows]), wanted), one,
           settings.learning_rate, settings.momentum)  # fmt: skip
    client.told = {FeedbackKey.EXPERTS: [1], BaselineKey.ANCHOR: 1}
    usage = cast(list[float], client.system.train(client)[BaselineKey.USAGE])
    for k, row in enumerate(client.network.gate.values()):
        torch.testing.assert_close(row.weight[0], gate.weight[k], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(row.bias[0], gate.bias[k], atol=1e-5, rtol=1e-4)
    after = client.network.scores(read(client.network.state_dict(), one.training)).softmax(dim=1)
    assert after[:, 1].mean() > before + 1e-3
    np.testing.assert_allclose(usage, after.mean(dim=0).detach(), atol=1e-5)


def test_without_an_anchor_the_same_step_leaves_the_gate(case: Cases) -> None:
    one = case("fedjets", {"baseline.local-steps": 1, "baseline.weight-decay": 0.0})
    one.client.told = {FeedbackKey.EXPERTS: [1]}
    one.client.system.train(one.client)
    for k, row in one.client.network.gate.items():
        torch.testing.assert_close(row.get_parameter("weight"), one.arrays[f"gate.{k}.weight"])


def test_a_head_and_the_gates_over_it_are_tuned_on_different_images(
    case: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, seen, tune = case("pfl-moe"), {}, Member.tune

    def watched(self: Member, learner: nn.Module, loss: Any, rows: np.ndarray, **how: Any) -> None:
        seen[how["purpose"]] = rows
        tune(self, learner, loss, rows, **how)

    monkeypatch.setattr(Member, "tune", watched)
    one.client.system.answers(one.client, final=True)
    size = len(one.client.labels)
    assert seen.keys() == {"head", "mf", "mfe"}
    assert len(seen["head"]) == 0.75 * size
    np.testing.assert_array_equal(seen["mf"], seen["mfe"])
    assert sorted([*seen["head"], *seen["mf"]]) == list(range(size))


@pytest.mark.parametrize("system", ["fedmoe", "flex-moe"])
def test_what_the_server_is_told_of_experts_is_of_those_held(case: Cases, system: str) -> None:
    one = case(system, {"baseline.learning-rate": 1e-12})  # training moves nothing
    shares = rows_of_gate(one.arrays, one.training, HELD).softmax(dim=1).numpy()
    said = torch.stack([expert(one.arrays, k, one.training).argmax(dim=1) for k in HELD], dim=1)
    one.client.labels = torch.where(torch.arange(40) % 4 == 0, *said.T)  # each is right at some
    right = (said == one.client.labels[:, None]).numpy()
    one.client.told = {FeedbackKey.EXPERTS: HELD}
    told = one.client.system.train(one.client)
    wanted: dict[str, list[float]] = {BaselineKey.USAGE: shares.mean(axis=0)}
    if system == "flex-moe":
        weighed = (shares * right).sum(axis=0) / shares.sum(axis=0)
        wanted = {BaselineKey.MASSES: shares.sum(axis=0), BaselineKey.ACCURACIES: weighed}
        assert 0.05 < weighed.min() < weighed.max() < 0.95
    assert told.keys() == {"loss", *wanted}
    for key, of_held in wanted.items():
        np.testing.assert_allclose(told[key], [of_held[0], 0, of_held[1]], rtol=1e-4, err_msg=key)
