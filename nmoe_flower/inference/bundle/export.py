"""From a finished run to one bundle per client, and from a device's store to its own bundle."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, with_features
from nmoe_flower.errors import BundleError, CheckpointError, ConfigError
from nmoe_flower.files import all_or_none, load_arrays, safe_child
from nmoe_flower.inference.bundle.bundle import Bundle
from nmoe_flower.inference.bundle.bundle_files import MANIFEST
from nmoe_flower.inference.bundle.folders import bundled_run, read_store, refuse_left_over
from nmoe_flower.inference.bundle.holders import read_holders, ring_holders
from nmoe_flower.inference.bundle.text_bundle import TextBundle
from nmoe_flower.inference.bundle.text_export import export_device, export_language

__all__ = ["export_run", "export_store"]


def export_run(
    run_folder: Path,
    out: Path,
    *,
    gate: str | None = None,
    replicas: int = 1,
    holders: Path | None = None,
) -> list[Bundle] | list[TextBundle]:
    """Write ``<out>/<i>`` for every client i of a finished `nmoe run` folder; all, or none.

    The class names and the image shape come from the run's data set.

    Args:
        run_folder: A folder with ``config.toml``, ``weights/`` and
            ``clients/<i>/expert.safetensors``.
        out: The folder of the bundles; made if missing. Bundles that are there are replaced.
        gate: Which of the run's gates the devices route with; None: ``federated``, or what there
            is. Of text: ``unigram`` or ``unigram-chunks``.
        replicas: Devices that hold each adapter of a language model, its own and the next ones.
        holders: File that says instead which devices hold which, as `read_holders` reads it.

    Raises:
        BundleError: The run is not finished, is of the alignment system, or has no such gate; or
            ``out`` holds a bundle of a later client than the run has.
        ConfigError: Experts of images would be on several devices, ``replicas`` is out of range,
            or ``holders`` cannot be read.
    """
    config = bundled_run(run_folder)
    refuse_left_over(out, config.data.num_clients)
    if config.run.system == "language":
        count = config.data.num_clients
        placed = read_holders(holders, count) if holders else ring_holders(count, replicas)
        return export_language(run_folder, out, config, gate=gate, holders=placed)
    if replicas != 1 or holders is not None:
        told = f"holders of {holders}" if holders else f"{replicas} replicas"
        raise ConfigError(
            f"{told} of experts of images; allowed: each on its own device (adapters of a language "
            "model can be on more)"
        )
    return _export_images(run_folder, out, config, gate=gate)


def _export_images(
    run_folder: Path, out: Path, config: Config, *, gate: str | None = None
) -> list[Bundle]:
    """`export_run` of the system ``networked``.

    Args:
        run_folder: As there.
        out: As there.
        config: The run's.
        gate: As there.

    Raises:
        BundleError: The run is not finished, or has no such gate.
    """
    weights = run_folder / "weights"
    trained = sorted(path.stem.removeprefix("gate-") for path in weights.glob("gate-*"))
    gate = _usual(trained) if gate is None else gate
    if gate not in trained:
        raise BundleError(
            f"{run_folder} has no weights of the gate {gate!r}; "
            + (f"it has: {', '.join(trained)}" if trained else "did the run finish?")
        )
    data = configured_images(config)
    config = with_features(config, data)
    try:
        extractor = load_arrays(weights / "extractor.safetensors")
        gate_state = load_arrays(safe_child(weights, f"gate-{gate}.safetensors"))
        experts = [
            load_arrays(run_folder / "clients" / str(client) / "expert.safetensors")
            for client in range(config.data.num_clients)
        ]
    except CheckpointError as error:
        raise BundleError(f"{run_folder} cannot be exported: {error}") from None
    with all_or_none(out, last=MANIFEST) as new:
        for client, expert in enumerate(experts):
            Bundle.write(
                new / str(client),
                partition=client,
                config=config,
                classes=list(data.class_names),
                image_shape=data.image_shape,
                extractor=extractor,
                gate=gate_state,
                expert=expert,
                tokenizer=data.tokenised.tokenizer if data.tokenised else "",
            )
    return [Bundle.load(out / str(client)) for client in range(len(experts))]


def export_store(store: Path, out: Path, *, gate: str | None = None) -> Bundle | TextBundle:
    """Write the bundle of one device from what it kept of a finished run on its own disk.

    Args:
        store: The run's folder in the ``store`` of the node config.
        out: The bundle's folder; a bundle that is there is replaced, and what serves it notices.
        gate: Which of the run's gates the device routes with; None: ``federated``, or what there
            is. Of text: ``unigram`` or ``unigram-chunks``.

    Raises:
        BundleError: The run did not finish on this device, or had no such gate.
        ConfigError: The backbone of a language run cannot be opened or cut.
    """
    about = read_store(store)
    if about.get("kind") == "text":
        with _intact(store):
            told: dict[str, Any] = {**about["config"], "data.num-clients": about["num_clients"]}
            partition, config = int(about["partition"]), Config.parse(told)
        return export_device(store, out, config, gate=gate, partition=partition)
    return _export_image_store(store, out, about, gate)


def _export_image_store(store: Path, out: Path, about: dict[str, Any], gate: str | None) -> Bundle:
    """`export_store` of images, by what ``device.json`` says.

    Raises:
        BundleError: As there.
    """
    gates = sorted(path.stem.removeprefix("gate-") for path in store.glob("gate-*.safetensors"))
    gate = _usual(gates) if gate is None else gate
    if gate not in gates:
        raise BundleError(
            f"{store} has no gate {gate!r}; "
            + (f"it has: {', '.join(gates)}" if gates else "did the run finish?")
        )
    try:
        parts = {
            "extractor": load_arrays(store / "extractor.safetensors"),
            "gate": load_arrays(safe_child(store, f"gate-{gate}.safetensors")),
            "expert": load_arrays(store / "expert.safetensors"),
        }
    except CheckpointError as error:
        raise BundleError(f"{store} cannot be exported: {error}") from None
    with _intact(store):
        channels, height, width = about["image_shape"]
        with all_or_none(out, last=MANIFEST) as new:
            Bundle.write(
                new,
                partition=about["partition"],
                num_clients=about["num_clients"],
                config=Config.parse(about["config"]),
                classes=about["classes"],
                image_shape=(channels, height, width),
                tokenizer=about.get("tokenizer", ""),
                **parts,
            )
        return Bundle.load(out)


@contextmanager
def _intact(store: Path) -> Iterator[None]:
    """Name ``device.json`` where what it says cannot be used.

    Raises:
        BundleError: A value is missing or of another form.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{store / 'device.json'} is damaged: {error}") from None


def _usual(trained: list[str]) -> str:
    """FedGate, or the first of other gates where it was not trained."""
    return "federated" if "federated" in trained or not trained else trained[0]
