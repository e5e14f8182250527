"""The mixture of the alignment system as one client sees it: the network, its latents, its gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from nmoe_flower import records
from nmoe_flower.catalogue import ALIGNMENT_GATES, TESTS
from nmoe_flower.clients.device.device import Device, initial_seed
from nmoe_flower.clients.device.latents import predict
from nmoe_flower.clients.device.store import Versions
from nmoe_flower.config import Config
from nmoe_flower.data import Portion
from nmoe_flower.models import (
    AlignmentMixture,
    Expert,
    Extractor,
    FilterBank,
    Gate,
    configured_extractor,
)
from nmoe_flower.seeds import numpy_stream
from nmoe_flower.training import generator, seeded, sgd

__all__ = ["AlignmentClient", "experts_of", "fresh_body", "fresh_mixture"]

# Names in the client's store; those of older versions, so that their runs go on.
KEPT_LATENTS = "aligned-latents"
KEPT_EXTRACTOR = "aligned-extractor"
KEPT_GATE = "aligned-gate"
PARTS = ("train", *TESTS)


def experts_of(config: Config) -> int:
    """How many experts the mixture has."""
    return config.alignment.experts or config.data.num_clients


def fresh_mixture(
    config: Config, image_shape: tuple[int, int, int], num_classes: int
) -> AlignmentMixture:
    """The mixture at its initial weights: the same for a seed, wherever it is built."""
    with seeded(initial_seed(config, "aligned")):
        body = fresh_body(config, image_shape)
        count = experts_of(config)
        experts = [
            Expert(body.latent_dim, num_classes, hidden=config.expert.hidden) for _ in range(count)
        ]
        gate = Gate(body.latent_dim, count, hidden=config.gate.hidden)
    network = AlignmentMixture(body, gate, experts)
    return network.to(memory_format=torch.channels_last).eval()


def fresh_body(config: Config, image_shape: tuple[int, int, int]) -> Extractor:
    """The mixture's extractor at its initial weights.

    Raises:
        ConfigError: An option of it does not fit the images.
    """
    alignment = config.alignment
    if alignment.extractor != "filters":
        return configured_extractor(config, image_shape)
    return FilterBank(
        alignment.filters,
        generator=generator(initial_seed(config, "aligned")),
        in_channels=image_shape[0],
        image_size=(image_shape[1], image_shape[2]),
        size=alignment.filter_size,
        stride=alignment.filter_stride,
    )


@lru_cache(maxsize=4)
def _shared_mixture(
    config: Config, image_shape: tuple[int, int, int], num_classes: int, device: torch.device
) -> AlignmentMixture:
    return fresh_mixture(config, image_shape, num_classes).to(device)


@dataclass(frozen=True)
class AlignmentClient:
    """A device, and the mixture it trains parts of; one network per process, loaded anew."""

    device: Device

    @cached_property
    def network(self) -> AlignmentMixture:
        """The mixture, with the weights that were loaded last."""
        device = self.device
        return _shared_mixture(
            device.config, device.data.image_shape, device.data.num_classes, device.torch_device
        )

    @property
    def is_trained(self) -> bool:
        """Whether the extractor is trained too; otherwise it never travels."""
        return self.device.config.alignment.extractor == "trained"

    def travelling(self) -> dict[str, Tensor]:
        """The state that the server holds: without an extractor that all know anyway."""
        return {
            name: tensor
            for name, tensor in self.network.state_dict().items()
            if self.is_trained or not name.startswith("extractor.")
        }

    @cached_property
    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions among the client's training images: to train on, and held out for feedback."""
        size = len(self.device.indices.train)
        order = numpy_stream(self.device.seed("aligned-holdout")).permutation(size)
        count = min(max(1, round(self.device.config.alignment.holdout * size)), size - 1)
        return np.sort(order[count:]), np.sort(order[:count])

    def latents(self, part: str) -> Tensor:
        """Latents [n, D] of ``train`` images, or those of a test, under a fixed extractor.

        They are computed once and kept at the client.
        """
        name = f"{KEPT_LATENTS}-{part}"
        store = self.device.store
        if not store.has(name):
            store.save(name, {"latents": self.extracted(part).numpy().astype(np.float16)})
        return self.device.kept(name, "latents")

    def keep_extractor(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep an extractor that was trained before; latents of another one are forgotten."""
        store = self.device.store
        if store.has(KEPT_EXTRACTOR):
            old = store.load(KEPT_EXTRACTOR)
            if old.keys() == arrays.keys() and all(np.array_equal(old[n], arrays[n]) for n in old):
                return
        for part in PARTS:
            store.drop(f"{KEPT_LATENTS}-{part}")
        store.save(KEPT_EXTRACTOR, dict(arrays))

    def extracted(self, part: str) -> Tensor:
        """Latents [n, D] of images under the extractor as it is now."""
        device = self.device
        if device.config.alignment.extractor == "stage-1":
            records.load_into(
                self.network.extractor.state_dict(), device.store.load(KEPT_EXTRACTOR)
            )
        own = Portion(device.data.train, device.indices.train)
        wanted = own if part == "train" else device.tests[part]
        return predict(device, self.network.extractor, wanted.split.images, wanted.rows)

    @property
    def _gates(self) -> Versions:
        return Versions(self.device.store, KEPT_GATE)

    def load_gate(self, *, before: int) -> None:
        """Bring the client's own gate back as it was before a round; fresh if it has none."""
        rounds = [server_round for server_round in self._gates.rounds() if server_round < before]
        state = self._gates.load(max(rounds)) if rounds else None
        if state is None:
            data = self.device.data
            fresh = fresh_mixture(self.device.config, data.image_shape, data.num_classes)
            state = {n: t.numpy() for n, t in fresh.gate.state_dict().items()}
        records.load_into(self.network.gate.state_dict(), state)

    def save_gate(self, server_round: int, kept: Sequence[int]) -> None:
        """Keep the client's own gate after a round, and what runs resumed after ``kept`` need."""
        state = self.network.gate.state_dict()
        self._gates.save(server_round, {n: t.cpu().numpy() for n, t in state.items()})
        self._gates.prune(server_round, kept)

    def learners(self, held: Sequence[int]) -> nn.ModuleList:
        """What training moves: the held experts, the gate unless it is solved, the extractor."""
        parts: list[nn.Module] = [self.network.experts[str(expert)] for expert in held]
        if self.is_trained:
            parts.append(self.network.extractor)
        if self._trains_gate:
            parts.append(self.network.gate)
        return nn.ModuleList(parts)

    @property
    def _trains_gate(self) -> bool:
        return not ALIGNMENT_GATES[self.device.config.alignment.gate].solved

    def optimizer(self, learners: nn.ModuleList) -> torch.optim.SGD:
        """SGD of the learners, the gate at a rate of its own."""
        settings = self.device.config.alignment
        options = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
        rate = settings.learning_rate
        if not (self._trains_gate and settings.gate_learning_rate):
            return sgd(learners, learning_rate=rate, **options)
        found = sgd(nn.ModuleList(learners[:-1]), learning_rate=rate, **options)
        own = sgd(self.network.gate, learning_rate=settings.gate_learning_rate, **options)
        for group in own.param_groups:
            found.add_param_group(group)
        return found
