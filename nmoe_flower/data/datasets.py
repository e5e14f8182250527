"""Images decoded once to uint8 arrays on disk, which every worker maps into memory.

A warm cache opens in milliseconds, without importing ``datasets``, scikit-learn or torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nmoe_flower.data.cache import build_entry, cache_root, open_entry
from nmoe_flower.data.decode import Progress, decode
from nmoe_flower.data.images import ImageData
from nmoe_flower.data.pixels import Fit
from nmoe_flower.data.request import Request

__all__ = ["load_images"]


def load_images(
    dataset: str,
    *,
    cache_dir: Path | str | None = None,
    image_column: str = "",
    label_column: str = "",
    train_split: str = "train",
    test_split: str = "test",
    seed: int = 0,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    by_client: bool = False,
    client_column: str = "",
    kind: Literal["images", "features"] = "images",
    feature_columns: Sequence[str] = (),
    feature_means: Sequence[float] = (),
    feature_deviations: Sequence[float] = (),
    progress: Progress | None = None,
) -> ImageData:
    """Open a data set, decoding it into the cache on first use.

    ``dataset`` is ``"digits"`` (1,797 grey images of 8 x 8 pixels that ship inside scikit-learn), a
    local folder of images (``train/CLASS/*.png``), any other folder that ``datasets`` can read
    (parquet, saved to disk), or a name on the Hugging Face hub. The last two need the extra
    ``data``. Data without a test split is split 80/20, stratified.

    A local folder is decoded again when a file below it, or below a folder it links to, changes; a
    hub name is not.

    Args:
        dataset: What to open.
        cache_dir: See ``cache_root``.
        image_column: Column of the images; "" finds it by its type, then by common names.
        label_column: Column of the labels; "" finds it the same way.
        train_split: Name of the train split.
        test_split: Name of the test split; "" always takes the test images from the train split.
        seed: Seed of the 80/20 split only. Keep it fixed, so that all runs are tested alike.
        size: (width, height) that all images are brought to; None: they must have one size.
        fit: How: scaled until it covers and cut at the centre (``crop``), scaled until it fits and
            framed in black (``pad``), or each side on its own (``stretch``).
        by_client: Keep who each row belongs to, for the scheme ``natural``.
        client_column: The column that says so; "" takes the folder above the class.
        kind: ``features`` reads a table of numbers instead, see ``read_table`` for the files; its
            rows are standardised, and look like images of one pixel with a channel per column.
        feature_columns: Columns of a table; () takes all beside label and client, which must be
            numbers.
        feature_means: Subtracted from the columns; () takes the means of the train split.
        feature_deviations: What columns are divided by; likewise.
        progress: Called with (images decoded, images in all) while decoding.

    Raises:
        DataError: The data is missing, empty, unreadable, without labels, of mixed image sizes or
            has fewer than 2 classes; or the cache cannot be written.
    """
    request = Request(
        dataset,
        image_column,
        label_column,
        train_split,
        test_split,
        seed,
        size,
        fit,
        by_client,
        client_column if by_client or kind == "features" else "",
        kind,
        tuple(feature_columns),
        tuple(feature_means),
        tuple(feature_deviations),
    )
    entry = cache_root(cache_dir) / "images" / request.key()
    report = progress or (lambda done, total: None)
    return open_entry(entry, dataset) or build_entry(
        entry, dataset, lambda building: decode(request, building, report)
    )
