"""From a finished run of the language system to one bundle per client, or a device's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nmoe_flower.backbone import configured_language
from nmoe_flower.catalogue import AVERAGED
from nmoe_flower.config import Config
from nmoe_flower.data.text import configured_tokenizer
from nmoe_flower.errors import BundleError, CheckpointError
from nmoe_flower.files import all_or_none, load_arrays
from nmoe_flower.inference.bundle.bundle_files import MANIFEST, Arrays
from nmoe_flower.inference.bundle.holders import ring_holders
from nmoe_flower.inference.bundle.text_bundle import FREQUENCIES, TextBundle
from nmoe_flower.models import split_lm

__all__ = ["export_device", "export_language"]

_GATES = ("posterior", "unigram", "unigram-chunks")  # the last that a run has, if none is named
_WEIGHTS = "gate-unigram.safetensors"


def export_language(
    run_folder: Path, out: Path, config: Config, *, gate: str | None, holders: list[list[int]]
) -> list[TextBundle]:
    """Write ``<out>/<i>`` for every client i of a finished run; all, or none.

    Args:
        run_folder: A folder with ``weights/adapter-<i>.safetensors``.
        out: The folder of the bundles; made if missing.
        config: The run's.
        gate: ``unigram``, ``unigram-chunks`` or ``posterior``; None: the first two, if the run has
            one.
        holders: Devices that hold each adapter, its own first.

    Raises:
        BundleError: The run is not finished, its adapters did not leave their devices, or it has
            no gate that routes text without asking.
        ConfigError: The backbone cannot be opened or cut.
    """
    weights = run_folder / "weights"
    gate = _gate(run_folder, weights, config, gate)
    _check_cut(run_folder / "config.toml", config)
    count = config.data.num_clients
    names = [f"adapter-{name}" for name in AVERAGED]
    with _readable(run_folder, "did the run finish, with expert.sharing = 'weights'?"):
        frequencies = load_arrays(weights / _WEIGHTS)[FREQUENCIES]
        adapters = [load_arrays(weights / f"adapter-{e}.safetensors") for e in range(count)]
        shared = _shared(weights, names)
    facts = _facts(config, frequencies)
    with all_or_none(out, last=MANIFEST) as new:
        for client in range(count):
            TextBundle.write(
                new / str(client),
                config=config,
                frequencies=frequencies,
                adapters={e: adapters[e] for e in range(count) if client in holders[e]},
                shared=shared,
                partition=client,
                gate=gate,
                holders=holders,
                **facts,
            )
    return [TextBundle.load(out / str(client)) for client in range(count)]


def export_device(
    store: Path, out: Path, config: Config, *, gate: str | None, partition: int
) -> TextBundle:
    """Write the bundle of one device from what it kept of a finished run; each adapter is at home.

    Args:
        store: The run's folder on the device.
        out: The bundle's folder.
        config: The configuration that the device noted.
        gate: Which gate routes; None: ``unigram`` or ``unigram-chunks``, if the run has one.
        partition: Which device this is.

    Raises:
        BundleError: The run did not finish on this device, its adapters did not leave their
            devices, or it has no gate that routes text without asking.
        ConfigError: The backbone cannot be opened or cut.
    """
    gate = _gate(store, store, config, gate)
    _check_cut(store / "device.json", config)
    with _readable(store, "did the run finish on this device?"):
        frequencies = load_arrays(store / _WEIGHTS)[FREQUENCIES]
        adapter = load_arrays(store / "expert.safetensors")
        shared = _shared(store, ["shared"])
    facts = _facts(config, frequencies)
    with all_or_none(out, last=MANIFEST) as new:
        TextBundle.write(
            new,
            config=config,
            frequencies=frequencies,
            adapters={partition: adapter},
            shared=shared,
            partition=partition,
            gate=gate,
            holders=ring_holders(len(frequencies), 1),
            **facts,
        )
    return TextBundle.load(out)


@contextmanager
def _readable(folder: Path, hint: str) -> Iterator[None]:
    """Say of a file that cannot be read what folder it is of.

    Raises:
        BundleError: A file is missing or damaged.
    """
    try:
        yield
    except (CheckpointError, KeyError) as error:
        raise BundleError(f"{folder} cannot be exported: {error}; {hint}") from None


def _shared(folder: Path, names: list[str]) -> Arrays | None:
    """The adapter of all devices, by the first name that there is."""
    paths = [folder / f"{name}.safetensors" for name in names]
    return next((load_arrays(path) for path in paths if path.is_file()), None)


def _facts(config: Config, frequencies: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What the manifest says of the backbone and its tokens.

    Raises:
        ConfigError: The backbone cannot be opened or cut.
    """
    model, digest = configured_language(config, frequencies.shape[1])
    return {
        "backbone": digest.hex(),
        "tokenizer": configured_tokenizer(config).hash,
        "vocab_size": len(model.bias),
        "width": split_lm(model).width,
    }


def _gate(folder: Path, weights: Path, config: Config, gate: str | None) -> str:
    """Which gate routes."""
    there = [name for name in _GATES if name in config.gate.methods]
    found = gate or (there[-1] if there else "")
    if found not in _GATES or not (weights / _WEIGHTS).is_file():
        told = f"the gate {found!r}" if found else "a gate"
        raise BundleError(
            f"{folder} has not {told} that a device can ask by; allowed: "
            f"{' or '.join(reversed(_GATES))}, in a finished run with unigram in gate.methods and "
            "expert.sharing = 'weights'"
        )
    return found


def _check_cut(told: Path, config: Config) -> None:
    """Refuse adapters in all blocks where hidden states are to stand for the text."""
    if config.adapter.blocks == "all" and config.query.send != "tokens":
        raise BundleError(
            f"{told.parent} has adapters in all blocks (adapter.blocks = 'all'): no block is left "
            "to run at home, and a question to a peer would be the text itself; set "
            f"query.send = 'tokens' in {told.name} if that is allowed, or train with "
            "adapter.blocks = 'upper'"
        )
