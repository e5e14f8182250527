"""From a finished run to one bundle per client."""

from pathlib import Path

from nmoe_flower.config import Config
from nmoe_flower.data import configured_images
from nmoe_flower.errors import BundleError, CheckpointError
from nmoe_flower.files import load_arrays, safe_child
from nmoe_flower.inference.bundle import Bundle

__all__ = ["export_run"]


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
