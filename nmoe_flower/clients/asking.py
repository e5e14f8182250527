"""Whom a client's gates send its tests to, and what it has been told by them.

Where a client has asked every expert about everything, gates choose among the answers. With a
shortlist they choose first: `choose_experts` tells which latents go to whom, and the evaluation
reads what came back. The choices, and so the results of a gate, are the same either way.
"""

from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Generator, Tensor

from nmoe_flower import records
from nmoe_flower.catalogue import GATES, found
from nmoe_flower.clients.device import Device, device_of
from nmoe_flower.errors import ReplyError
from nmoe_flower.models import GateSite, Router, Routing, own_gate, trained_gate, with_home_bias
from nmoe_flower.own_code import is_own
from nmoe_flower.records import (
    ANSWERS,
    ARRAYS,
    CHOSEN,
    EXPERT,
    GATE,
    HOLDOUT,
    LATENTS,
    NUM_EXAMPLES,
    PROTOTYPES,
    ChosenKey,
    ShortlistKey,
)
from nmoe_flower.training import generator

__all__ = ["asked_site", "choose_experts", "own_logits", "router_of", "site_of"]

Arrays = Mapping[str, np.ndarray]
ROUTING = "chosen-experts"  # whom every gate chose, in the client's store
PAIRS = "chosen-pairs"  # whom that leaves to ask, beside it


def choose_experts(message: Message, context: Context) -> Message:
    """Route every test by every gate; tell the latents that leave, and to whom they go."""
    device = device_of(context)
    received = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
    device.keep_gates(received)
    chosen: dict[str, np.ndarray] = {}
    pairs: dict[str, np.ndarray] = {}
    latents, rows, experts, sent = [], [], [], 0
    for test in device.config.data.tests:
        inputs = np.asarray(device.store.load(LATENTS)[test])
        routings = _routings(device, received, test, torch.from_numpy(np.array(inputs)))
        for method, routing in routings.items():
            chosen[f"{test}/{method}/ids"] = routing.expert_ids.numpy()
            chosen[f"{test}/{method}/weights"] = routing.weights.numpy()
        where, whom = _to_ask(device, len(inputs), [r.expert_ids for r in routings.values()])
        pairs[f"{test}/latents"], pairs[f"{test}/ids"] = where, whom
        leaving, at = np.unique(where, return_inverse=True)
        latents.append(inputs[leaving])
        rows.append(sent + at.reshape(-1))
        experts.append(whom)
        sent += len(leaving)
    device.store.save(ROUTING, chosen)
    device.store.save(PAIRS, pairs)
    return records.reply(
        message,
        metrics={NUM_EXAMPLES: sent},
        arrays={
            CHOSEN: records.from_numpy(
                {
                    ChosenKey.LATENTS: np.concatenate(latents),
                    ChosenKey.ROWS: np.concatenate(rows),
                    ChosenKey.EXPERTS: np.concatenate(experts),
                }
            )
        },
    )


def site_of(device: Device, received: Arrays, test: str) -> GateSite:
    """What gates are built from; the answers of the test are known where all experts gave any."""
    means, owners = received.get(PROTOTYPES), device.owners(test)
    answers, latents = device.store.load(ANSWERS), device.store.load(LATENTS)
    shortlist = device.shortlist()
    return GateSite(
        own_id=device.partition,
        num_experts=device.num_clients,
        settings=device.config.gate,
        prototypes=None if means is None else _tensor(means),
        answers=_tensor(answers[test]) if shortlist is None else None,
        labels=_tensor(latents[f"{test}-labels"]),
        holdout_answers=_tensor(answers[HOLDOUT]),
        holdout_labels=_tensor(latents["holdout-labels"]),
        owners=None if owners is None else torch.from_numpy(owners),
        shortlist=None if shortlist is None else _tensor(shortlist[ShortlistKey.EXPERTS]),
    )


def asked_site(device: Device, test: str, told: np.ndarray) -> GateSite:
    """The same after `choose_experts`, with all answers to the test that are known.

    Args:
        device: The client.
        test: The test.
        told: What was answered to all pairs of all tests, logits [P, C]; where nobody was asked
            anything, of any width.
    """
    known, answers = _local(device, test)
    if not len(told):
        told = np.zeros((0, answers.shape[2]), np.float32)
    pairs = device.store.load(PAIRS)
    sizes = [len(pairs[f"{name}/latents"]) for name in device.config.data.tests]
    if sum(sizes) != len(told):
        raise ReplyError(f"{sum(sizes)} pairs were asked for, and {len(told)} answers came")
    parts = np.split(told, np.cumsum(sizes)[:-1])
    logits = parts[device.config.data.tests.index(test)]
    asked, more = _table(
        len(known), pairs[f"{test}/latents"], pairs[f"{test}/ids"], _tensor(logits)
    )
    return GateSite(
        own_id=device.partition,
        num_experts=device.num_clients,
        settings=device.config.gate,
        prototypes=None,
        answers=torch.cat([answers, more], dim=1),
        labels=_tensor(device.store.load(LATENTS)[f"{test}-labels"]),
        asked=torch.cat([known, asked], dim=1),
    )


def router_of(
    device: Device, method: str, received: Arrays, site: GateSite, test: str, *, routed: bool
) -> Router:
    """A gate as it routes here; with ``routed`` it repeats what it chose in `choose_experts`."""
    if routed and not _looks(method):
        kept = device.store.load(ROUTING)
        ids, weights = (_tensor(kept[f"{test}/{method}/{part}"]) for part in ("ids", "weights"))
        return _Chosen(Routing(ids, weights))
    router = _router(device, method, received, site)
    return with_home_bias(router, site.own_id, site.settings.home_bias)


def own_logits(device: Device, latents: Tensor) -> Tensor:
    """What this client's own expert says to latents [N, D]: logits [N, C]."""
    expert = device.expert(latents.shape[1]).cpu().eval()
    records.load_into(expert.state_dict(), device.store.load(EXPERT))
    with torch.inference_mode():
        logits: Tensor = expert(latents)
    return logits


class _Chosen:
    """Routes as has been chosen before."""

    def __init__(self, routing: Routing) -> None:
        self.routing = routing

    def route(self, latents: Tensor, *, generator: Generator | None = None) -> Routing:
        """The choice for all N latents of the test, in order."""
        return self.routing


def _looks(method: str) -> bool:
    """Whether a gate chooses only when all answers are there."""
    return method in GATES and GATES[method].answers


def _routings(device: Device, received: Arrays, test: str, latents: Tensor) -> dict[str, Routing]:
    site = site_of(device, received, test)
    found = {}
    for method in device.config.gate.methods:
        if not _looks(method):
            router = router_of(device, method, received, site, test, routed=False)
            noise = generator(device.seed("evaluate", method, test))
            with torch.inference_mode():
                found[method] = router.route(latents, generator=noise)
    return found


def _router(device: Device, method: str, received: Arrays, site: GateSite) -> Router:
    latent_dim = device.store.load(LATENTS)["train"].shape[1]
    if is_own(method):
        return own_gate(
            method,
            own_id=site.own_id,
            num_experts=site.num_experts,
            latent_dim=latent_dim,
            top_k=site.settings.top_k,
        )
    if router := GATES[method].router:
        built: Router = found(router).at(site)
        return built
    state = records.part_of(received, f"{GATE}/{method}/")
    if not state:
        raise ReplyError(f"the weights of the gate {method!r} did not come with the message")
    gate = trained_gate(device.config, latent_dim, state, num_experts=device.num_clients).eval()
    records.load_into(gate.state_dict(), state)
    return gate


def _to_ask(device: Device, count: int, chosen: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a latent and an expert whose answer is not known here, in order, each once."""
    ids = torch.cat(chosen, dim=1).numpy() if chosen else np.empty((count, 0), np.int64)
    codes = np.unique(np.arange(count)[:, None] * device.num_clients + ids)
    rows, experts = np.divmod(codes, device.num_clients)
    foreign = ~np.isin(experts, _known(device))
    return rows[foreign], experts[foreign]


def _known(device: Device) -> np.ndarray:
    """The experts that a client can run itself: its own, or all on its list."""
    shortlist = device.shortlist()
    assert shortlist is not None
    listed = shortlist[ShortlistKey.EXPERTS]
    return listed if device.config.expert.sharing == "weights" else listed[:1]


def _local(device: Device, test: str) -> tuple[Tensor, Tensor]:
    """The answers of those: ids [N, M] and logits [N, M, C]."""
    latents, ids = _tensor(device.store.load(LATENTS)[test]), _tensor(_known(device))
    if device.config.expert.sharing == "weights":
        logits = _tensor(device.store.load(ANSWERS)[test])
    else:
        logits = own_logits(device, latents)[:, None]
    return ids.expand(len(latents), -1), logits


def _table(
    count: int, rows: np.ndarray, experts: np.ndarray, logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Pairs in order of their rows as a table: ids [N, M], -1 for none, and logits [N, M, C]."""
    sizes = np.bincount(rows, minlength=count)
    places = np.arange(len(rows)) - (np.cumsum(sizes) - sizes)[rows]
    width = int(sizes.max(initial=0))
    ids = torch.full((count, width), -1)
    table = torch.full((count, width, logits.shape[1]), torch.nan)
    ids[rows, places] = _tensor(experts)
    table[rows, places] = logits
    return ids, table


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))
