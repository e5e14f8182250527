"""Evaluation at the client: every gate, with and without the prior correction, on all tests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from nmoe_flower import metrics, records
from nmoe_flower.catalogue import GATES, found
from nmoe_flower.clients.control import LOCAL_CLASSIFIER, central_rows
from nmoe_flower.clients.device import Device, device_of
from nmoe_flower.errors import ReplyError
from nmoe_flower.models import (
    CachedExperts,
    GateSite,
    NMoE,
    Router,
    choose_prior,
    correct,
    em_prior,
    own_gate,
    trained_gate,
    with_home_bias,
)
from nmoe_flower.own_code import is_own
from nmoe_flower.records import (
    ANSWERS,
    ARRAYS,
    CENTRALIZED,
    EXPERT,
    GATE,
    HEAD,
    HOLDOUT,
    LATENTS,
    NUM_EXAMPLES,
    POOLED_HEAD,
    PROTOTYPES,
    RIDGE,
    ControlKey,
    Score,
)
from nmoe_flower.training import generator

__all__ = ["route"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class MethodAnswers:
    """What one method answered on one test.

    Attributes:
        method: Name of the method in the results.
        probabilities: Probability of every class, [N, C].
        expert_ids: Who was asked, [N, K]; None if there is no routing.
        balanced: Whether the answers suppose equal classes, so that a prior can be put in.
    """

    method: str
    probabilities: Tensor
    expert_ids: np.ndarray | None
    balanced: bool = True


def route(message: Message, context: Context) -> Message:
    """Evaluate all methods; metrics are named ``<method>/<test>/<metric>``."""
    device = device_of(context)
    received = records.to_numpy(message.content.array_records[ARRAYS])
    device.keep_gates(received)
    controls = str(records.config_of(message).get(ControlKey.CONTROLS, "")).split(",")
    results: dict[str, float | list[float]] = {NUM_EXAMPLES: len(device.train_labels)}
    for test in device.config.data.tests:
        labels = device.store.load(LATENTS)[f"{test}-labels"]
        for answered in _all_methods(device, received, controls, test):
            routed = _routed(device, answered.expert_ids)
            for suffix, probabilities in _with_prior(device, answered):
                scores = _scores(probabilities, labels) | routed
                results |= {
                    f"{answered.method}{suffix}/{test}/{name}": value
                    for name, value in scores.items()
                }
            for name, counts in _by_owner(device, test, answered.probabilities, labels).items():
                results[f"{answered.method}/{test}/{name}"] = counts
            if answered.expert_ids is not None:
                row = _routing_row(device, answered.expert_ids)
                results[f"{answered.method}/{test}/{Score.ROUTING}"] = row
    return records.reply(message, metrics=results)


def _all_methods(
    device: Device, received: Arrays, controls: list[str], test: str
) -> Iterator[MethodAnswers]:
    latents = torch.from_numpy(np.array(device.store.load(LATENTS)[test]))
    if device.config.expert.sharing == "none":
        yield _own_expert(device, latents)
        yield from _controls(device, received, controls, test, latents)
        return
    site = _site(device, received, test)
    pool = CachedExperts(site.answers)
    for method in device.config.gate.methods:
        router = with_home_bias(
            _router(device, method, received, site), site.own_id, site.settings.home_bias
        )
        mixture = NMoE(nn.Identity(), router, pool)
        noise = generator(device.seed("evaluate", method, test))
        with torch.inference_mode():
            prediction = mixture.mixture(latents, generator=noise)
        ids = prediction.routing.expert_ids.numpy()
        yield MethodAnswers(method, prediction.probabilities, ids)
    yield from _controls(device, received, controls, test, latents)


def _site(device: Device, received: Arrays, test: str) -> GateSite:
    means, owners = received.get(PROTOTYPES), device.owners(test)
    answers, latents = device.store.load(ANSWERS), device.store.load(LATENTS)
    return GateSite(
        own_id=device.partition,
        num_experts=device.num_clients,
        settings=device.config.gate,
        prototypes=None if means is None else torch.from_numpy(np.array(means)),
        answers=torch.from_numpy(np.array(answers[test])),
        labels=torch.from_numpy(np.array(latents[f"{test}-labels"])),
        holdout_answers=torch.from_numpy(np.array(answers[HOLDOUT])),
        holdout_labels=torch.from_numpy(np.array(latents["holdout-labels"])),
        owners=None if owners is None else torch.from_numpy(owners),
    )


def _router(device: Device, method: str, received: Arrays, site: GateSite) -> Router:
    if is_own(method):
        return own_gate(
            method,
            own_id=site.own_id,
            num_experts=site.num_experts,
            latent_dim=device.store.load(LATENTS)["train"].shape[1],
            top_k=site.settings.top_k,
        )
    if router := GATES[method].router:
        built: Router = found(router).at(site)
        return built
    state = records.part_of(received, f"{GATE}/{method}/")
    if not state:
        raise ReplyError(f"the weights of the gate {method!r} did not come with the message")
    latent_dim = device.store.load(LATENTS)["train"].shape[1]
    gate = trained_gate(device.config, latent_dim, state, num_experts=device.num_clients).eval()
    records.load_into(gate.state_dict(), state)
    return gate


def _own_expert(device: Device, latents: Tensor) -> MethodAnswers:
    expert = device.expert(latents.shape[1]).cpu().eval()
    records.load_into(expert.state_dict(), device.store.load(EXPERT))
    with torch.inference_mode():
        probabilities = expert(latents).softmax(dim=1)
    return MethodAnswers("local", probabilities, np.full((len(latents), 1), device.partition))


def _controls(
    device: Device, received: Arrays, controls: list[str], test: str, latents: Tensor
) -> Iterator[MethodAnswers]:
    for name, part in (("fedavg", HEAD), ("ridge", RIDGE)):
        if head := records.part_of(received, f"{part}/"):
            linear = part == RIDGE
            classifier = device.head(latents.shape[1], linear=linear).cpu().eval()
            records.load_into(classifier.state_dict(), head)
            with torch.inference_mode():
                yield MethodAnswers(f"control:{name}", classifier(latents).softmax(dim=1), None)
    if LOCAL_CLASSIFIER in controls:
        kept = device.store.load(LOCAL_CLASSIFIER)[test]
        probabilities = torch.from_numpy(np.array(kept))
        yield MethodAnswers("control:local-classifier", probabilities, None, balanced=False)
    if central := records.part_of(received, f"{CENTRALIZED}/"):
        chosen = central_rows(device, test)
        probabilities = torch.from_numpy(central[ControlKey.PROBABILITIES][chosen])
        ids = central[ControlKey.EXPERT_IDS][chosen]
        yield MethodAnswers("control:centralized", probabilities, ids)
    if pooled := records.part_of(received, f"{POOLED_HEAD}/"):
        chosen = central_rows(device, test)
        probabilities = torch.from_numpy(pooled[ControlKey.PROBABILITIES][chosen])
        yield MethodAnswers("control:pooled-head", probabilities, None)


def _by_owner(
    device: Device, test: str, probabilities: Tensor, labels: np.ndarray
) -> dict[str, list[float]]:
    """How many samples of each client there are, and are answered rightly; of nobody's last."""
    owners = device.owners(test)
    if owners is None:
        return {}
    places = np.where(owners < 0, device.num_clients, owners)
    right = probabilities.argmax(dim=1).numpy() == labels
    return {
        Score.RIGHT_OF: np.bincount(places[right], minlength=device.num_clients + 1).tolist(),
        Score.ASKED_OF: np.bincount(places, minlength=device.num_clients + 1).tolist(),
    }


def _with_prior(device: Device, answered: MethodAnswers) -> Iterator[tuple[str, Tensor]]:
    """The answers as they are, and under the prior this client believes its test batch has."""
    probabilities, kind = answered.probabilities, device.config.gate.prior
    yield "", probabilities
    if kind == "none" or not answered.balanced:
        return
    own = device.log_prior.cpu().exp()
    if kind == "em":
        prior = em_prior(probabilities)
    else:
        prior = own if kind == "own" else choose_prior(probabilities, own).prior
    yield "+prior", correct(probabilities, prior)


def _scores(probabilities: Tensor, labels: np.ndarray) -> dict[str, float]:
    probs = probabilities.numpy()
    scores: dict[str, float] = {
        Score.ACCURACY: metrics.accuracy(probs, labels),
        Score.BALANCED_ACCURACY: metrics.balanced_accuracy(probs, labels),
        Score.MACRO_F1: metrics.macro_f1(probs, labels),
    }
    if len(np.unique(labels)) > 1:  # one class alone has no ranking
        scores[Score.AUC] = metrics.auc(probs, labels)
    return scores


def _routed(device: Device, expert_ids: np.ndarray | None) -> dict[str, float]:
    """How much stays at home, and what the rest costs on the network."""
    if expert_ids is None:
        return {}
    return {
        Score.LOCAL_RATIO: _routing_row(device, expert_ids)[device.partition],
        Score.BYTES_PER_SAMPLE: metrics.bytes_per_sample(
            expert_ids,
            np.full(len(expert_ids), device.partition),
            latent_dim=device.store.load(LATENTS)["train"].shape[1],
            num_classes=device.data.num_classes,
        ),
    }


def _routing_row(device: Device, expert_ids: np.ndarray) -> list[float]:
    """This client's row of the routing matrix: shares that go to each expert, [E]."""
    asking = np.zeros(len(expert_ids), np.int64)
    matrix = metrics.routing_matrix(expert_ids, asking, 1, num_experts=device.num_clients)
    return [float(share) for share in matrix[0]]
