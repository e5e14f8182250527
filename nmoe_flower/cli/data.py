"""Opening a recipe's data for the commands."""

from nmoe_flower.config import Config
from nmoe_flower.data import ClientIndices, ImageData, load_images, partition_clients
from nmoe_flower.progress import Progress

__all__ = ["open_data"]


def open_data(config: Config, progress: Progress) -> tuple[ImageData, list[ClientIndices]]:
    """Decode the data set and share it out, so that no worker does and bad data stops here.

    Raises:
        DataError: The data cannot be read, or not be split as asked.
    """
    section = config.data
    cache_dir = section.cache_dir or None
    shown = -1

    def decoded(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            progress.message(f"decoding {section.dataset}: {done:,} of {total:,} images")

    data = load_images(
        section.dataset,
        cache_dir=cache_dir,
        image_column=section.image_column,
        label_column=section.label_column,
        train_split=section.train_split,
        test_split=section.test_split,
        progress=decoded,
    )
    clients = partition_clients(
        data,
        scheme=section.scheme,
        num_clients=section.num_clients,
        tau=section.tau,
        alpha=section.alpha,
        classes_per_client=section.classes_per_client,
        train_per_client=section.train_per_client,
        test_per_client=section.test_per_client,
        seed=config.run.seed,
        cache_dir=cache_dir,
    )
    return data, clients
