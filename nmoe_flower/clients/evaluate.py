"""Evaluation at the client: every gate, with and without the prior correction, on all tests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from torch import Tensor, nn

from nmoe_flower import metrics, records
from nmoe_flower.clients.asking import asked_site, own_logits, router_of, site_of
from nmoe_flower.clients.control import LOCAL_CLASSIFIER, central_rows
from nmoe_flower.clients.device import Device, device_of
from nmoe_flower.models import (
    AskedExperts,
    CachedExperts,
    ExpertPool,
    NMoE,
    choose_prior,
    correct,
    em_prior,
)
from nmoe_flower.records import (
    ARRAYS,
    CENTRALIZED,
    CHOSEN,
    HEAD,
    LATENTS,
    NUM_EXAMPLES,
    POOLED_HEAD,
    RIDGE,
    ChosenKey,
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
    """Evaluate all methods; metrics are named ``<method>/<test>/<metric>``.

    With a shortlist it has routed before, and the message brings what it asked for then.
    """
    device = device_of(context)
    content = records.of_kind(message.content, ArrayRecord)
    received = records.to_numpy(content[ARRAYS])
    told = records.to_numpy(content[CHOSEN])[ChosenKey.LOGITS] if CHOSEN in content else None
    device.keep_gates(received)
    controls = str(records.config_of(message).get(ControlKey.CONTROLS, "")).split(",")
    results: dict[str, float | list[float]] = {NUM_EXAMPLES: len(device.train_labels)}
    for test in device.config.data.tests:
        labels = device.store.load(LATENTS)[f"{test}-labels"]
        for answered in _all_methods(device, received, controls, test, told):
            routed = _routed(device, answered.expert_ids)
            for suffix, probabilities in _with_prior(device, answered):
                scores = _scores(probabilities, labels) | routed
                results |= {
                    f"{answered.method}{suffix}/{test}/{name}": value
                    for name, value in scores.items()
                }
            for name, counts in _by_owner(device, test, answered.probabilities, labels).items():
                results[f"{answered.method}/{test}/{name}"] = counts
            if answered.expert_ids is not None and device.num_clients <= records.MOST_ROUTED:
                row = _routing_row(device, answered.expert_ids)
                results[f"{answered.method}/{test}/{Score.ROUTING}"] = row
    return records.reply(message, metrics=results)


def _all_methods(
    device: Device, received: Arrays, controls: list[str], test: str, told: np.ndarray | None
) -> Iterator[MethodAnswers]:
    latents = torch.from_numpy(np.array(device.store.load(LATENTS)[test]))
    if device.config.expert.sharing == "none":
        yield _own_expert(device, latents)
    else:
        yield from _mixtures(device, received, test, latents, told)
    yield from _controls(device, received, controls, test, latents)


def _mixtures(
    device: Device, received: Arrays, test: str, latents: Tensor, told: np.ndarray | None
) -> Iterator[MethodAnswers]:
    pool: ExpertPool
    if told is None:
        site = site_of(device, received, test)
        assert site.answers is not None
        pool = CachedExperts(site.answers)
    else:
        site = asked_site(device, test, told)
        assert site.answers is not None
        assert site.asked is not None
        pool = AskedExperts(site.asked, site.answers)
    for method in device.config.gate.methods:
        router = router_of(device, method, received, site, test, routed=told is not None)
        mixture = NMoE(nn.Identity(), router, pool)
        noise = generator(device.seed("evaluate", method, test))
        with torch.inference_mode():
            prediction = mixture.mixture(latents, generator=noise)
        ids = prediction.routing.expert_ids.numpy()
        yield MethodAnswers(method, prediction.probabilities, ids)


def _own_expert(device: Device, latents: Tensor) -> MethodAnswers:
    probabilities = own_logits(device, latents).softmax(dim=1)
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
                probabilities = classifier(latents).softmax(dim=1)
            yield MethodAnswers(f"control:{name}", probabilities, None)
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
