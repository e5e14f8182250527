"""Opening a recipe's data for the commands."""

from collections.abc import Iterator
from contextlib import contextmanager

from nmoe_flower.config import Config
from nmoe_flower.data import ClientIndices, ImageData, configured_images, configured_partition
from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.progress import Progress

__all__ = ["open_data"]

_OF_THE_PARTITION = (
    "num-clients",
    "scheme",
    "tau",
    "alpha",
    "classes-per-client",
    "train-per-client",
    "test-per-client",
)


def open_data(config: Config, progress: Progress) -> tuple[ImageData, list[ClientIndices]]:
    """Decode the data set and share it out, so that no worker does and bad data stops here.

    Raises:
        DataError: The data cannot be read, or not be split as asked.
    """
    section = config.data
    shown = -1

    def decoded(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            progress.message(f"decoding {section.dataset}: {done:,} of {total:,} images")

    natural = ", data.scheme = natural" if section.scheme == "natural" else ""
    with _under(f"data.dataset = {section.dataset}{natural}"):
        data = configured_images(config, progress=decoded)
    asked = ", ".join(
        f"{key} = {value}"
        for key, value in section.model_dump(by_alias=True).items()
        if key in _OF_THE_PARTITION
    )
    with _under(f"data ({asked})"):
        return data, configured_partition(config, data, num_clients=section.num_clients)


@contextmanager
def _under(keys: str) -> Iterator[None]:
    """Name the keys in what is raised inside."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"{keys}: {error}") from error
