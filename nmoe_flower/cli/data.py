"""Opening a recipe's data for the commands."""

from nmoe_flower.config import Config
from nmoe_flower.data import ClientIndices, ImageData, configured_images, configured_partition
from nmoe_flower.progress import Progress

__all__ = ["open_data"]


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

    data = configured_images(config, progress=decoded)
    return data, configured_partition(config, data, num_clients=section.num_clients)
