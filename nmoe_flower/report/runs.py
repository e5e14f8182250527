"""Finished runs, read back from their folders and grouped by configuration."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nmoe_flower.begun import is_run
from nmoe_flower.catalogue import SCHEMES
from nmoe_flower.commands import command_line
from nmoe_flower.config import Config, Scalar
from nmoe_flower.errors import NMoEError
from nmoe_flower.plurals import how_many
from nmoe_flower.report.shape import read_provenance, read_results, read_rounds
from nmoe_flower.results import FREE_KEYS, RunFolder

__all__ = ["FinishedRun", "differing_settings", "label_runs", "load_runs", "seeds_in_words"]

# Columns of the results table, so no label has to repeat them.
_SHOWN_KEYS = frozenset(
    {"data.scheme", "data.tau", "data.num-clients", "extractor.method", "gate.top-k"}
)
# Which setting belongs to which way of splitting the data.
_SCHEME_KEYS = {name: scheme.key for name, scheme in SCHEMES.items() if scheme.key}
# What a table is standardised with: another table has others, and its name says so.
_OF_THE_DATA = frozenset({"data.feature-means", "data.feature-deviations"})

_BELOW = ("*", "*/*")  # where runs lie below a folder of them, or of a study
_MOST_NAMED = 3  # more differing settings than this do not fit into a table


@dataclass(frozen=True)
class FinishedRun:
    """One run that left results.

    Attributes:
        path: The run's folder.
        config: The resolved configuration.
        results: What results.json holds.
        provenance: What provenance.json holds.
        rounds: The records of rounds.jsonl.
        configuration: Number of its configuration in the report and name of its first run.
        label: What tells its configuration from others in the same tables: the settings that
            differ or, where they are many, ``configuration``. Settings that have a column of
            their own are left out.
    """

    path: Path
    config: Config
    results: dict[str, Any]
    provenance: dict[str, Any]
    rounds: Sequence[dict[str, Any]] = ()
    configuration: str = ""
    label: str = ""

    @property
    def group(self) -> tuple[tuple[str, Scalar], ...]:
        """What two runs share when they differ in nothing but the seed."""
        return tuple(_settings(self.config).items())


def load_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read finished runs and label their configurations; a folder named twice counts once.

    Raises:
        NMoEError: A folder is no run, its run is not finished, its files are not readable or not
            of the right shape, each by name; or two repeat the same configuration and seed.
    """
    if not folders:
        raise NMoEError("name at least one run folder")
    runs, faults = [], []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        try:
            runs.append(_load(folder))
        except NMoEError as error:
            faults.append(error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        told = "".join(f"\n  {error}" for error in faults)
        raise NMoEError(f"{how_many(len(faults), 'folder')} cannot be reported:{told}")
    seen: dict[Any, Path] = {}
    for run in runs:
        other = seen.setdefault((run.group, run.config.run.seed), run.path)
        if other != run.path:
            raise NMoEError(
                f"{other} and {run.path} hold the same configuration and seed "
                f"{run.config.run.seed}: they are no independent runs, report one of them"
            )
    names: dict[Any, str] = {}
    for run in runs:
        names.setdefault(run.group, f"{len(names) + 1}-{run.config.run.name}")
    return label_runs([replace(run, configuration=names[run.group]) for run in runs])


def _named(config: Config, folder: Path) -> Config:
    """The configuration, with the variant's name for that of a run of a study.

    >>> run = Config.parse({"run.name": "seed-3", "run.seed": 3})
    >>> [_named(run, Path(at)).run.name for at in ("/r/s/top-1/seed-3", "/r/s/base/seed-3", "/r/x")]
    ['top-1', 's', 'seed-3']
    """
    if folder.name != f"seed-{config.run.seed}":
        return config
    variant, study = folder.parent.name, folder.parent.parent.name
    name = study if variant == "base" and study else variant
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def _load(folder: Path) -> FinishedRun:
    if not folder.is_dir():
        raise NMoEError(f"{folder} is not a folder")
    if not is_run(folder):
        found = (path.parent for place in _BELOW for path in folder.glob(f"{place}/config.toml"))
        inner = sorted(path.relative_to(folder).as_posix() for path in found)
        hint = f"; name those in it: {', '.join(inner[:_MOST_NAMED])}" if inner else ""
        more = ", ..." if len(inner) > _MOST_NAMED else ""
        raise NMoEError(f"{folder} is not a run folder: it has no config.toml{hint}{more}")
    run = RunFolder.resume(folder)
    if not run.results_path.is_file():
        raise NMoEError(
            f"the run in {folder} is not finished: it has no results.json; "
            f"finish it with {command_line('nmoe', 'run', '--resume', folder)}"
        )
    return FinishedRun(
        folder,
        _named(run.config, folder.resolve()),
        read_results(run.results_path),
        read_provenance(folder),
        read_rounds(run.rounds_path),
    )


def differing_settings(runs: Sequence[FinishedRun]) -> dict[str, dict[str, str]]:
    """Every setting in which configurations differ: its values by configuration."""
    groups = {run.configuration: _settings(run.config) for run in runs}
    keys = {key: None for settings in groups.values() for key in settings}
    table = {key: {name: _text(key, of.get(key)) for name, of in groups.items()} for key in keys}
    found = {key: values for key, values in table.items() if len(set(values.values())) > 1}
    return {k: v for k, v in found.items() if k not in _OF_THE_DATA or "data.dataset" not in found}


def _settings(config: Config) -> dict[str, Scalar]:
    """The settings that decide the outcome, seed apart; those without effect are left out."""
    idle = {key for scheme, key in _SCHEME_KEYS.items() if scheme != config.data.scheme}
    return {
        key: value
        for key, value in config.flat().items()
        if key not in FREE_KEYS and key not in idle and key != "run.seed"
    }


def _text(key: str, value: Scalar | None) -> str:
    """A value for a table; of a data folder its name."""
    if key == "data.dataset" and Path(str(value)).is_absolute():
        return Path(str(value)).name
    return "-" if value is None or value == "" else str(value)


def label_runs(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The runs, each labelled by what tells its configuration from the others of ``runs``."""
    several = len({run.config.data.dataset for run in runs}) > 1
    always = {"data.alpha", "data.classes-per-client", *(["data.dataset"] if several else [])}
    labels: dict[str, str] = {}
    for place in dict.fromkeys(_place(run.config) for run in runs):
        rivals = [run for run in runs if _place(run.config) == place]
        keys = always.union(differing_settings(rivals)) - _SHOWN_KEYS
        texts = {run.configuration: _describe(run.config, keys) for run in rivals}
        clear = len(set(texts.values())) == len(texts)
        short = all(text.count(" = ") <= _MOST_NAMED for text in texts.values())
        labels |= texts if clear and short else {name: name for name in texts}
    return [replace(run, label=labels[run.configuration]) for run in runs]


def _place(config: Config) -> tuple[str, ...]:
    """Where a run stands in tables."""
    return tuple(str(_settings(config).get(key)) for key in sorted(_SHOWN_KEYS))


def _describe(config: Config, keys: Iterable[str]) -> str:
    settings = _settings(config)
    wanted = [key for key in settings if key in set(keys)]
    return ", ".join(f"{key} = {_text(key, settings[key])}" for key in wanted)


def seeds_in_words(seeds: Sequence[int], *, averaged: bool = True) -> str:
    """What a figure of one configuration stands for.

    >>> seeds_in_words([4]), seeds_in_words([0, 2, 1]), seeds_in_words([0, 2], averaged=False)
    ('seed 4', 'mean of 3 seeds: 0, 2, 1', 'seed 0, the first of 2 seeds')
    """
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if averaged:
        return f"mean of {len(seeds)} seeds: {', '.join(map(str, seeds))}"
    return f"seed {seeds[0]}, the first of {len(seeds)} seeds"
