"""A finished run's mixture, put together in this process: what the devices do, without them."""

from pathlib import Path
from typing import TYPE_CHECKING

from nmoe_flower.config import Config
from nmoe_flower.data import configured_images, with_features
from nmoe_flower.errors import CheckpointError, ConfigError
from nmoe_flower.files import load_arrays

if TYPE_CHECKING:
    from torch import nn

    from nmoe_flower.models import NMoE

__all__ = ["load_mixture"]


def load_mixture(run: str | Path, *, gate: str = "federated") -> "NMoE":
    """The extractor, a trained gate and all experts of a finished run, as one network.

    Its parts answer step by step what it answers at once: ``extractor``, ``gate`` and ``pool``, a
    `nmoe_flower.models.LocalExperts`. Another gate goes into ``NMoE(found.extractor, mine,
    found.pool)``. Images are those of `nmoe_flower.data.normalise`.

    Args:
        run: The run folder, of ``run.system = networked``; its experts must be in it, as after a
            simulation.
        gate: One of the run's gates that have weights.

    Returns:
        The mixture, ready to answer: no part of it is in training, or has gradients.

    Raises:
        ConfigError: The run has no such gate, or no experts of the clients' own.
        CheckpointError: The run is not finished, or a file is missing or does not fit.
        DataError: The run's data set, which says what an image is, cannot be read.
    """
    from nmoe_flower.models import (
        Expert,
        LocalExperts,
        NMoE,
        finished_extractor,
        trained_gate,
    )

    folder = Path(run).expanduser()
    if not (folder / "results.json").is_file():
        raise CheckpointError(f"{folder} is no folder of a finished run: it has no results.json")
    config = Config.load(folder / "config.toml")
    if config.run.system != "networked":
        raise ConfigError(
            f"{folder} is a run of run.system = {config.run.system!r}, whose clients have no "
            "experts of their own; allowed: networked"
        )
    _check_gate(folder, gate)
    data = configured_images(config)
    config = with_features(config, data)
    extractor = finished_extractor(config, data.image_shape)
    weights = load_arrays(folder / "weights" / f"gate-{gate}.safetensors")
    router = trained_gate(
        config, extractor.latent_dim, weights, num_experts=config.data.num_clients
    )
    experts = [
        Expert(extractor.latent_dim, data.num_classes, hidden=config.expert.hidden)
        for _ in range(config.data.num_clients)
    ]
    _fill(extractor, folder / "weights" / "extractor.safetensors")
    _fill(router, folder / "weights" / f"gate-{gate}.safetensors")
    for client, expert in enumerate(experts):
        _fill(expert, folder / "clients" / str(client) / "expert.safetensors")
    mixture = NMoE(extractor, router, LocalExperts(experts))
    return mixture.eval().requires_grad_(False)


def _check_gate(folder: Path, gate: str) -> None:
    weights = (folder / "weights").glob("gate-*.safetensors")
    trained = sorted(path.stem.removeprefix("gate-") for path in weights)
    if gate not in trained:
        allowed = f"allowed: {', '.join(trained)}" if trained else "it has no trained gate at all"
        raise ConfigError(f"{folder} has no weights of the gate {gate!r}; {allowed}")


def _fill(module: "nn.Module", path: Path) -> None:
    """Give a network the weights of a file."""
    import torch

    state = {name: torch.from_numpy(array) for name, array in load_arrays(path).items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the run's config.toml: {error}") from None
