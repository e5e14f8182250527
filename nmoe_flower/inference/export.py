"""From a finished run to one bundle per client, and from a device's store to its own bundle."""

from pathlib import Path
from typing import Any

from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, with_features
from nmoe_flower.errors import BundleError, CheckpointError
from nmoe_flower.files import load_arrays, read_json, safe_child
from nmoe_flower.inference.bundle import Bundle

__all__ = ["export_run", "export_store"]


def export_run(run_folder: Path, out: Path, *, gate: str = "federated") -> list[Bundle]:
    """Write ``<out>/<i>`` for every client i of a finished `nmoe run` folder.

    The class names and the image shape come from the run's data set.

    Args:
        run_folder: With ``config.toml``, ``weights/`` and ``clients/<i>/expert.safetensors``.
        out: Where the bundles go.
        gate: Which of the run's gates the devices route with.

    Raises:
        BundleError: The run is not finished, or has no such gate.
    """
    config = Config.load(run_folder / "config.toml")
    weights = run_folder / "weights"
    trained = sorted(path.stem.removeprefix("gate-") for path in weights.glob("gate-*"))
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
    return [
        Bundle.write(
            out / str(client),
            partition=client,
            config=config,
            classes=list(data.class_names),
            image_shape=data.image_shape,
            extractor=extractor,
            gate=gate_state,
            expert=expert,
        )
        for client, expert in enumerate(experts)
    ]


def export_store(store: Path, out: Path, *, gate: str = "federated") -> Bundle:
    """Write the bundle of one device from what it kept of a finished run on its own disk.

    Args:
        store: The run's folder in the ``store`` of the node config.
        out: The bundle's folder; a bundle that is there is replaced, and what serves it notices.
        gate: Which of the run's gates the device routes with.

    Raises:
        BundleError: The run did not finish on this device, or had no such gate.
    """
    about = _about(store / "device.json")
    gates = sorted(path.stem.removeprefix("gate-") for path in store.glob("gate-*.safetensors"))
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
    try:
        channels, height, width = about["image_shape"]
        return Bundle.write(
            out,
            partition=about["partition"],
            num_clients=about["num_clients"],
            config=Config.parse(about["config"]),
            classes=about["classes"],
            image_shape=(channels, height, width),
            **parts,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{store / 'device.json'} is damaged: {error}") from None


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BundleError(
            f"{path.parent} is no store of a device: device.json is missing; did stage 2 run, with "
            "'store' in the node config?"
        )
    about = read_json(path, what="the store's", raises=BundleError)
    if not isinstance(about, dict):
        raise BundleError(f"{path} holds no object")
    return about
