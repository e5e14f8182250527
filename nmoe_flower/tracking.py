"""Round records as TensorBoard scalars, beside whatever else shows them."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmoe_flower.errors import NMoEError
from nmoe_flower.installation import install_hint
from nmoe_flower.progress import Progress

__all__ = ["TensorBoard", "require_tensorboard"]


def require_tensorboard() -> None:
    """Refuse to begin what could not be tracked.

    Raises:
        NMoEError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise NMoEError(f"tracking needs TensorBoard: {install_hint('tracking')}")


class TensorBoard:
    """A ``Progress`` that also writes every number of a record as ``<stage>/<name>``.

    Args:
        folder: Folder of the event files, for ``tensorboard --logdir <folder>``.
        progress: Gets everything too.

    Raises:
        NMoEError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))
        self._progress = progress

    def update(self, record: Mapping[str, Any]) -> None:
        """Write the record's metrics, its cost and how many clients failed."""
        numbers = {
            **record["metrics"],
            "seconds": record["seconds"],
            "bytes": record["bytes_up"] + record["bytes_down"],
            "failures": len(record["failures"]),
        }
        for name, value in numbers.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{record['stage']}/{name}", value, record["round"])
        self._progress.update(record)

    def answered(self, stage: str, count: int, clients: int) -> None:
        """Pass on how many clients have answered."""
        self._progress.answered(stage, count, clients)

    def message(self, text: str) -> None:
        """Pass a line of text on."""
        self._progress.message(text)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()
        self._progress.close()
