"""A client of a published system: its network, what it keeps at home, its steps and its answers."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor, nn
from torch.nn import functional as F

from nmoe_flower import records
from nmoe_flower.baselines.network import ExpertNetwork, cross_entropy
from nmoe_flower.baselines.system import Baseline
from nmoe_flower.clients.device import Device, Versions, fresh_head, predict, said_to
from nmoe_flower.config import Config
from nmoe_flower.data import Portion, normalise
from nmoe_flower.errors import ReplyError
from nmoe_flower.models import copy_of
from nmoe_flower.records import ARRAYS
from nmoe_flower.training import batch_indices, fit, generator, sgd

__all__ = ["KEPT_TRUNK", "Member"]

KEPT_TRUNK = "baseline-trunk"  # in the client's store
_LENGTH = 8.0  # of given latents: near that of a small trunk's, so that one rate suits both
BatchLoss = Callable[[Tensor, Tensor, np.ndarray], Tensor]


class Member:
    """One client in one round, or in a test.

    Args:
        device: The device it runs on.
        system: What it takes part in.
        server_round: The round; in a test the first that did not happen yet.

    Attributes:
        given: What it trains reads latents of a given extractor, not images.
        network: The shared network at its initial weights until `load`.
        resumable: A resumed run may go on after any of these rounds.
        told: What the server said with the round, or with the test.
        beside: What it was sent that is not of its network, by name.
    """

    def __init__(self, device: Device, system: Baseline, server_round: int) -> None:
        self.device, self.system, self.server_round = device, system, server_round
        self.config = device.config
        self.settings = device.config.baseline
        self.given = device.config.extractor.is_given
        self.network = self.fresh()
        self.resumable: list[int] = []
        self.told: Mapping[str, Any] = {}
        self.beside: dict[str, np.ndarray] = {}
        self._versions = Versions(device.store, f"baseline-{system.name}")

    def fresh(self) -> ExpertNetwork:
        """A network at its initial weights, the same on every client."""
        data = self.device.data
        given = self.device.extractor().latent_dim if self.given else 0
        network = copy_of(
            _first_network(
                self.system, self.config, data.image_shape, data.num_classes, given,
                self.device.torch_device,
            )
        )  # fmt: skip
        if self.config.has_stage_1:
            trained = self.device.store.load(KEPT_TRUNK)
            for body in self.system.bodies(network):
                records.load_into(body.state_dict(), trained)
        return network

    def travelling(self) -> dict[str, Tensor]:
        """The arrays of the network that leave the client."""
        state = self.network.state_dict()
        return {name: value for name, value in state.items() if self.system.travels(name)}

    def load(self, message: Message) -> None:
        """Take the received weights; what is private comes from home."""
        arrays = records.to_numpy(records.of_kind(message.content, ArrayRecord)[ARRAYS])
        mine = self.travelling()
        self.beside = {name: value for name, value in arrays.items() if name not in mine}
        records.load_into({name: mine[name] for name in arrays if name in mine}, arrays)
        private = {n: t for n, t in self.network.state_dict().items() if n not in mine}
        if private and (kept := self.kept()):
            records.load_into(private, kept)

    def kept(self) -> dict[str, np.ndarray]:
        """What this client kept in the last round before this one; empty if there was none."""
        before = [r for r in self._versions.rounds() if r < self.server_round]
        return (self._versions.load(max(before)) or {}) if before else {}

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep arrays of this round at home, and those that runs resumed before it need.

        Raises:
            ReplyError: One is not finite. The client would begin every later round with it; so its
                reply fails, and what it kept before stays.
        """
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        self.require_finite(arrays, "stays at home")
        self._versions.save(self.server_round, arrays)
        self._versions.prune(self.server_round, self.resumable)

    def require_finite(self, arrays: Mapping[str, np.ndarray], fate: str) -> None:
        """Refuse arrays that training has spoilt.

        Args:
            arrays: By name.
            fate: What becomes of each.

        Raises:
            ReplyError: One is not finite; it says what to lower.
        """
        for name, value in arrays.items():
            if not records.is_finite(value):
                raise ReplyError(
                    f"{name}, which {fate}, is not finite after training: {self.system.too_high()}"
                )

    @cached_property
    def labels(self) -> Tensor:
        """Labels of the training images, [n]."""
        return torch.from_numpy(self.device.train_labels)

    @cached_property
    def training(self) -> Portion:
        """The training images, as those of a test."""
        return Portion(self.device.data.train, self.device.indices.train)

    def predict(self, network: nn.Module, portion: Portion) -> Tensor:
        """What a network says to images without augmentation, float32 on the CPU."""
        if not self.given:
            return predict(self.device, network, portion.split.images, portion.rows)
        return said_to(self.device, network, self.latents(portion).numpy())

    def single(self, portion: Portion) -> Tensor:
        """The probabilities of expert 0, [N, C]."""
        return self.predict(self.network, portion)[:, 0].softmax(dim=1)

    def latents(self, portion: Portion) -> Tensor:
        """The latents of images under the trunk as it is, or the given one, [N, D]."""
        if self.given:
            of_training = portion.split is self.device.data.train
            rows = np.asarray(portion.rows, np.int64).tobytes()
            return _given_latents(self.device, rows, of_training=of_training)
        if self.network.whole:
            return normalise(portion.split.images[portion.rows]).flatten(1)
        return self.predict(self.network.trunk, portion)

    def outputs(self, portion: Portion) -> tuple[Tensor, Tensor]:
        """Latents [N, D] and the logits of every expert [N, K, C], without augmentation."""
        latents = self.latents(portion)
        if self.network.whole:
            return latents, self.predict(self.network, portion)
        with torch.inference_mode():
            return latents, self.network.heads(latents.to(self.device.torch_device)).float().cpu()

    def scores(self, latents: Tensor) -> Tensor:
        """What the network's gate says of each of its experts, [N, K], on latents [N, D]."""
        with torch.inference_mode():
            return self.network.scores(latents.to(self.device.torch_device)).float().cpu()

    def by_expert(self, values: Tensor) -> list[float]:
        """Numbers of the experts held, [K], as numbers of all E experts: 0 for the others."""
        found = [0.0] * self.system.experts(self.config)
        for expert, value in zip(self.network.held, values.tolist(), strict=True):
            found[expert] = float(value)
        return found

    def losses(self) -> Tensor:
        """The loss of every expert on every training image, [n, K]."""
        return cross_entropy(self.predict(self.network, self.training), self.labels)

    def steps(
        self,
        learners: nn.Module,
        loss: BatchLoss | None = None,
        *,
        purpose: str = "",
        first: int | None = None,
        count: int | None = None,
        noise: str = "",
    ) -> float:
        """Take steps of SGD on augmented images; return the mean loss.

        Args:
            learners: What moves.
            loss: Loss of a batch: images, labels and which training images they are; None: the
                cross-entropy of the network's experts, in sum.
            purpose: Names the streams of batches and augmentation; the same for all systems.
            first: The first step; None: after those of all rounds before.
            count: How many; None: those of a round.
            noise: Names a stream of augmentation besides, for a second part of a round.
        """
        device, settings = self.device, self.settings
        count = settings.local_steps if count is None else count
        first = (self.server_round - 1) * settings.local_steps if first is None else first
        part = (noise,) if noise else ()
        drawn = generator(device.seed("baseline-augment", purpose, self.server_round, *part))
        labels, place = self.labels, device.torch_device

        def draw() -> Iterator[np.ndarray]:
            yield from batch_indices(
                len(labels),
                settings.batch_size,
                first=first,
                count=count,
                seed=device.seed("baseline-batches", purpose),
            )

        seen = self.latents(self.training) if self.given else None

        def batch_loss(chosen: np.ndarray) -> Tensor:
            if seen is None:
                images = device.augment(normalise(device.train_images[chosen]), drawn).to(place)
            else:
                images = seen[chosen].to(place)
            wanted = labels[chosen].to(place)
            if loss is not None:
                return loss(images, wanted, chosen)
            return cross_entropy(self.network(images), wanted).sum(dim=1).mean()

        optimizer = sgd(
            learners,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        return fit(
            learners, draw(), batch_loss, optimizer=optimizer, bf16=device.bf16 and not self.given
        ).loss

    def tune(
        self,
        learner: nn.Module,
        loss: Callable[[np.ndarray], Tensor],
        rows: np.ndarray,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        purpose: str = "tune",
    ) -> None:
        """Train something small at home for ``baseline.tuning-steps``, on rows of latents.

        Args:
            learner: What moves.
            loss: Loss on the chosen training images.
            rows: Which training images it may see.
            optimizer: None: SGD at ``baseline.tuning-learning-rate``.
            purpose: Names the stream of batches.
        """
        settings = self.settings
        batches = batch_indices(
            len(rows),
            settings.tuning_batch_size or settings.batch_size,
            first=0,
            count=settings.tuning_steps,
            seed=self.device.seed("baseline-tune", purpose),
        )
        if optimizer is None:
            optimizer = sgd(
                learner,
                learning_rate=settings.tuning_learning_rate,
                momentum=settings.tuning_momentum,
                weight_decay=settings.weight_decay,
            )
        fit(learner, (rows[batch] for batch in batches), loss, optimizer=optimizer)

    def tuned_head(self, latents: Tensor, rows: np.ndarray, *, purpose: str = "head") -> nn.Module:
        """A copy of expert 0, tuned on latents [n, D] of the training images ``rows``."""
        data = self.device.data
        head = fresh_head(self.config, latents.shape[1], data.num_classes)
        head.load_state_dict(self.network.expert["0"].state_dict())
        labels = self.labels
        self.tune(
            head,
            lambda chosen: F.cross_entropy(head(latents[chosen]), labels[chosen]),
            rows,
            purpose=purpose,
        )
        return head.eval()


@lru_cache(maxsize=128)  # a process serves many clients in turn, and latents never change
def _given_latents(device: Device, rows: bytes, *, of_training: bool) -> Tensor:
    """Latents of a given extractor, [n, D], of rows of a split in bytes of int64.

    Each is centred and scaled to one length, whatever the backbone's units are.
    """
    split = device.data.train if of_training else device.data.test
    raw = predict(device, device.extractor(), split.images, np.frombuffer(rows, np.int64))
    return _LENGTH * F.normalize(raw - raw.mean(dim=1, keepdim=True), dim=1)


@lru_cache(maxsize=4)  # to draw it takes as long as some steps
def _first_network(
    system: Baseline,
    config: Config,
    image_shape: tuple[int, int, int],
    num_classes: int,
    latent_dim: int,
    device: torch.device,
) -> ExpertNetwork:
    network = system.network(config, image_shape, num_classes, latent_dim=latent_dim)
    return network.to(device).to(memory_format=torch.channels_last).eval()
