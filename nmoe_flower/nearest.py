"""The best of many embeddings for a query, by inner product: exact, or by an index.

Gates, shortlists and routers ask the same question: which of N experts fit this latent? One matrix
product answers it up to some 10^5 embeddings; beyond, cells pay (``python -m benchmarks.nearest``
measures both). A cell holds the embeddings near one centre, and a query visits only the best cells
(Jégou, Douze and Schmid, 2011); Faiss does that.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.errors import ConfigError
from nmoe_flower.installation import install_hint

__all__ = ["EXACT_UP_TO", "Index", "topk"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_METHODS = ("auto", "exact", "cells")
EXACT_UP_TO = 100_000
"""Embeddings up to which ``auto`` stays exact: a query takes about a millisecond there."""

_QUERIES, _COLUMNS = 1024, 4096  # scores of one block: 16 MB
_ROWS = 64  # queries whose candidates are sorted at once: all of a block's scores may be equal
_TUNED_ON, _TUNED_K = 256, 10
_TRAINED_ON = 64  # embeddings per cell that place its centre


def topk(queries: npt.ArrayLike, embeddings: npt.ArrayLike, k: int) -> tuple[Ints, Floats]:
    """The ``k`` embeddings of the largest inner product with each query, best first; exact.

    Works through blocks, so memory beyond the arguments stays below 50 MB, whatever N and Q are.
    Equal scores come in order of their number. For many calls on the same embeddings, `Index`
    checks them once and may answer faster.

    Args:
        queries: Latents to find embeddings for, float [Q, d].
        embeddings: One row per expert, float [N, d].
        k: How many to find, 1 to N.

    Returns:
        Their numbers, int64 [Q, k], and their scores, float32 [Q, k].

    Raises:
        ConfigError: Shapes do not fit, a number or a score is not finite in float32, or ``k`` is
            out of range.

    >>> found, scores = topk([[1.0, 0.0]], [[0.5, 1.0], [2.0, 0.0], [1.0, 9.0]], 2)
    >>> found.tolist(), scores.tolist()
    ([[1, 2]], [[2.0, 1.0]])
    """
    return Index(embeddings, method="exact").topk(queries, k)


class Index:
    """Embeddings made ready for many queries.

    Args:
        embeddings: One row per expert, float [N, d].
        method: ``exact``; ``cells``: an index that finds nearly all (extra ``index``); ``auto``:
            cells above `EXACT_UP_TO` embeddings where Faiss is installed, else exact.
        recall: Share of the true best 10 that ``cells`` must find for ``sample``, above 0, up to 1:
            it visits as many cells as that takes.
        sample: Queries like those to come, float [S, d], to measure recall with; some of the
            embeddings by default.

    Attributes:
        method: ``exact`` or ``cells``: which it is.
        recall: What was measured on the sample; 1 if exact.

    Raises:
        ConfigError: Values as in `topk`, an unknown method, or Faiss is missing for ``cells``.
    """

    def __init__(
        self,
        embeddings: npt.ArrayLike,
        *,
        method: str = "auto",
        recall: float = 0.99,
        sample: npt.ArrayLike | None = None,
    ) -> None:
        if method not in _METHODS:
            raise ConfigError(f"method {method!r} is unknown; allowed: {', '.join(_METHODS)}")
        if not 0 < recall <= 1:
            raise ConfigError(f"recall is {recall}; allowed: above 0, up to 1")
        self._embeddings = _matrix("embeddings", embeddings)
        if not self._embeddings.size:
            raise ConfigError(f"embeddings have shape {self._embeddings.shape}; allowed: [N, d]")
        self.method, self.recall = "exact", 1.0
        if method == "cells" or (method == "auto" and len(self) > EXACT_UP_TO and _faiss()[0]):
            like = self._embeddings if sample is None else self._fitting(sample)
            if not len(like):
                raise ConfigError("sample has no queries; allowed: at least one, or None")
            self._cells = _build(self._embeddings)
            self.recall = self._tune(like[:: -(-len(like) // _TUNED_ON)], recall)
            self.method = "cells"

    def __len__(self) -> int:
        """Number of embeddings N."""
        return len(self._embeddings)

    def topk(self, queries: npt.ArrayLike, k: int) -> tuple[Ints, Floats]:
        """As `nmoe_flower.nearest.topk`; by cells, some of the best may be missing."""
        asked = self._fitting(queries)
        if isinstance(k, bool) or k != int(k) or not 1 <= k <= len(self):
            raise ConfigError(f"k is {k}; allowed: 1 to {len(self)}, the number of embeddings")
        if self.method == "exact":
            return self._exact(asked, int(k))
        scores, found = self._cells.search(asked, int(k))
        few = np.flatnonzero(found[:, -1] < 0)  # the cells visited hold fewer than k
        if len(few):
            found[few], scores[few] = self._exact(asked[few], int(k))
        return found, scores

    def _fitting(self, queries: npt.ArrayLike) -> Floats:
        asked = _matrix("queries", queries)
        own = self._embeddings.shape[1]
        if asked.shape[1] != own:
            raise ConfigError(f"queries have {asked.shape[1]} dimensions; the embeddings {own}")
        return asked

    def _exact(self, queries: Floats, k: int) -> tuple[Ints, Floats]:
        found = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float32)
        for start in range(0, len(queries), _QUERIES):
            rows = slice(start, start + _QUERIES)
            found[rows], scores[rows] = _best(queries[rows], self._embeddings, k)
        return found, scores

    def _tune(self, sample: Floats, goal: float) -> float:
        """Double the cells to visit until recall is reached; the recall, which all cells give."""
        k = min(_TUNED_K, len(self))
        true, _ = self._exact(sample, k)
        visited = 1
        while True:
            self._cells.nprobe = visited
            _, found = self._cells.search(sample, k)
            hit = (found[:, :, None] == true[:, None, :]).any(axis=2).mean()
            if hit >= goal or visited >= self._cells.nlist:
                return float(hit)
            visited = min(2 * visited, self._cells.nlist)


def _best(queries: Floats, embeddings: Floats, k: int) -> tuple[Ints, Floats]:
    """`topk` of one block of queries; of later embeddings, few beat the best so far.

    Raises:
        ConfigError: A score is too large for float32.
    """
    found = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    step = max(k, _COLUMNS)
    for start in range(0, len(embeddings), step):
        with np.errstate(over="ignore", invalid="ignore"):
            part = queries @ embeddings[start : start + step].T
            fine = np.isfinite(part.sum()) or np.isfinite(part).all()
        if not fine:
            raise ConfigError("queries and embeddings are so large that scores overflow float32")
        for top in range(0, len(queries), _ROWS):
            some = slice(top, top + _ROWS)
            least = scores[some, -1] if start else np.partition(part[some], -k, axis=1)[:, -k]
            beat = part[some] > least[:, None] if start else part[some] >= least[:, None]
            row, column = np.nonzero(beat)
            ids, values = start + column, part[some][row, column]
            if start and len(row):
                row = np.concatenate([np.repeat(np.arange(len(least)), k), row])
                ids = np.concatenate([found[some].ravel(), ids])
                values = np.concatenate([scores[some].ravel(), values])
            if len(row):
                found[some], scores[some] = _first(row, ids, values, k)
    return found, scores


def _first(rows: Ints, found: Ints, scores: Floats, k: int) -> tuple[Ints, Floats]:
    """The best k of each row, [rows, k]; all rows are there, with at least k each."""
    order = np.lexsort((found, -scores, rows))
    begins = np.flatnonzero(np.diff(rows[order], prepend=-1))
    kept = order[begins[:, None] + np.arange(k)]
    return found[kept], scores[kept]


def _matrix(name: str, value: npt.ArrayLike) -> Floats:
    matrix = np.asarray(value)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iuf":
        raise ConfigError(
            f"{name} have shape {matrix.shape} and type {matrix.dtype}; allowed: numbers [N, d]"
        )
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(matrix, dtype=np.float32)
    for start in range(0, len(single), _COLUMNS):
        fine = np.isfinite(single[start : start + _COLUMNS]).all(axis=1)
        if not fine.all():
            row = start + int(np.argmin(fine))
            raise ConfigError(f"row {row} of {name} is not finite in float32; allowed: numbers")
    return single


def _faiss() -> tuple[Any, str]:
    """The library, or None and why it cannot be loaded; the reason is empty if it is not there."""
    try:
        import faiss
    except ImportError as error:
        return None, "" if error.name == "faiss" else f" ({error})"
    except Exception as error:  # a broken one raises what it likes
        return None, f" ({type(error).__name__}: {error})"
    return faiss, ""


def _build(embeddings: Floats) -> Any:
    faiss, reason = _faiss()
    if faiss is None:
        raise ConfigError(
            f"method 'cells' needs Faiss{reason}: {install_hint('index')}; allowed without it: "
            "'exact'"
        )
    size, width = embeddings.shape
    cells = max(1, min(size, int(4 * size**0.5)))
    index = faiss.index_factory(width, f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _TRAINED_ON, 1
    index.cp.niter = 8
    index.train(embeddings)
    index.add(embeddings)
    return index
