"""From a finished run of the language system to one bundle per client."""

from pathlib import Path

from nmoe_flower.backbone import configured_language
from nmoe_flower.catalogue import ADAPTER_CONTROLS
from nmoe_flower.config import Config
from nmoe_flower.data.text import configured_tokenizer
from nmoe_flower.errors import BundleError, CheckpointError
from nmoe_flower.files import all_or_none, load_arrays
from nmoe_flower.inference.bundle.bundle_files import MANIFEST
from nmoe_flower.inference.bundle.text_bundle import FREQUENCIES, TextBundle
from nmoe_flower.models import split_lm

__all__ = ["export_language"]

_GATES = ("unigram", "unigram-chunks")
_WEIGHTS = "gate-unigram.safetensors"


def export_language(
    run_folder: Path, out: Path, config: Config, *, gate: str | None, holders: list[list[int]]
) -> list[TextBundle]:
    """Write ``<out>/<i>`` for every client i of a finished run; all, or none.

    Args:
        run_folder: A folder with ``weights/adapter-<i>.safetensors``.
        out: The folder of the bundles; made if missing.
        config: The run's.
        gate: ``unigram`` or ``unigram-chunks``; None: that of them which the run has.
        holders: Devices that hold each adapter, its own first.

    Raises:
        BundleError: The run is not finished, its adapters did not leave their devices, or it has
            no gate that routes text without asking.
        ConfigError: The backbone cannot be opened or cut.
    """
    gate = _gate(run_folder, config, gate)
    _check_cut(run_folder, config)
    count = config.data.num_clients
    weights = run_folder / "weights"
    try:
        frequencies = load_arrays(weights / _WEIGHTS)[FREQUENCIES]
        adapters = [load_arrays(weights / f"adapter-{e}.safetensors") for e in range(count)]
        shared = next(
            (
                load_arrays(weights / f"adapter-{name}.safetensors")
                for name, entry in ADAPTER_CONTROLS.items()
                if entry.averaged and (weights / f"adapter-{name}.safetensors").is_file()
            ),
            None,
        )
    except (CheckpointError, KeyError) as error:
        raise BundleError(
            f"{run_folder} cannot be exported: {error}; did the run finish, with expert.sharing = "
            "'weights'?"
        ) from None
    model, digest = configured_language(config, frequencies.shape[1])
    width = split_lm(model).width
    with all_or_none(out, last=MANIFEST) as new:
        for client in range(count):
            TextBundle.write(
                new / str(client),
                config=config,
                frequencies=frequencies,
                adapters={e: adapters[e] for e in range(count) if client in holders[e]},
                shared=shared,
                partition=client,
                backbone=digest.hex(),
                tokenizer=configured_tokenizer(config).hash,
                vocab_size=len(model.bias),
                width=width,
                gate=gate,
                holders=holders,
            )
    return [TextBundle.load(out / str(client)) for client in range(count)]


def _gate(run_folder: Path, config: Config, gate: str | None) -> str:
    """Which gate routes."""
    there = [name for name in _GATES if name in config.gate.methods]
    found = gate or (there[-1] if there else "")
    if found not in _GATES or not (run_folder / "weights" / _WEIGHTS).is_file():
        told = f"the gate {found!r}" if found else "a gate"
        raise BundleError(
            f"{run_folder} has not {told} that routes text without asking anybody; allowed: "
            f"{' or '.join(_GATES)}, in a finished run with one of them in gate.methods and "
            "expert.sharing = 'weights'"
        )
    return found


def _check_cut(run_folder: Path, config: Config) -> None:
    """Refuse adapters in all blocks where hidden states are to stand for the text."""
    if config.adapter.blocks == "all" and config.query.send != "tokens":
        raise BundleError(
            f"{run_folder} has adapters in all blocks (adapter.blocks = 'all'): no block is left "
            "to run at home, and a question to a peer would be the text itself; set "
            "query.send = 'tokens' in config.toml if that is allowed, or train with "
            "adapter.blocks = 'upper'"
        )
