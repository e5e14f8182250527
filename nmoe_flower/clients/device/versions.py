"""Arrays of a client as they were after certain rounds, so that a resumed run finds its own."""

from collections.abc import Iterable

import numpy as np

from nmoe_flower.clients.device.store import Store

__all__ = ["Versions"]


class Versions:
    """The group ``name`` of a store, one version per round."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, name

    def rounds(self) -> list[int]:
        """The rounds there is a version of, in order."""
        files = self.store.folder.glob(f"{self.name}-*.safetensors")
        return sorted(int(path.stem.removeprefix(f"{self.name}-")) for path in files)

    def save(self, server_round: int, arrays: dict[str, np.ndarray], *, sync: bool = False) -> None:
        """Keep arrays as the version of this round; with ``sync``, in spite of a power cut."""
        self.store.save(self._file(server_round), arrays, sync=sync)

    def load(self, server_round: int) -> dict[str, np.ndarray] | None:
        """The version of this round; None if there is none."""
        if not self.store.has(self._file(server_round)):
            return None
        return self.store.load(self._file(server_round))

    def prune(self, server_round: int, kept: Iterable[int]) -> None:
        """Drop versions older than this round, but those a run resumed after ``kept`` needs."""
        older = [r for r in self.rounds() if r < server_round]
        needed = {max((r for r in older if r <= last), default=0) for last in kept}
        for old in older:
            if old not in needed:
                self.store.drop(self._file(old))

    def _file(self, server_round: int) -> str:
        return f"{self.name}-{server_round:06d}"
