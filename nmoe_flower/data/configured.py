"""The data that a configuration asks for: its images, and every client's share of them."""

from typing import TYPE_CHECKING

from nmoe_flower.data.datasets import load_images
from nmoe_flower.data.decode import Progress
from nmoe_flower.data.images import ImageData
from nmoe_flower.data.indices import ClientIndices
from nmoe_flower.data.partition import partition_clients

if TYPE_CHECKING:
    from nmoe_flower.config import Config

__all__ = ["configured_images", "configured_partition"]


def configured_images(config: "Config", *, progress: Progress | None = None) -> ImageData:
    """Open the data set of ``config``. See ``load_images``, also for what it raises."""
    section = config.data
    return load_images(
        section.dataset,
        cache_dir=section.cache_dir or None,
        image_column=section.image_column,
        label_column=section.label_column,
        train_split=section.train_split,
        test_split=section.test_split,
        progress=progress,
    )


def configured_partition(
    config: "Config", data: ImageData, *, num_clients: int
) -> list[ClientIndices]:
    """Share ``data`` out as ``config`` asks. See ``partition_clients``, also for what it raises."""
    section = config.data
    return partition_clients(
        data,
        scheme=section.scheme,
        num_clients=num_clients,
        tau=section.tau,
        alpha=section.alpha,
        classes_per_client=section.classes_per_client,
        train_per_client=section.train_per_client,
        test_per_client=section.test_per_client,
        seed=config.run.seed,
        cache_dir=section.cache_dir or None,
    )
