"""TensorBoard: event files in the run folder, for ``tensorboard --logdir RUN_DIR``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmoe_flower.tracking.tracker import (
    Outcome,
    TrackedRound,
    TrackedRun,
    final_metrics,
    final_table,
)

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoard"]


class TensorBoard:
    """A `Tracker` that writes ``tensorboard/`` into the run folder.

    Scalars are the numbers of rounds and, at step 0, of the final table; the configuration, where
    the run comes from and the table are texts; figures are images.
    """

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def begin(self, run: TrackedRun, known: Mapping[str, str]) -> Mapping[str, str]:
        """Open an event file; those of the last start stay beside it."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"))
        if not known:
            self._writer.add_text("config", _code(run.config))
            self._writer.add_text("provenance", _code(run.labels()))
        return {"folder": "tensorboard"}

    def rounds(self, rounds: Sequence[TrackedRound]) -> None:
        """Add scalars."""
        assert self._writer is not None
        for one in rounds:
            for name, value in one.metrics.items():
                self._writer.add_scalar(name, value, one.round, walltime=one.time)
        self._writer.flush()

    def finish(self, results: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """Add the table as scalars and as text, and the figures."""
        assert self._writer is not None
        for name, value in final_metrics(results).items():
            self._writer.add_scalar(name, value, 0)
        self._writer.add_text("results", _table(results))
        for path in figures:
            if path.suffix == ".png":
                self._writer.add_image(f"figures/{path.stem}", _pixels(path), dataformats="HWC")

    def close(self, outcome: Outcome) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def _code(values: Mapping[str, Any]) -> str:
    """JSON, as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in json.dumps(values, indent=2).splitlines())


def _table(results: Mapping[str, Any]) -> str:
    columns, rows = final_table(results)
    lines = [columns, ["---"] * len(columns), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
