"""Where a run of a study is: in the folder of runs, or where it finished before."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nmoe_flower.backbone_files import TRANSFORMERS
from nmoe_flower.begun import is_run, read_origin
from nmoe_flower.config import Config
from nmoe_flower.errors import NMoEError
from nmoe_flower.results import FREE_KEYS, PATH_KEYS, RunFolder
from nmoe_flower.study.product import StudyRun
from nmoe_flower.study.share import FILLED_IN

__all__ = ["differing", "fingerprint_in", "folder_of"]


def folder_of(run: StudyRun, runs: Path, finished: Sequence[Path] = ()) -> Path:
    """The folder of a run; what the folder of runs holds goes before all others.

    Args:
        run: The run.
        runs: The folder that holds the study's folder.
        finished: Folders like it, of runs that finished elsewhere, as ``results``. Of these a run
            with the settings of this one counts, and no other.

    Returns:
        A folder that holds the run, or else the one below ``runs`` where it would be.
    """
    own = runs / run.place
    if not is_run(own):
        for root in finished:
            there = root / run.place
            if is_run(there) and (there / "results.json").is_file() and _is(run, there):
                return there
    return own


def _is(run: StudyRun, folder: Path) -> bool:
    with suppress(NMoEError):
        there = RunFolder.resume(folder).config.flat()
        return not differing(run.config, there, fingerprint_in(folder))
    return False


def differing(asked: Config, there: Mapping[str, Any], fingerprint: str = "") -> list[str]:
    """Keys in which settings differ, with both values.

    Where data and weights lie is the machine's affair; a run fills in what its data say. Data are
    the same if their fingerprints are. Where one is not known, two names of data differ, and a
    folder may hold what any name means.

    Args:
        asked: The settings of a study's run.
        there: Those that are there, by dotted key.
        fingerprint: What the data of the run that is there are known by; empty: it is not known.
    """
    return [
        *_other_data(asked, str(there["data.dataset"]), fingerprint),
        *_other_settings(asked, there),
    ]


def fingerprint_in(folder: Path) -> str:
    """The fingerprint of the data of the run in a folder; empty: not known, or several."""
    with suppress(NMoEError):
        told = read_origin(folder).get("data")
        return told if isinstance(told, str) and "," not in told else ""
    return ""


def _other_data(asked: Config, there: str, fingerprint: str) -> list[str]:
    from nmoe_flower.data import known_fingerprint

    ours, known = asked.data.dataset, known_fingerprint(asked) if fingerprint else ""
    if not known:
        differ = ours != there and not (_is_a_place(ours) or _is_a_place(there))
        return [f"data.dataset = {there!r}, the study has {ours!r}"] if differ else []
    if known == fingerprint:
        return []
    return [
        f"data.dataset = {there!r} with the fingerprint {fingerprint[:12]}, the study has {ours!r} "
        f"with {known[:12]}"
    ]


def _is_a_place(name: str) -> bool:
    """Whether a data set is a folder or a file, and no name: not of the package nor of the hub."""
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    return name != "digits" and (looks_local or Path(name).expanduser().exists())


def _lie_elsewhere(key: str, ours: str, there: str) -> bool:
    """Whether values tell where something lies, and not what it is.

    A tokenizer and a backbone are also known by names, and two of these differ.
    """
    if key == "extractor.backbone":
        if not (ours.startswith(TRANSFORMERS) and there.startswith(TRANSFORMERS)):
            return False
        ours, there = ours.removeprefix(TRANSFORMERS), there.removeprefix(TRANSFORMERS)
    elif key != "text.tokenizer":
        return key in PATH_KEYS
    return _is_a_place(ours) and _is_a_place(there)


def _other_settings(asked: Config, there: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} = {there[key]!r}, the study has {value!r}"
        for key, value in asked.flat().items()
        if key not in FREE_KEYS
        and value != there[key]
        and not _lie_elsewhere(key, str(value), str(there[key]))
        and not (key in FILLED_IN and not value)
    ]
