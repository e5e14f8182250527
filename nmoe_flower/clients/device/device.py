"""One client's view of the run: its configuration, its images, its store, its networks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Context

from nmoe_flower.catalogue import BACKBONES, GIVEN, LANGUAGE_MODELS, VALIDATION
from nmoe_flower.clients.device.store import Store
from nmoe_flower.config import Config, DataConfig
from nmoe_flower.data import (
    Augment,
    ClientIndices,
    FeatureViews,
    ImageData,
    Portion,
    Views,
    clients_of,
    configured_images,
    configured_partition,
    own_images,
    own_share,
    with_features,
)
from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.models import (
    Classifier,
    Contrastive,
    Expert,
    Extractor,
    Gate,
    MetricLearner,
    Projector,
    configured_extractor,
    configured_gate,
    embedding_dim,
    finished_extractor,
    normalised_latents,
)
from nmoe_flower.privacy import ClippedCorrelation, GaussianMechanism, noise_multiplier_for
from nmoe_flower.records import GATE, LATENTS, NUM_PARTITIONS, PARTITION_ID, SHORTLIST, part_of
from nmoe_flower.seeds import derive_seed
from nmoe_flower.training import log_prior, seeded, use_bf16

__all__ = [
    "Device",
    "device_of",
    "finished_head",
    "fresh_classifier",
    "fresh_contrastive",
    "fresh_head",
    "initial_seed",
]

_TOLD = ("data-path", "classes", "store", "extractor-weights")
CLIP = 1.0  # features are projected into the unit ball
Shape = tuple[int, int, int]  # channels, height, width of an image


def initial_seed(config: Config, part: str) -> int:
    """The seed of a part's initial weights; no client's id is in it."""
    return derive_seed(config.run.seed, "initial", part)


def fresh_head(config: Config, latent_dim: int, num_classes: int) -> Expert:
    """A head of stage 1: linear, or shaped as an expert (``extractor.head``)."""
    hidden = config.expert.hidden if config.extractor.head == "expert" else ()
    return Expert(latent_dim, num_classes, hidden=hidden)


def finished_head(config: Config, latent_dim: int, num_classes: int) -> Expert:
    """A head as the stage head leaves it: linear if it is solved from sums, else as in stage 1."""
    if config.head.method == "sums":
        return Expert(latent_dim, num_classes, hidden=())
    return fresh_head(config, latent_dim, num_classes)


def fresh_classifier(
    config: Config,
    image_shape: Shape,
    num_classes: int,
    device: torch.device,
    *,
    finished: bool = False,
) -> Classifier:
    """FedCE's network at its initial weights; ``finished``: as the stage head leaves it."""
    with seeded(initial_seed(config, "extractor")):
        build, make = (
            (finished_extractor, finished_head) if finished else (configured_extractor, fresh_head)
        )
        body = build(config, image_shape)
        head = make(config, body.latent_dim, num_classes)
    network = Classifier(body, head).to(device)
    return network.to(memory_format=torch.channels_last).eval()


def fresh_contrastive(config: Config, image_shape: Shape, device: torch.device) -> Contrastive:
    """FedSC's network at its initial weights."""
    contrast = config.contrast
    with seeded(initial_seed(config, "extractor")):
        body = configured_extractor(config, image_shape)
        projector = Projector(
            body.latent_dim, contrast.dim, hidden=contrast.hidden, norm=contrast.projector_norm
        )
    network = Contrastive(body, projector).to(device)
    return network.to(memory_format=torch.channels_last).eval()


# A process serves many clients in turn. Building a network costs more than loading weights into it,
# so these are built once and hold the weights that were loaded last.
_shared_classifier = lru_cache(maxsize=4)(fresh_classifier)
_shared_contrastive = lru_cache(maxsize=4)(fresh_contrastive)


@lru_cache(maxsize=4)
def _shared_head(
    config: Config, latent_dim: int, num_classes: int, device: torch.device, linear: bool
) -> Expert:
    if linear:
        head = Expert(latent_dim, num_classes, hidden=())
    else:
        head = finished_head(config, latent_dim, num_classes)
    return head.to(device)


def _fresh_expert(
    config: Config, latent_dim: int, num_classes: int, device: torch.device
) -> Expert:
    with seeded(initial_seed(config, "expert")):
        expert = Expert(latent_dim, num_classes, hidden=config.expert.hidden)
    return expert.to(device)


def _fresh_gate(config: Config, latent_dim: int, num_experts: int, device: torch.device) -> Gate:
    with seeded(initial_seed(config, "gate")):
        gate = configured_gate(config, latent_dim, num_experts=num_experts)
    return gate.to(device)


_shared_expert = lru_cache(maxsize=4)(_fresh_expert)
_shared_gate = lru_cache(maxsize=4)(_fresh_gate)


@dataclass(frozen=True)
class _Opened:
    """Images as one device opened them; equal if another's are the same."""

    section: DataConfig
    seed: int
    fingerprint: str
    config: Config = field(compare=False)
    data: ImageData = field(compare=False)


@lru_cache(maxsize=4)
def _held_once(opened: _Opened) -> ImageData:
    """The labels of all are half a megabyte, of which every device of a process had its own."""
    return opened.data


@lru_cache(maxsize=4)
def _dealt(opened: _Opened, num_clients: int) -> list[ClientIndices]:
    """Everybody's shares, once for all devices of a process: of N devices each would hold N."""
    return configured_partition(opened.config, opened.data, num_clients=num_clients)


@dataclass(frozen=True)
class Device:
    """A client of ``num_clients``, known by its partition id.

    Attributes:
        config: The run's configuration.
        partition: The client's id, 0..num_clients-1, which is also that of its expert.
        num_clients: How many clients, and experts, there are.
        store: What the client keeps on its own disk.
        folder: Images or text of its own; empty: it takes its part of ``data.dataset``.
        classes: Names of the federation's classes, for a folder that holds only some of them; or
            what the text of each client is called.
        serves: Whether the store must hold all that the device later serves and asks with.
    """

    config: Config
    partition: int
    num_clients: int
    store: Store
    folder: str = ""
    classes: tuple[str, ...] = ()
    serves: bool = False

    @cached_property
    def data(self) -> ImageData:
        """All images; this client may only touch its own ``indices``."""
        if self.folder:
            return own_images(self.config, self.folder, classes=self.classes)
        return _held_once(self._opened(configured_images(self.config)))

    @cached_property
    def indices(self) -> ClientIndices:
        """Which training and test images are this client's."""
        if not self.folder:
            return self._partition[self.partition]
        return own_share(
            self.data,
            validation=self.config.data.validation_per_client,
            seed=self.config.run.seed,
        )

    @property
    def tests(self) -> dict[str, Portion]:
        """What this client is tested on, by test: ``config.data.tests`` says which there are."""
        test, indices = self.data.test, self.indices
        found = {
            "local": Portion(test, indices.test_local),
            "iid": Portion(test, indices.test_iid),
            VALIDATION: Portion(self.data.train, indices.validation),
        }
        return {name: found[name] for name in self.config.data.tests}

    def owners(self, test: str) -> np.ndarray | None:
        """Ids of the clients that samples of a test belong to, -1 for nobody's, int64 [n].

        None if the data does not say.
        """
        portion = self.tests[test]
        if self.folder:
            return np.full(len(portion.rows), self.partition)
        if self.config.data.scheme != "natural" or portion.split.clients is None:
            return None
        places = np.full(len(self.data.client_names), -1)
        places[clients_of(self.config, self.data)] = np.arange(self.num_clients)
        return np.asarray(places[portion.split.clients[portion.rows]])

    @property
    def everyone(self) -> list[ClientIndices]:
        """Every client's images, for what only a simulation can do: central controls and probes.

        Raises:
            DataError: This client has only its own images.
        """
        if self.folder:
            raise DataError(
                f"{self.folder} holds this device's images only, and everybody's are asked for: "
                "leave 'centralized' out of run.controls, and set contrast.probe = local"
            )
        return self._partition

    @property
    def _partition(self) -> list[ClientIndices]:
        opened = self._opened(self.data)
        if ":" in self.config.data.scheme:  # somebody's own code, which may have changed
            return _dealt.__wrapped__(opened, self.num_clients)
        return _dealt(opened, self.num_clients)

    def _opened(self, data: ImageData) -> _Opened:
        config = self.config
        return _Opened(config.data, config.run.seed, data.fingerprint, config, data)

    @cached_property
    def train_images(self) -> np.ndarray:
        """This client's training images, uint8 [n, H, W, C]."""
        return np.asarray(self.data.train.images[self.indices.train])

    @cached_property
    def train_labels(self) -> np.ndarray:
        """Labels of the training images, int64 [n]."""
        return np.asarray(self.data.train.labels[self.indices.train])

    @cached_property
    def log_prior(self) -> torch.Tensor:
        """Smoothed log class frequencies of the training labels, [C]."""
        return log_prior(self.train_labels, self.data.num_classes).to(self.torch_device)

    @cached_property
    def torch_device(self) -> torch.device:
        """Where this client computes."""
        try:
            return torch.device(self.config.run.device)
        except RuntimeError:
            raise ConfigError(f"run.device: {self.config.run.device!r} is no device") from None

    @cached_property
    def augment(self) -> Augment:
        """The augmentation of training batches; rows of features and text have none."""
        data = self.config.data
        if data.kind != "images":
            return Augment()
        return Augment(crop_padding=data.crop_padding, flip=data.flip, cutout=data.cutout)

    @cached_property
    def views(self) -> Views | FeatureViews:
        """The two views of contrastive training."""
        contrast = self.config.contrast
        if self.config.data.kind == "features":
            return FeatureViews(noise=contrast.noise, mask=contrast.mask)
        return Views(
            size=contrast.view_size,
            smallest=contrast.crop,
            flip=self.config.data.flip,
            jitter=contrast.jitter,
            hue=contrast.hue,
            grey=contrast.grey,
        )

    @property
    def mechanism(self) -> GaussianMechanism:
        """What makes this client's correlation matrices private.

        Raises:
            ConfigError: ``privacy.delta`` is not below 1 / images.
        """
        privacy, size = self.config.privacy, len(self.train_labels)
        return GaussianMechanism(
            noise_multiplier_for(
                privacy.epsilon, privacy.delta, privacy.releases, num_examples=size
            ),
            CLIP,
            size,
            adjacency=privacy.adjacency,
            secure=privacy.secure,
        )

    def empty_correlation(self) -> ClippedCorrelation:
        """Adds up this client's correlation matrix, features clipped to the unit ball."""
        return ClippedCorrelation(
            CLIP, len(self.train_labels), adjacency=self.config.privacy.adjacency
        )

    @property
    def bf16(self) -> bool:
        """Whether the extractor computes in bfloat16."""
        backbone = BACKBONES.get(self.config.extractor.backbone)
        name = self.config.extractor.backbone
        named = name.partition(":")[0] in GIVEN or name in LANGUAGE_MODELS
        worthwhile = named if backbone is None else backbone.bf16
        return use_bf16(self.config.run.precision, self.torch_device, worthwhile=worthwhile)

    def seed(self, *purpose: str | int) -> int:
        """The seed of a stream of this client's own."""
        return derive_seed(self.config.run.seed, *purpose, self.partition)

    def extractor(self) -> Extractor:
        """The extractor of stage 1, with the weights that were loaded last."""
        return self.classifier().extractor

    def classifier(self) -> Classifier:
        """The stage-1 network; one per process, with the weights that were loaded last."""
        return _shared_classifier(
            self.config, self.data.image_shape, self.data.num_classes, self.torch_device
        )

    def finished_classifier(self) -> Classifier:
        """The network as the stage head leaves it, one per process, likewise."""
        if not self.config.head.standardises:
            return self.classifier()
        return _shared_classifier(
            self.config,
            self.data.image_shape,
            self.data.num_classes,
            self.torch_device,
            finished=True,
        )

    def fresh_classifier(self, *, finished: bool = False) -> Classifier:
        """The network of stage 1, or the finished one, at weights the same on every client."""
        return fresh_classifier(
            self.config,
            self.data.image_shape,
            self.data.num_classes,
            self.torch_device,
            finished=finished,
        )

    def contrastive(self) -> Contrastive:
        """FedSC's network; one per process, with the weights that were loaded last."""
        return _shared_contrastive(self.config, self.data.image_shape, self.torch_device)

    def fresh_contrastive(self) -> Contrastive:
        """FedSC's network at its initial weights, the same on every client."""
        return fresh_contrastive(self.config, self.data.image_shape, self.torch_device)

    def head(self, latent_dim: int, *, linear: bool = False) -> Expert:
        """A head to load weights into, of one layer if ``linear``; one per process."""
        classes, place = self.data.num_classes, self.torch_device
        return _shared_head(self.config, latent_dim, classes, place, linear).to(place)

    def expert(self, latent_dim: int) -> Expert:
        """An expert to load weights into; one per process."""
        classes, place = self.data.num_classes, self.torch_device
        return _shared_expert(self.config, latent_dim, classes, place).to(place)

    def fresh_expert(self, latent_dim: int) -> Expert:
        """An expert at its initial weights, the same on every client."""
        return _fresh_expert(self.config, latent_dim, self.data.num_classes, self.torch_device)

    def gate(self, latent_dim: int, *, num_experts: int | None = None) -> Gate:
        """A gate over all experts, or over so many, to load weights into; one per process."""
        experts = self.num_clients if num_experts is None else num_experts
        return _shared_gate(self.config, latent_dim, experts, self.torch_device)

    def fresh_gate(self, latent_dim: int) -> Gate:
        """A gate over all clients' experts at its initial weights, the same on every client."""
        return _fresh_gate(self.config, latent_dim, self.num_clients, self.torch_device)

    def metric_learner(self, means: np.ndarray) -> MetricLearner:
        """What learns embeddings of experts, given the means [E, D] of their latents."""
        rows = torch.from_numpy(np.array(means, np.float32))
        learner = MetricLearner(rows, dim=embedding_dim(self.config, rows.shape[1]))
        return learner.to(self.torch_device)

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """An array where this client computes; not to write to, since it may be the array itself.

        Args:
            array: One that is read-only is copied.
        """
        return torch.from_numpy(np.require(array, requirements=["W"])).to(self.torch_device)

    def kept(self, name: str, part: str) -> torch.Tensor:
        """An array of the group ``name`` in the store, where this client computes; not to write to.

        See `Store.tensor`.
        """
        return self.store.tensor(name, part, self.torch_device)

    def kept_normal(self, part: str) -> torch.Tensor:
        """Latents [n, D] of the group LATENTS as trained gates see them; not to write to.

        Args:
            part: Name of the latents.
        """
        return self.store.tensor(LATENTS, part, self.torch_device, normalised_latents)

    def shortlist(self) -> dict[str, np.ndarray] | None:
        """The experts this client learns the gate from, as `ShortlistKey` says; None: all."""
        return self.store.load(SHORTLIST) if self.store.has(SHORTLIST) else None

    def keep_extractor(self, classifier: Mapping[str, np.ndarray]) -> None:
        """Keep the extractor of ``classifier``, and what describes this device, if it `serves`.

        A simulated client would fill the disk with copies of what the run folder holds once.
        ``nmoe bundle --store`` makes a bundle of what is kept.
        """
        if not self.serves:
            return
        self.store.save("extractor", part_of(classifier, "extractor."), sync=True)
        self.note_facts(
            classes=list(self.data.class_names),
            image_shape=list(self.data.image_shape),
            tokenizer=self.data.tokenised.tokenizer if self.data.tokenised else "",
            config=with_features(self.config, self.data).flat(),
        )

    def note_facts(self, **facts: Any) -> None:
        """Keep what describes this device.

        Args:
            facts: What there is to say beside who it is; with ``config``.
        """
        self.store.note(
            "device", {"partition": self.partition, "num_clients": self.num_clients, **facts}
        )

    def keep_gates(self, received: Mapping[str, np.ndarray]) -> None:
        """Keep every trained gate, ``gate/<method>/...``, as ``gate-<method>``, if it `serves`."""
        if not self.serves:
            return
        named = {name.split("/")[1] for name in received if name.startswith(f"{GATE}/")}
        for method in sorted(named - {"initial"}):
            self.store.save(f"{GATE}-{method}", part_of(received, f"{GATE}/{method}/"), sync=True)


def device_of(context: Context) -> Device:
    """The device a message is for; cached, so images and partitions are opened once a process.

    The node's config tells ``partition-id`` and ``num-partitions``. It may tell ``data-path``, a
    folder with this device's own images or text; ``classes``, names separated by commas;
    ``store``, a folder that outlives the run and the process; and ``extractor-weights``, where
    those of a given extractor are on this device, in place of ``extractor.weights``.

    Raises:
        ConfigError: The node has no partition id, or the run configuration is not valid.
    """
    node = context.node_config
    if PARTITION_ID not in node or NUM_PARTITIONS not in node:
        raise ConfigError(
            "this node has no partition-id and num-partitions; start it with "
            "--node-config 'partition-id=0 num-partitions=10'"
        )
    told = {key: str(node[key]) for key in _TOLD if key in node}
    return _device(
        tuple(sorted(context.run_config.items())),
        context.run_id,
        int(cast(int, node[PARTITION_ID])),
        int(cast(int, node[NUM_PARTITIONS])),
        tuple(told.get(key, "") for key in _TOLD),
    )


@lru_cache(maxsize=512)
def _device(
    run_config: tuple[tuple[str, object], ...],
    run_id: int,
    partition: int,
    num_clients: int,
    told: tuple[str, ...],
) -> Device:
    values: Mapping[str, object] = dict(run_config)
    folder, classes, store, weights = told
    own = {"extractor.weights": weights} if weights else {}
    config = Config.parse({**values, **own, "data.num-clients": num_clients})
    run = config.run.folder(run_id)
    kept = Path(store).expanduser() / run.name if store else run / "clients" / str(partition)
    return Device(
        config,
        partition,
        num_clients,
        Store(kept),
        folder=folder,
        classes=tuple(name.strip() for name in classes.split(",") if name.strip()),
        serves=bool(store),
    )
