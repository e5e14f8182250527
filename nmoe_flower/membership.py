"""Who joins and who leaves a finished run: with its sums, its expert and embedding, or its text.

**Sums** (``head.method = sums``) are added or subtracted, and the rest follows anew.

What sums gave is exactly that of a federation with these clients, because it depends on nothing
else. What was trained (experts from the shared head, gates with rounds) is trained again without
who left; an extractor that learned from its images is not, and that is said.

**Embeddings** (``gate.form = metric``) come and go with their experts, and nobody trains but who
joins: all others keep their experts, and the projection of the gate stays as it is.

**Text** (``run.system = language``): an expert comes and goes with the histogram that the gate
``unigram`` knows it by; no other expert and no other row changes. What averages all is made anew.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nmoe_flower.catalogue import ADAPTER_CONTROLS, CHUNKS
from nmoe_flower.checkpoint import Checkpoint
from nmoe_flower.config import Config
from nmoe_flower.engine import InProcessGrid
from nmoe_flower.errors import CheckpointError, ConfigError, DataError
from nmoe_flower.files import load_arrays, save_arrays, write_json
from nmoe_flower.lock import locked
from nmoe_flower.pipeline import (
    Artifacts,
    Run,
    ask_initial,
    asks_initial,
    gather_sums,
    holdings,
    leave_sums,
    state_gates,
    sums_told,
)
from nmoe_flower.records import STANDARD_PART, MetricKey, part_of
from nmoe_flower.results import RunFolder, placed
from nmoe_flower.running import CLIENT_APP

__all__ = ["Change", "forget", "join"]

Arrays = dict[str, np.ndarray]
_STAGES = ["extractor", "head"]
_CARRYING = [*_STAGES, "experts", "gates"]
_BROUGHT = ("expert", "out-of-fold")  # what of a client's own folder comes along
_EXACT: dict[str, tuple[str, ...]] = {
    "sums": ("standardisation", "ridge head", "gate lda"),
    "embeddings": ("the others' embeddings",),
    "text": ("the others' experts", "the others' histograms of tokens"),
}
_LEAST = 2  # clients of a federation


@dataclass(frozen=True)
class Change:
    """What a client's coming or going has left.

    Attributes:
        folder: The new run, finished up to the stage head: resuming it does the rest.
        client: The client's number in the run before, or in the new one if it joined.
        exact: What equals that of a federation with these clients.
        again: What is to be trained again, and is as soon as the new run is resumed.
        inexact: What still holds something of who has left, and why; empty: nothing does.
        now: The number of each client that stays, by the number it had.
    """

    folder: RunFolder
    client: int
    exact: tuple[str, ...]
    again: tuple[str, ...]
    inexact: tuple[str, ...]
    now: Mapping[int, int]

    def lines(self) -> list[str]:
        """The change in words, a line each."""
        moved = ", ".join(f"{old} is now {new}" for old, new in self.now.items() if old != new)
        return [
            f"exact      {', '.join(self.exact)}: those of a run with these clients alone",
            f"again      {', '.join(self.again) or 'nothing'}: trained anew when the run goes on",
            f"not exact  {'; '.join(self.inexact) or 'nothing'}",
            *([f"numbers    {moved}"] if moved else []),
        ]


def forget(run: str | Path, client: int, out: str | Path) -> Change:
    """Begin a run in which a client of a finished one has never been.

    Its sums are left out and the rest is solved again; its expert and its row of the gate are gone.
    Where experts carry embeddings or histograms of tokens its own is left out, and no expert is
    trained again. Nothing of it is in the new folder. The old run stays as it is.

    Args:
        run: The folder of a run with ``head.method = sums`` or ``gate.form = metric``, or of
            language.
        client: The client's number, 0 to N - 1.
        out: The new run folder; it must be free.

    Raises:
        ConfigError: It never joined, two clients or fewer would not be left, the run is without
            sums, or the new folder is taken.
        CheckpointError: The run did not come as far, or its sums are missing or damaged.
    """
    origin, checkpoint = _finished(Path(run), "forget")
    count = origin.config.data.num_clients
    if not 0 <= client < count:
        raise ConfigError(
            f"client {client} never joined {origin.path}; allowed: 0 to {count - 1}, its clients"
        )
    if count <= _LEAST:
        raise ConfigError(
            f"{origin.path} has {count} clients, and a federation needs {_LEAST}: none can leave"
        )
    shares = _shares(origin.config)
    config = _changed(origin.config, num_clients=count - 1, gone=shares[client], leaves=client)
    carries = _carries(origin.config)
    told = {} if carries else _kept_sums(origin, checkpoint)
    staying = [old for old in range(count) if old != client]
    now = {old: new for new, old in enumerate(staying)}
    described = {} if _speaks(origin.config) else _described(checkpoint)
    with ExitStack() as held:
        begun = _begin(
            held,
            Path(out),
            config,
            checkpoint,
            {now[old]: described[old] for old in staying if old in described},
        )
        if carries:
            holdings(begun)
            _carry(begun, origin, checkpoint, Path(out), now)
        else:
            leave_sums(begun, {now[old]: told[old] for old in staying})
        return _end(begun, Path(out), client, now, leaver=True)


def join(run: str | Path, share: int, out: str | Path) -> Change:
    """Begin a run in which a client that had left a finished one, or waited, takes part.

    It alone is asked for its sums; those of the others are in the run folder. Where experts carry
    embeddings or histograms of tokens it alone trains: its expert. Of lists that have an entry for
    each client it gets ``adapter.rank`` in ``adapter.ranks``, and in ``gate.distribution`` the mean
    of the others' shares.

    Args:
        run: The folder of a run with ``head.method = sums`` or ``gate.form = metric``, or of
            language.
        share: The number of its share of the data, one of ``data.without``.
        out: The new run folder; it must be free.

    Raises:
        ConfigError: Nobody left that share, the run is without sums, or the new folder is taken.
        CheckpointError: The run did not come as far, or its sums are missing or damaged.
        RoundError: The client's sums cannot be used.
    """
    origin, checkpoint = _finished(Path(run), "join")
    without = origin.config.data.without
    if share not in without:
        waiting = ", ".join(map(str, without)) or "none, data.without is empty"
        raise ConfigError(f"share {share} of the data waits for nobody; allowed: {waiting}")
    count = origin.config.data.num_clients
    config = _changed(origin.config, num_clients=count + 1, back=share)
    client = _shares(config).index(share)
    now = {old: old + (old >= client) for old in range(count)}
    carries = _carries(origin.config)
    kept = {} if carries else _kept_sums(origin, checkpoint)
    told = {now[old]: arrays for old, arrays in kept.items()}
    with ExitStack() as held:
        begun = _begin(held, Path(out), config, checkpoint, {})
        holdings(begun)
        if carries:
            _carry(begun, origin, checkpoint, Path(out), now)
        else:
            told |= gather_sums(begun, only=[client])
            leave_sums(begun, dict(sorted(told.items())))
        return _end(begun, Path(out), client, now, leaver=False)


def _finished(path: Path, to: str) -> tuple[RunFolder, Checkpoint]:
    """A run that has solved its head from sums, or one whose experts carry embeddings.

    Args:
        path: The run's folder.
        to: What it is wanted for, in a word.
    """
    origin = RunFolder.resume(path.expanduser(), to=to)
    head = origin.config.head
    carries = _carries(origin.config)
    stages = ["experts"] if _speaks(origin.config) else _CARRYING if carries else _STAGES
    solved = origin.config.run.system == "networked" and head.method == "sums"
    if not (solved or carries):
        raise ConfigError(
            f"{origin.path} has head.method = {head.method} (run.system = "
            f"{origin.config.run.system}): what a client gave cannot be taken out again, or put in "
            "later; allowed: head.method = sums; gate.form = metric with the gate federated, and "
            "no head.standardise; or run.system = language"
        )
    checkpoint = origin.checkpoints.latest()
    if checkpoint is None or not set(stages) <= set(checkpoint.state["stages"]):
        raise CheckpointError(
            f"{origin.path} has no checkpoint after the stage {stages[-1]}: let the run go on to "
            "its end"
        )
    return origin, checkpoint


def _speaks(config: Config) -> bool:
    """Whether experts come and go with histograms of tokens."""
    return config.run.system == "language"


def _carries(config: Config) -> bool:
    """Whether experts come and go with what they are known by, on latents that stay as they are."""
    if _speaks(config):
        return True
    embedded = config.has_embeddings and "federated" in config.gate.methods
    return embedded and not config.head.asks_sums and not config.head.standardises


def _carry(
    run: Run, origin: RunFolder, checkpoint: Checkpoint, out: Path, now: Mapping[int, int]
) -> None:
    """Bring the experts of those who stay, and what they are known by."""
    before = Artifacts.read(part_of(checkpoint.arrays, "done/"))
    run.artifacts.carried = np.array(sorted(now.values()))
    if _speaks(run.config):
        _carry_text(run, origin, before, out, now)
        return
    means, projection = before.normal_means, before.gates["federated"].get(MetricKey.PROJECTION)
    if means is None or projection is None:
        raise CheckpointError(f"{origin.path} has no embeddings: let the run go on to its end")
    _bring(origin, out, now, needed="expert")
    run.artifacts.classifier = before.classifier
    run.artifacts.gates = {"federated": {MetricKey.PROJECTION: projection}}
    run.artifacts.normal_means = np.zeros(
        (run.config.data.num_clients, means.shape[1]), means.dtype
    )
    run.artifacts.normal_means[list(now.values())] = means[list(now)]


def _carry_text(
    run: Run, origin: RunFolder, before: Artifacts, out: Path, now: Mapping[int, int]
) -> None:
    """Bring adapters and histograms of tokens; a row that is to come is empty."""
    shared = run.config.expert.sharing == "weights"
    if shared and not before.adapters:
        raise CheckpointError(f"{origin.path} has no experts: let the run go on to its end")
    _bring(origin, out, now, needed="" if shared else "expert")
    run.artifacts.adapters = {
        f"{new}/{name}": array
        for old, new in now.items()
        for name, array in part_of(before.adapters, f"{old}/").items()
    }
    if (rows := before.frequencies) is not None:
        run.artifacts.frequencies = np.zeros(
            (run.config.data.num_clients, *rows.shape[1:]), rows.dtype
        )
        run.artifacts.frequencies[list(now.values())] = rows[list(now)]


def _bring(origin: RunFolder, out: Path, now: Mapping[int, int], *, needed: str) -> None:
    """Copy what those who stay keep of their experts."""
    clients = out.expanduser().resolve() / "clients"
    for old, new in now.items():
        for name in _BROUGHT:
            path = origin.path / "clients" / str(old) / f"{name}.safetensors"
            if name == needed or path.exists():
                save_arrays(clients / str(new) / path.name, load_arrays(path))


def _kept_sums(origin: RunFolder, checkpoint: Checkpoint) -> dict[int, Arrays]:
    """What each client told, by its number in order; checked before anything is written."""
    num_classes = len(_described(checkpoint)[0]["classes"])
    told = {}
    for client in range(origin.config.data.num_clients):
        path = origin.path / "sums" / f"{client}.safetensors"
        told[client] = load_arrays(path)
        try:
            sums_told(told[client], num_classes)
        except (ConfigError, DataError) as error:
            raise CheckpointError(f"{path} holds no sums: {error}") from None
    return told


def _described(checkpoint: Checkpoint) -> dict[int, dict[str, Any]]:
    return {int(client): told for client, told in checkpoint.state["described"].items()}


def _shares(config: Config) -> list[int]:
    """Which share of the data each client holds."""
    return [share for share in range(config.data.shares) if share not in config.data.without]


def _changed(
    config: Config,
    *,
    num_clients: int,
    gone: int | None = None,
    back: int | None = None,
    leaves: int | None = None,
) -> Config:
    """The configuration of the run with one client more or fewer."""
    without = {*config.data.without, *([] if gone is None else [gone])} - {back}
    values = config.flat() | {
        "data.num-clients": num_clients,
        "data.without": ",".join(map(str, sorted(without))),
        "run.min-replies": min(config.run.min_replies, num_clients),
    }

    def each(told: Sequence[float], newcomer: float) -> str:
        """What is told of each client: without who leaves, or with who joins, at its place."""
        kept = list(told)
        if leaves is not None:
            del kept[leaves]
        if back is not None:
            kept.insert(sum(share < back for share in _shares(config)), newcomer)
        return ",".join(map(str, kept))

    if ranks := config.adapter.ranks:
        values["adapter.ranks"] = each(ranks, config.adapter.rank)
    if drawn := config.gate.distribution:
        values["gate.distribution"] = each(drawn, sum(drawn) / len(drawn))
    return Config.parse(values)


def _begin(
    held: ExitStack,
    out: Path,
    config: Config,
    checkpoint: Checkpoint,
    described: dict[int, dict[str, Any]],
) -> Run:
    """A new run with the extractor of the old one, and clients to ask, until ``held`` closes."""
    path = out.expanduser().resolve()
    held.enter_context(locked(path))
    folder = RunFolder.create(path, placed(config, path))
    grid = held.enter_context(
        InProcessGrid(
            CLIENT_APP,
            config.data.num_clients,
            run_config=folder.config.flat(),
            workers=0,
        )
    )
    begun = Run(
        grid,
        folder.config,
        folder.append_round,
        keep=folder.keep,
        checkpoints=folder.checkpoints,
        described=described,
    )
    begun.connect()
    if asks_initial(begun.config) and not _speaks(config):
        ask_initial(begun)
    before = Artifacts.read(part_of(checkpoint.arrays, "done/"))
    begun.artifacts.classifier = {
        name: array
        for name, array in before.classifier.items()
        if name.startswith("extractor.") and not name.startswith(STANDARD_PART)
    }
    begun.artifacts.spectrum = before.spectrum
    return begun


def _end(run: Run, out: Path, client: int, now: Mapping[int, int], *, leaver: bool) -> Change:
    """Write what is exact and what is not, and the checkpoint from which the run goes on."""
    config = run.config
    path = out.expanduser().resolve()
    carries = _carries(config)
    joiner = [] if leaver else [f"the expert of client {client}"]
    again = joiner if carries else ["experts"]
    trained: tuple[str, ...] = ("rolling", "global") if carries else ("federated", "rolling")
    if _speaks(config):  # whose gates of hidden states ask all for sums
        trained = tuple(state_gates(config.text_gates))
        again += [
            f"control {name}" for name in config.adapter.controls if ADAPTER_CONTROLS[name].averaged
        ]
    again += [
        f"gate {name}" for name in config.gate.methods if name.removesuffix(CHUNKS) in trained
    ]
    inexact = []
    if leaver and carries and not _speaks(config):
        inexact.append(
            "the projection of the gate federated, which was trained for "
            f"{config.gate.rounds} rounds with latents of the client"
        )
        if config.extractor.shares_head or config.head.rounds:
            inexact.append("the head that experts start from, and the others' experts")
    if leaver and config.extractor.is_trained:
        inexact.append(
            f"the extractor: extractor.method = {config.extractor.method} trained it for "
            f"{config.extractor.rounds} rounds with images of the client"
        )
    if leaver and config.extractor.start:
        inexact.append(f"the extractor, if its run ({config.extractor.start}) had the client")
    exact = _EXACT["sums"]
    if carries:
        exact = _EXACT["text" if _speaks(config) else "embeddings"]
    change = Change(
        RunFolder(path, config),
        client,
        exact,
        tuple(again),
        tuple(inexact),
        dict(now),
    )
    write_json(
        path / "membership.json",
        {
            "forgot" if leaver else "joined": client,
            "exact": list(change.exact),
            "again": list(change.again),
            "inexact": list(change.inexact),
            "now": {str(old): new for old, new in now.items()},
        },
    )
    run.stages = [] if _speaks(config) else list(_STAGES)
    run.save("head/done")
    return change
