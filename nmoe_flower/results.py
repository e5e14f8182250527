"""The folder a run leaves: its configuration, its records, its results.

::

    <out>/<name>/ config.toml (resolved)  provenance.json  rounds.jsonl  results.json
                  checkpoints/  clients/  sums/  weights/  figures/  run.lock (while it runs)
                  tracking.json  tensorboard/  wandb/ (if it is tracked)
"""

import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from nmoe_flower.backbone_files import TRANSFORMERS
from nmoe_flower.begun import is_run, read_origin
from nmoe_flower.checkpoint import Checkpoints
from nmoe_flower.commands import command_line
from nmoe_flower.config import Config, Scalar, kebab
from nmoe_flower.errors import CheckpointError, ConfigError, NMoEError
from nmoe_flower.files import (
    append_line,
    parse_json,
    read_json,
    safe_child,
    save_arrays,
    to_json,
    write_json,
    write_text,
)
from nmoe_flower.provenance import provenance

__all__ = [
    "COST",
    "FORMAT_VERSION",
    "FREE_KEYS",
    "PATH_KEYS",
    "RunFolder",
    "absolute_override",
    "absolute_settings",
    "check_place",
    "cost_of_stage",
    "placed",
    "settings_lost",
    "shadowed",
    "worst_client",
]

FORMAT_VERSION = 1
COST = ("rounds", "seconds", "bytes_up", "bytes_down")
"""What is counted of a stage, in the order in which a published run lists it."""
_BACKBONE = "extractor.backbone"  # a path behind TRANSFORMERS, or a name

_log = logging.getLogger(__name__)
_OWN_FILES = (
    "rounds.jsonl",
    "results.json",
    "tracking.json",
    "provenance.json",
    "membership.json",
    "config.toml",
)
_OWN_FOLDERS = ("checkpoints", "clients", "sums", "weights", "figures", "tensorboard", "wandb")
# What a folder has of a run that has begun; without its config.toml nobody knows of which.
_WORK = ("results.json", "rounds.jsonl", "checkpoints", "weights")
_BEFORE_TRAINING = ("describe", "initial")
# These change where a run happens or how long it waits, never what it computes.
FREE_KEYS = frozenset(
    {
        "data.cache-dir",
        "run.name",
        "run.out",
        "run.checkpoint-every",
        "run.keep-checkpoints",
        "run.connect-timeout",
        "run.round-timeout",
    }
)
# Settings that name what is read; a run's folder has them absolute.
PATH_KEYS: tuple[str, ...] = (
    "data.dataset",
    "data.cache-dir",
    "extractor.start",
    "extractor.weights",
    "text.tokenizer",
    "alignment.trace",
)
_MADE = ("data.cache-dir",)  # made where it is missing, so it is a path in any case
_NAMES = {"data.dataset": "digits", "text.tokenizer": "bytes"}  # which come along, and are no path
_ON_THE_HUB = {
    "data.dataset": "",
    "extractor.weights": "",
    "extractor.backbone": TRANSFORMERS,
    "text.tokenizer": "",
}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def placed(config: Config, path: Path) -> Config:
    """The configuration of a run in ``path``, which names all it reads with absolute paths."""
    values = config.model_dump(by_alias=True)
    values["run"] |= {"out": str(path.parent), "name": path.name}
    for name in (*PATH_KEYS, _BACKBONE):
        section, key = name.split(".")
        values[section][key] = _absolute(name, values[section][key])
    return Config.parse(values)


def shadowed(config: Config) -> list[str]:
    """What is read from a folder of the working directory and may mean a name on the hub, in words.

    Args:
        config: The configuration as it was given, before `placed`.
    """
    notes = []
    for key, prefix in _ON_THE_HUB.items():
        value = str(config.flat()[key])
        name = value.removeprefix(prefix)
        typed = value.startswith(prefix) and value != _NAMES.get(key)
        if typed and _HUB_NAME.fullmatch(name) and Path(name).is_dir():
            notes.append(
                f"{key} = {value} is the folder {Path(name).resolve()}, which goes before what the "
                f"hub has by that name; {prefix}./{name} says the same without this note"
            )
    return notes


def absolute_settings(config: Config) -> dict[str, Scalar]:
    """A configuration's settings by dotted key, with what it reads named by absolute paths."""
    return _made_absolute(config.flat())


def _made_absolute(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Settings by dotted key, perhaps not all of them, with absolute paths."""
    there = [key for key in (*PATH_KEYS, _BACKBONE) if key in settings]
    return {**settings, **{key: _absolute(key, str(settings[key])) for key in there}}


def absolute_override(change: str) -> str:
    """A setting ``key=value`` of a command line, for one that is typed in another folder.

    >>> absolute_override("gate.rounds=5"), absolute_override("data.dataset=uoft-cs/cifar10")
    ('gate.rounds=5', 'data.dataset=uoft-cs/cifar10')
    """
    key, equals, value = change.partition("=")
    name = kebab(key.strip())
    if equals and name in (*PATH_KEYS, _BACKBONE):
        return f"{key}={_absolute(name, value)}"
    return change


def _absolute(key: str, name: str) -> str:
    """An existing file or folder by its full path, because workers may start elsewhere."""
    if key == _BACKBONE:
        source = name.removeprefix(TRANSFORMERS)
        return name if source == name else f"{TRANSFORMERS}{_absolute('', source)}"
    if name in ("", _NAMES.get(key)):
        return name
    try:
        path = Path(name).expanduser()
        return str(path.resolve()) if key in _MADE or path.exists() else name
    except (OSError, RuntimeError):  # a name that no path can have, or the home of nobody
        return name


def worst_client(row: Mapping[str, Any]) -> float | None:
    """The accuracy of the client that a row of results.json serves worst; None if nobody has one.

    Args:
        row: The row; what an older version wrote has each client's accuracy instead.

    >>> worst_client({"worst_client": 0.25}), worst_client({"per_client": {"accuracy": [1, 0.5]}})
    (0.25, 0.5)
    """
    if row.get("worst_client") is not None:
        return float(row["worst_client"])
    known = ((row.get("per_client") or {}).get("accuracy")) or ()
    return min((float(value) for value in known if value is not None), default=None)


def check_place(path: Path) -> None:
    """Refuse a folder that cannot be, because a file stands in its place or above it.

    Args:
        path: The folder, absolute; it need not be there.

    Raises:
        ConfigError: With the file.
    """
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise ConfigError(f"cannot write {path}: {there} is a file: not a directory")


def settings_lost(path: Path) -> str:
    """What a folder has of a run whose settings are gone, in words; empty: nothing, or all."""
    left = [name for name in _WORK if (path / name).exists()]
    if not left or is_run(path):
        return ""
    return f"{path} has no config.toml, but {', '.join(left)}: put it back, or move the folder away"


class RunFolder:
    """One run's folder, made by `create` or found again by `resume`.

    Attributes:
        path: The folder.
        config: The resolved configuration.
        checkpoints: The run's checkpoints.
        rounds_path: One JSON object per round, a line each.
        results_path: The results, once the run finished.
        weights_path: The final weights.
    """

    def __init__(self, path: Path, config: Config) -> None:
        """Name the parts; nothing is read or written."""
        self.path = path
        self.config = config
        self.checkpoints = Checkpoints(path / "checkpoints", keep=config.run.keep_checkpoints)
        self.rounds_path = path / "rounds.jsonl"
        self.results_path = path / "results.json"
        self.provenance_path = path / "provenance.json"
        self.weights_path = path / "weights"

    @classmethod
    def check_free(cls, path: Path, *, overwrite: bool = False) -> None:
        """Refuse a folder in which no new run can begin; nothing is written.

        Args:
            path: The folder; it need not be there.
            overwrite: A run that is there may be deleted.

        Raises:
            ConfigError: It holds a run, or a file stands where a folder must.
        """
        check_place(path)
        is_run = (path / "config.toml").is_file()
        if is_run and (overwrite or not cls.has_trained(path)):
            return
        if is_run:
            raise ConfigError(
                f"{path} already holds a run: continue it with "
                f"{command_line('nmoe', 'run', '--resume', path)}, delete it with nmoe run "
                "--overwrite, or choose another --out or, of nmoe run, --name"
            )
        if lost := settings_lost(path):
            raise ConfigError(lost)

    @classmethod
    def create(cls, path: Path, config: Config, *, overwrite: bool = False) -> Self:
        """Begin a new run: write its configuration and where it comes from.

        A run that never trained, because a setting did not fit or no client came, is begun anew.
        Whoever calls holds the folder (`lock.locked`).

        Args:
            path: The folder; made if missing.
            config: The resolved configuration.
            overwrite: Delete the run that is there. Files that no run makes stay.

        Raises:
            ConfigError: The folder holds a run already.
            NMoEError: The folder cannot be written.
        """
        cls.check_free(path, overwrite=overwrite)
        if (path / "config.toml").is_file():
            _delete_run(path)
        folder = cls(path, config)
        write_json(
            folder.provenance_path,
            {"format-version": FORMAT_VERSION, **provenance(config.run.seed)},
        )
        write_text(path / "config.toml", config.to_toml())
        return folder

    @staticmethod
    def has_trained(path: Path) -> bool:
        """Whether the run in a folder has something to lose: a round, a release, a checkpoint.

        What was asked of the clients before training (what they hold, initial weights) is no loss.
        """
        if any((path / "checkpoints").glob("step-*")) or any(path.glob("clients/*/*.json")):
            return True
        if (path / "results.json").exists():
            return True
        rounds = path / "rounds.jsonl"
        return rounds.exists() and any(
            record.get("stage") not in _BEFORE_TRAINING and record.get("clients") != []
            for record in RunFolder(path, Config()).rounds()
        )

    @classmethod
    def resume(cls, path: Path, *, to: str = "resume") -> Self:
        """Find a run again.

        Args:
            path: Folder of the run.
            to: What for, in one word; for errors.

        Raises:
            CheckpointError: There is no run in the folder, or another version wrote it.
        """
        if not is_run(path):
            raise CheckpointError(
                f"nothing to {to}: {path} "
                + ("has no config.toml" if path.is_dir() else "is not a folder")
            )
        version = read_origin(path, raises=CheckpointError).get("format-version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {version}; this nmoe-flower reads {FORMAT_VERSION}"
            )
        try:
            config = Config.load(path)
        except ConfigError as error:
            raise CheckpointError(f"cannot read {path / 'config.toml'}: {error}") from error
        return cls(path, config)

    def check_config(self, config: Config) -> None:
        """Refuse to continue this run with other settings.

        Keys that cannot change the outcome (folders, deadlines, checkpoints) may differ.

        Raises:
            CheckpointError: A key differs; every one is named with both values.
        """
        ours, theirs = absolute_settings(self.config), absolute_settings(config)
        different = [
            f"{key}: {ours[key]!r} in the folder, {theirs[key]!r} asked for"
            for key in ours
            if key not in FREE_KEYS and ours[key] != theirs[key]
        ]
        if different:
            raise CheckpointError(
                f"{self.path} belongs to another configuration:\n" + "\n".join(different)
            )

    def check_settings(self, trained: Mapping[str, Any]) -> None:
        """Refuse to go on from a checkpoint if config.toml was edited since.

        Args:
            trained: The settings it was trained with, by dotted key; empty in checkpoints of older
                versions. Keys that cannot change the outcome may differ.

        Raises:
            CheckpointError: A key differs; every one is named with both values.
        """
        ours, trained = absolute_settings(self.config), _made_absolute(trained)
        different = [
            f"{key}: trained with {trained[key]!r}, now {ours[key]!r}"
            for key in ours
            if key in trained and key not in FREE_KEYS and trained[key] != ours[key]
        ]
        if different:
            raise CheckpointError(
                f"{self.path / 'config.toml'} was changed after the last checkpoint; put back what "
                "it was, or begin a new run:\n" + "\n".join(different)
            )

    def provenance(self) -> dict[str, Any]:
        """Versions, machine, seed and what `set_provenance` added."""
        return read_origin(self.path, raises=CheckpointError)

    def set_provenance(self, **values: Any) -> None:
        """Add entries to provenance.json, atomically (the data's fingerprint, for one)."""
        write_json(self.provenance_path, {**self.provenance(), **values})

    def append_round(self, record: Mapping[str, Any]) -> None:
        """Add one record to rounds.jsonl. NaN becomes null."""
        append_line(self.rounds_path, to_json(record))

    def rounds(self) -> list[dict[str, Any]]:
        """The records of rounds.jsonl in order; a line cut by a crash is logged and left out."""
        if not self.rounds_path.is_file():
            return []
        records = []
        lines = self.rounds_path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
            except ConfigError:
                record = None
            if isinstance(record, dict):
                records.append(record)
            else:
                _log.warning("%s: line %d is damaged and ignored", self.rounds_path, number)
        return records

    def truncate_rounds(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the records ``keep`` accepts, atomically.

        A resumed run drops those after its checkpoint: it will write them again.
        """
        if self.rounds_path.is_file():
            lines = [to_json(record) + "\n" for record in self.rounds() if keep(record)]
            write_text(self.rounds_path, "".join(lines))

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json, atomically: a run that has it is finished."""
        write_json(self.results_path, results)

    def results(self) -> dict[str, Any]:
        """What results.json holds, if it has the rows that a summary shows.

        Raises:
            NMoEError: The file is missing, or is not that of a run.
        """
        results = read_json(self.results_path, raises=NMoEError)
        rows = results.get("rows") if isinstance(results, dict) else None
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and {"gate", "test"} <= row.keys() for row in rows
        ):
            raise NMoEError(
                f"{self.results_path} does not hold a run's results: rows must be a list of "
                "objects with gate and test"
            )
        return dict(results)

    def keep(self, name: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Keep arrays as ``<name>.safetensors``; the name may lead into a folder of the run."""
        save_arrays(safe_child(self.path, f"{name}.safetensors"), arrays)

    def save_weights(self, name: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Path:
        """Save final weights as ``weights/<name>.safetensors``."""
        path = safe_child(self.weights_path, f"{name}.safetensors")
        save_arrays(path, arrays)
        return path


def cost_of_stage(told: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """What a stage costs, by name.

    Args:
        told: What ``stages`` of results.json has of it; of a published run as many as `COST`.

    >>> cost_of_stage([3, 1.5, 8, 9]) == cost_of_stage(
    ...     {"rounds": 3, "seconds": 1.5, "bytes_up": 8, "bytes_down": 9})
    True
    """
    return dict(told) if isinstance(told, Mapping) else dict(zip(COST, told, strict=True))


def _delete_run(path: Path) -> None:
    """Delete what a run makes; config.toml last, so that half a deletion still is a run.

    Of a folder that is a link the link goes, and what it points to stays as it is.
    """
    try:
        for name in _OWN_FOLDERS:
            if (path / name).is_symlink():
                (path / name).unlink()
            elif (path / name).is_dir():
                shutil.rmtree(path / name)
        for name in _OWN_FILES:
            (path / name).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot overwrite the run in {path}: {error}") from error
