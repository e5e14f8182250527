"""The data of a run: opened before it begins, compared with what it began with when it goes on."""

from nmoe_flower.config import Config
from nmoe_flower.data import (
    ClientIndices,
    ImageData,
    configured_images,
    configured_partition,
    counted,
    what_changed,
)
from nmoe_flower.data.text import TextData, configured_text
from nmoe_flower.errors import CheckpointError, within
from nmoe_flower.plurals import how_many
from nmoe_flower.progress import Progress
from nmoe_flower.results import RunFolder

__all__ = ["open_data", "open_text", "remember_data"]

_OF_THE_PARTITION = (
    "num-clients",
    "scheme",
    "tau",
    "alpha",
    "classes-per-client",
    "train-per-client",
    "test-per-client",
    "validation-per-client",
)


def open_data(
    config: Config, progress: Progress, *, began: RunFolder | None = None
) -> tuple[ImageData, list[ClientIndices]]:
    """Decode the data set and share it out, so that no worker does and bad data stops here.

    Args:
        config: The run's configuration: ``[data]`` says which data, ``run.seed`` who holds what.
        progress: Told every tenth of the decoding.
        began: A run that is to go on; it must have begun with the same data.

    Raises:
        DataError: The data cannot be read, or not be split as asked.
        CheckpointError: ``began`` began with other data.
    """
    section = config.data
    shown = -1

    def decoded(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            what = {"images": "images", "text": "documents"}.get(section.kind, "rows")
            progress.message(f"decoding {section.dataset}: {done:,} of {total:,} {what}")

    natural = ", data.scheme = natural" if section.scheme == "natural" else ""
    with within(f"data.dataset = {section.dataset}{natural}"):
        data = configured_images(config, progress=decoded)
    if began is not None:
        _check_unchanged(began, data)
    if (told := data.tokenised) is not None:
        if told.empty:
            progress.message(
                f"note: {how_many(told.empty, 'document is', 'documents are')} left out: empty"
            )
        if told.shortened:
            progress.message(
                f"note: {how_many(told.shortened, 'document has', 'documents have')} more tokens "
                "than text.window = "
                f"{config.text.window}: their first {config.text.window} are read"
            )
    asked = ", ".join(
        f"{key} = {value}"
        for key, value in section.model_dump(by_alias=True).items()
        if key in _OF_THE_PARTITION
    )
    with within(f"data ({asked})"):
        return data, configured_partition(config, data, num_clients=section.num_clients)


def open_text(config: Config, progress: Progress, *, began: RunFolder | None = None) -> TextData:
    """Read the text and make tokens of it, so that no worker does and bad text stops here.

    Args:
        config: The run's configuration.
        progress: Told what was left out.
        began: A run that is to go on; it must have begun with the same text.

    Raises:
        DataError: The text cannot be read, or not be split as asked.
        CheckpointError: ``began`` began with other text.
    """
    shown = -1

    def read(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            progress.message(f"reading {config.data.dataset}: {done:,} of {total:,} documents")

    with within(f"data.dataset = {config.data.dataset}"):
        data = configured_text(config, progress=read)
    if began is not None:
        _check_unchanged(began, data)
    for reason, count in data.left_out.items():
        if count:
            progress.message(
                f"note: {how_many(count, 'document is', 'documents are')} left out: {reason}"
            )
    if data.unheld:
        held = config.data.shares
        progress.message(
            f"note: text of {', '.join(data.unheld)} is nobody's: {held} of the "
            f"{held + len(data.unheld)} in the data are clients (data.num-clients), those with "
            "most text"
        )
    return data


def remember_data(folder: RunFolder, data: ImageData | TextData) -> None:
    """Note in provenance.json what a run begins with."""
    folder.set_provenance(data=data.fingerprint, samples=_counted(data))


def _counted(data: ImageData | TextData) -> dict[str, dict[str, int]]:
    """Samples of each class, or windows of each domain, by split."""
    if isinstance(data, ImageData):
        return counted(data)
    return {
        name: {
            domain: int((split.domains == at).sum()) for at, domain in enumerate(data.domain_names)
        }
        for name, split in (("train", data.train), ("test", data.test))
    }


def _check_unchanged(folder: RunFolder, data: ImageData | TextData) -> None:
    """Refuse to go on with other data, telling which classes have more or fewer samples."""
    before = folder.provenance()
    then = before.get("data")
    if then in (None, data.fingerprint):  # a run of an older version did not note it
        return
    raise CheckpointError(
        f"{folder.path} was begun with other data in {data.name!r}: "
        f"{what_changed(before.get('samples', {}), _counted(data))}; put back what it was, or "
        "begin a new run"
    )
