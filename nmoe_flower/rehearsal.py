"""What a run would stumble over later, found before anything is written or sent.

Networks are built for the shape of the data on torch's meta device, where nothing is allocated or
computed; augmentations, noise, assignments and files are made and read as clients and server would.

As a program (``python -m nmoe_flower.rehearsal``) it reads a run configuration in JSON from its
input and prints what is wrong: so a server can rehearse without loading torch itself.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmoe_flower.catalogue import BASELINES, found
from nmoe_flower.config import Config
from nmoe_flower.engine import cause_of_death
from nmoe_flower.errors import ConfigError, EngineError, NMoEError
from nmoe_flower.installation import install_hint
from nmoe_flower.own_code import is_own
from nmoe_flower.privacy import packed_size
from nmoe_flower.sums import packed_bytes

if TYPE_CHECKING:
    import torch

    from nmoe_flower.baselines import Baseline
    from nmoe_flower.clients.device import Device
    from nmoe_flower.data import ClientIndices, ImageData
    from nmoe_flower.data.text import TextData
    from nmoe_flower.models import Extractor

__all__ = ["check_files", "rehearse", "rehearse_apart", "rehearse_language"]

_BYTES_PER_PARAMETER = 4
_REHEARSAL_SECONDS = 600.0  # decoding a large data set takes minutes, and is kept
_REFUSED = 3  # how the process ends that has printed what is wrong; an exception ends it with 1
_LAST_LINES = 20


def rehearse(config: Config, data: "ImageData", clients: "Sequence[ClientIndices]") -> None:
    """Refuse what cannot work with this data, on this machine.

    Args:
        config: The run's configuration.
        data: What its clients share.
        clients: Who holds what.

    Raises:
        ConfigError: The text names the key, its value and what is allowed.
    """
    _check_device(config.run.device)
    check_files(config)
    if config.privacy.weights and importlib.util.find_spec("opacus") is None:
        raise ConfigError(f"privacy.weights = true needs Opacus: {install_hint('privacy')}")
    _check_augmentation(config, data.image_shape)
    batch = min(config.extractor.batch_size, min(len(client.train) for client in clients))
    if config.run.system in BASELINES:
        _rehearse_baseline(config, data, clients)
    if config.has_stage_1:
        like = _rehearse_networks(config, data, rows=min(batch, 2))
        if config.extractor.start:
            _check_given(config, like)
        if not config.extractor.is_given:
            _rehearse_strategy(config)
    if config.run.system == "aligned":
        _rehearse_alignment(config, data, clients)
    _rehearse_privacy(config, clients)


def rehearse_language(config: Config, data: "TextData") -> None:
    """Refuse what cannot work with this text, on this machine.

    Args:
        config: The run's configuration.
        data: What its clients hold.

    Raises:
        ConfigError: The text names the key, its value and what is allowed.
    """
    from nmoe_flower.backbone import configured_language

    _check_device(config.run.device)
    configured_language(config, data.vocab_size)


def check_files(config: Config) -> None:
    """Refuse files that are missing or malformed, of those that the server reads.

    Raises:
        ConfigError: The text names the key, the file and what is wrong.
    """
    if config.extractor.start:
        folder = Path(config.extractor.start).expanduser()
        path = folder / "weights" / "extractor.safetensors"
        if not path.is_file():
            raise ConfigError(
                f"extractor.start = {folder}: there is no {path}; allowed: the folder of a "
                "finished run"
            )
    if config.run.system == "aligned" and config.alignment.trace:
        from nmoe_flower.alignment import read_trace

        path = Path(config.alignment.trace).expanduser()
        with _under("alignment.trace"):
            read_trace(path, config.data.num_clients, seed=config.run.seed)


def rehearse_apart(config: Config) -> list[str]:
    """Rehearse in a process of its own, whose memory goes with it.

    Returns:
        What of the data goes to nobody, a line for each part; see `nmoe_flower.data.coverage`.

    Raises:
        ConfigError: As `rehearse`, or the data cannot be opened.
        EngineError: The process died or took too long; the text says of what, and its last lines.
    """
    try:
        done = subprocess.run(  # with this process's path, on which an app's own code lies
            [sys.executable, "-m", "nmoe_flower.rehearsal"],
            input=json.dumps(config.flat()),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=_REHEARSAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stderr or b""
        raise _died(
            f"not done within {_REHEARSAL_SECONDS:g} s",
            said if isinstance(said, str) else said.decode(errors="replace"),
        ) from None
    if done.returncode == _REFUSED:
        raise ConfigError(done.stdout.strip())
    if done.returncode:
        raise _died(cause_of_death(done.returncode), done.stderr)
    return done.stdout.splitlines()


def _died(why: str, said: str) -> EngineError:
    """What to raise where a rehearsal came to no verdict, with the last that it said."""
    last = "\n".join(said.strip().splitlines()[-_LAST_LINES:])
    text = f"the rehearsal of this run failed: {why}"
    return EngineError(f"{text}:\n{last}" if last else text)


@contextmanager
def _under(keys: str) -> Iterator[None]:
    """Name the keys in what is raised inside."""
    try:
        yield
    except NMoEError as error:
        raise ConfigError(f"{keys}: {error}") from None
    except (RuntimeError, ValueError, TypeError, MemoryError, OverflowError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"{keys}: {first[0]}") from error


def _check_device(name: str) -> None:
    import torch

    kind, _, number = name.partition(":")
    if kind == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= there:
            allowed = ["cpu", *(f"cuda:{index}" for index in range(there))]
            raise ConfigError(
                f"run.device = {name}: torch {torch.__version__} finds {there} CUDA devices here; "
                f"allowed: {', '.join(allowed)}"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"run.device = {name}: torch finds no such device here; allowed: cpu")


def _check_augmentation(config: Config, shape: Sequence[int]) -> None:
    side, data = min(shape[1:]), config.data
    if data.kind != "images":  # rows of numbers have no neighbours
        return
    if data.crop_padding >= side:
        raise ConfigError(
            f"data.crop-padding is {data.crop_padding}, the images have {side} pixels; "
            f"allowed: 0 to {side - 1}"
        )
    if data.cutout > side:
        raise ConfigError(
            f"data.cutout is {data.cutout}, the images have {side} pixels; allowed: 0 to {side}"
        )


def _rehearse_networks(config: Config, data: "ImageData", *, rows: int) -> Mapping[str, Any]:
    """Run ``rows`` images through all networks; returns the arrays that stage 1 leaves."""
    import torch

    from nmoe_flower.clients.device import finished_head, fresh_head
    from nmoe_flower.models import check_backbone, configured_extractor, finished_extractor

    shape, classes, meta = data.image_shape, data.num_classes, torch.device("meta")
    given = config.extractor.stands_on_given
    own = is_own(config.extractor.backbone) and not given
    with (
        torch.device("cpu") if own or given else meta
    ):  # own code may do what the meta device cannot
        body = configured_extractor(config, shape)
    if own:
        check_backbone(config, body, torch.zeros(rows, *shape))
    else:
        _check_memory(body, "extractor.widths", config.extractor.widths)
    with torch.device("cpu") if own or given else meta:
        finished = finished_extractor(config, shape) if config.head.standardises else body
    if config.head.asks_sums or "lda" in config.gate.methods:
        with _under(f"extractor.backbone = {config.extractor.backbone}"):
            packed_bytes(body.latent_dim)
            if config.privacy.enabled:
                packed_size(body.latent_dim + classes)
    with meta:
        head = finished_head(config, finished.latent_dim, classes)
        for network in (head, _expert(config, finished, classes)):
            _check_memory(network, "expert.hidden", config.expert.hidden)
        _rehearse_gates(config, finished.latent_dim)
        if not own and not given and not config.extractor.start:
            _rehearse_stage_1(config, data, rows=rows)
    like = {f"extractor.{name}": value for name, value in body.state_dict().items()}
    if config.extractor.shares_head:
        with meta:
            stage_1 = fresh_head(config, body.latent_dim, classes)
        like |= {f"head.{name}": value for name, value in stage_1.state_dict().items()}
    return like


def _rehearse_stage_1(config: Config, data: "ImageData", *, rows: int) -> None:
    """Run what stage 1 trains, in training mode, on a batch as small as the smallest client's."""
    import torch

    from nmoe_flower.clients.device import fresh_classifier, fresh_contrastive

    shape, contrast, meta = data.image_shape, config.contrast, torch.device("meta")
    if config.extractor.method == "fedsc":
        contrastive = fresh_contrastive(config, shape, meta)
        _check_memory(contrastive, "contrast.hidden", contrast.hidden)
        sides = (contrast.view_size, contrast.view_size) if contrast.view_size else shape[1:]
        with _under(f"contrast.view-size = {contrast.view_size}: views are too small"):
            contrastive.train()(torch.empty(2 * rows, shape[0], *sides))
    else:
        classifier = fresh_classifier(config, shape, data.num_classes, meta)
        with _under(f"extractor.norm = {config.extractor.norm} and batches of {rows} (batch-size)"):
            classifier.train()(torch.empty(rows, *shape))


def _rehearse_gates(config: Config, latent_dim: int) -> None:
    import torch

    from nmoe_flower.losses import check_objective
    from nmoe_flower.models import check_gate, configured_gate, own_gate

    settings, experts = config.gate, config.data.num_clients
    gate = configured_gate(config, latent_dim, num_experts=experts)
    _check_memory(gate, "gate.hidden", settings.hidden)
    with torch.device("cpu"):
        if is_own(settings.objective):
            check_objective(settings.objective)
        for name in filter(is_own, settings.methods):
            own = own_gate(
                name, own_id=0, num_experts=experts, latent_dim=latent_dim, top_k=settings.top_k
            )
            latents = torch.randn(2, latent_dim, generator=torch.Generator().manual_seed(0))
            check_gate(name, own, latents, num_experts=experts)


def _expert(config: Config, body: "Extractor", classes: int) -> "torch.nn.Module":
    from nmoe_flower.models import Expert

    return Expert(body.latent_dim, classes, hidden=config.expert.hidden)


def _check_memory(network: "torch.nn.Module", key: str, value: object, *, times: int = 1) -> None:
    """Refuse a network that this machine could not hold once."""
    size = times * _BYTES_PER_PARAMETER * sum(p.numel() for p in network.parameters())
    _check_bytes(size, key, value)


def _check_bytes(size: int, key: str, value: object, *, what: str = "the network has") -> None:
    """Refuse so many bytes of weights, if this machine has less memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if size > memory:
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        raise ConfigError(
            f"{key} = {shown}: {what} {size / 2**30:,.0f} GiB of weights ({size:,} bytes); "
            f"allowed: what fits into the {memory / 2**30:,.0f} GiB of this machine"
        )


def _check_given(config: Config, like: Mapping[str, Any]) -> None:
    """The extractor of another run must be that of the configured network."""
    import numpy as np

    from nmoe_flower.pipeline import given_weights

    wanted = {
        name: np.broadcast_to(np.zeros((), np.float32), tuple(value.shape))
        for name, value in like.items()
    }
    given_weights(Path(config.extractor.start).expanduser(), wanted)


def _rehearse_strategy(config: Config) -> None:
    from nmoe_flower.pipeline import stage_1_strategy

    with _under(f"extractor.method = {config.extractor.method}"):
        stage_1_strategy(config)


def _rehearse_alignment(
    config: Config, data: "ImageData", clients: "Sequence[ClientIndices]"
) -> None:
    import torch

    from nmoe_flower.clients.device import experts_of, fresh_body
    from nmoe_flower.data import label_counts
    from nmoe_flower.models import Gate, check_backbone
    from nmoe_flower.pipeline import rehearse_alignment

    settings, shape = config.alignment, data.image_shape
    rows = min(2, settings.batch_size, min(len(client.train) for client in clients))
    if settings.extractor == "filters":
        size = settings.filters * settings.filter_size**2
        if size > 2**28:
            raise ConfigError(
                f"alignment.filters = {settings.filters} of alignment.filter-size = "
                f"{settings.filter_size} pixels are {size:,} numbers; allowed: {2**28:,}"
            )
        with _under(f"alignment.filter-size = {settings.filter_size}"):
            body = fresh_body(config, shape)
        with _under(f"alignment.filter-stride = {settings.filter_stride}"):
            body(torch.zeros(1, *shape))
    elif is_own(config.extractor.backbone):
        body = fresh_body(config, shape)
        check_backbone(config, body, torch.zeros(rows, *shape))
    else:
        with torch.device("meta"):
            body = fresh_body(config, shape).train(settings.extractor == "trained")
            norm = f"extractor.norm = {config.extractor.norm}"
            with _under(f"{norm} and alignment.batch-size = {settings.batch_size}"):
                body(torch.empty(rows, *shape))
    with torch.device("meta"):
        expert = _expert(config, body, data.num_classes)
        _check_memory(expert, "expert.hidden", config.expert.hidden)
        _check_memory(expert, "alignment.experts", experts_of(config), times=experts_of(config))
        Gate(body.latent_dim, experts_of(config), hidden=config.gate.hidden)
    counts = label_counts(data.train.labels, [c.train for c in clients], data.num_classes)
    bounds = f"alignment.capacity, lo = {settings.lo}, hi = {settings.hi}"
    with _under(bounds):
        rehearse_alignment(config, counts, sum(p.numel() for p in expert.parameters()))


def _rehearse_privacy(config: Config, clients: "Sequence[ClientIndices]") -> None:
    """The noise of the clients with the most and the fewest images."""
    from nmoe_flower.clients import matrices_of, weights_of

    order = sorted(range(len(clients)), key=lambda client: len(clients[client].train))
    for client in {order[0], order[-1]}:
        device = _device(config, client)
        with _under("privacy.epsilon, delta, releases"):
            matrices_of(device).check()
        with _under("privacy.weights-epsilon, delta"):
            weights_of(device).check()


def _rehearse_baseline(
    config: Config, data: "ImageData", clients: "Sequence[ClientIndices]"
) -> None:
    import numpy as np

    from nmoe_flower.baselines import empty_network, memory_of_server
    from nmoe_flower.cohorts import cohort_size

    entry = BASELINES[config.run.system]
    system: Baseline = found(entry.system)
    held = memory_of_server(config, data.image_shape, data.num_classes)
    _check_bytes(held, "baseline.experts", config.baseline.experts, what="the server would hold")
    network = empty_network(system, config, data.image_shape, data.num_classes)
    if not any(system.travels(name) for name in network.state_dict()):
        raise ConfigError(
            f"run.system = {config.run.system} shares nothing but the trunk, and "
            f"extractor.backbone = {config.extractor.backbone} has no weights"
        )
    if not config.extractor.is_given:
        fewest = min(len(client.train) for client in clients)
        _rehearse_trunk(config, (min(2, config.baseline.batch_size, fewest), *data.image_shape))
    strategy = system.strategy(config)
    if entry.reads_labels:
        strategy.class_counts = {
            client: np.bincount(data.train.labels[share.train], minlength=data.num_classes).tolist()
            for client, share in enumerate(clients)
        }
    # Where experts are assigned within bounds, there may be no way to meet them.
    taking_part = cohort_size(config.data.num_clients, config.baseline.fraction_train)
    strategy.assign(range(max(2, taking_part)), 1)


def _rehearse_trunk(config: Config, shape: tuple[int, ...]) -> None:
    """Run images [B, C, H, W] of zeros through the trunk that is trained from scratch."""
    import torch

    from nmoe_flower.models import check_backbone, configured_extractor

    if is_own(config.extractor.backbone):
        check_backbone(config, configured_extractor(config, shape[1:]), torch.zeros(shape))
        return
    with torch.device("meta"):
        body = configured_extractor(config, shape[1:]).train()
        with _under(f"extractor.backbone = {config.extractor.backbone}"):
            body(torch.zeros(shape))


def _device(config: Config, client: int) -> "Device":
    from nmoe_flower.clients.device import Device, Store

    return Device(config, client, config.data.num_clients, Store(Path(os.devnull)))


def _main() -> int:
    from nmoe_flower.data import configured_images, configured_partition, coverage
    from nmoe_flower.data.text import configured_text

    try:
        config = Config.parse(json.load(sys.stdin))
        if config.run.system == "language":
            rehearse_language(config, configured_text(config))
            return 0
        data = configured_images(config)
        shares = configured_partition(config, data, num_clients=config.data.num_clients)
        rehearse(config, data, shares)
        for part in coverage(config, data, shares):
            if part.used < part.total:
                print(part)
    except NMoEError as error:
        print(error)
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main())
