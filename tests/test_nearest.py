"""The best embeddings are found exactly, whatever the blocks; cells find nearly all of them."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower import nearest
from nmoe_flower.errors import ConfigError
from nmoe_flower.nearest import Index, topk

RNG = np.random.default_rng(0)
FEW = RNG.standard_normal((50, 4)).astype(np.float32)


def clusters(size: int) -> np.ndarray:
    centres = RNG.standard_normal((20, 8))
    near: np.ndarray = centres[RNG.integers(0, 20, size)] + 0.2 * RNG.standard_normal((size, 8))
    return near.astype(np.float32)


@given(
    st.integers(1, 40), st.integers(0, 5), st.integers(1, 40), st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_topk_is_a_stable_sort(size: int, asked: int, k: int, block: int, seed: int) -> None:
    # Whole numbers: scores are exact and often equal, the first number wins.
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(-2, 3, (size, 3)).astype(np.float32)
    queries = rng.integers(-2, 3, (asked, 3)).astype(np.float32)
    k = min(k, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_COLUMNS", block)
        patch.setattr(nearest, "_QUERIES", 2)
        found, scores = topk(queries, embeddings, k)
    every = queries @ embeddings.T
    right = np.argsort(-every, axis=1, kind="stable")[:, :k]
    assert found.dtype == np.int64
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(found, right)
    np.testing.assert_array_equal(scores, np.take_along_axis(every, right, axis=1))


@pytest.mark.parametrize("slope", [0.0, 1e-3])
def test_memory_stays_below_50_mb_where_every_embedding_is_a_candidate(slope: float) -> None:
    """All scores are equal, or each beats all before it: 4 million candidates in a block."""
    embeddings = np.outer(1 + slope * np.arange(9000), np.ones(2)).astype(np.float32)
    queries = np.ones((1024, 2), np.float32)
    tracemalloc.start()
    try:
        found, _ = topk(queries, embeddings, 3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.tolist() == [[8999, 8998, 8997] if slope else [0, 1, 2]] * 1024
    assert peak < 50e6


def test_scores_that_overflow_are_refused_and_large_ones_are_not() -> None:
    with pytest.raises(ConfigError, match="overflow float32"):
        topk([[3e38, 3e38]], [[3e38, -3e38], [1, 1]], 1)
    assert topk([[1e38]], np.array([[1.0], [2.0], [3.0]]), 1)[0].tolist() == [
        [2]
    ]  # sum above 3.4e38


def test_cells_reach_the_recall_asked_for() -> None:
    embeddings = clusters(4000)
    queries = embeddings[:300] + 0.1
    index = Index(embeddings, method="cells", recall=0.95, sample=queries)
    found, scores = index.topk(queries, 10)
    true, _ = topk(queries, embeddings, 10)
    hit = (found[:, :, None] == true[:, None, :]).any(axis=2).mean()
    assert index.method == "cells"
    assert min(hit, index.recall) > 0.93
    np.testing.assert_allclose(
        scores, np.einsum("qd,qkd->qk", queries, embeddings[found]), rtol=1e-5, atol=1e-5
    )


def test_cells_with_fewer_than_k_inside_answer_in_full() -> None:
    index = Index(FEW, method="cells", recall=0.01)
    found, _ = index.topk(FEW[:3], 50)
    assert [sorted(row) for row in found.tolist()] == [list(range(50))] * 3


def test_auto_takes_cells_beyond_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Index(FEW).method == "exact"
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 49)
    assert Index(FEW).method == "cells"
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert Index(FEW).method == "exact"
    with pytest.raises(
        ConfigError, match=r"needs Faiss: pip install .*allowed without it: 'exact'"
    ):
        Index(FEW, method="cells")


@pytest.mark.parametrize("error", ["OSError('libgomp.so.1')", "AttributeError('_ARRAY_API')"])
def test_a_broken_library_is_as_none_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: str
) -> None:
    """It is there, and its import raises: a library it needs is missing, or another NumPy is."""
    (tmp_path / "faiss.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 49)
    assert Index(FEW).method == "exact"
    with pytest.raises(ConfigError, match=r"needs Faiss \((OSError: lib|AttributeError: _ARR)"):
        Index(FEW, method="cells")


BAD = np.array([[1.0, np.nan]])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: topk(FEW, FEW, 51), "k is 51; allowed: 1 to 50"),
        (lambda: topk(FEW, FEW, 0), "k is 0; allowed: 1 to 50"),
        (lambda: topk(FEW, FEW, 1.5), "k is 1.5; allowed"),  # type: ignore[arg-type]
        (lambda: topk(FEW[:, :3], FEW, 1), "queries have 3 dimensions; the embeddings 4"),
        (lambda: topk(FEW[0], FEW, 1), r"queries have shape \(4,\)"),
        (lambda: topk([["a"]], FEW, 1), "queries have shape .* type <U1"),
        (lambda: topk(BAD, BAD, 1), "row 0 of embeddings is not finite"),
        (lambda: topk(BAD, [[1, 1]], 1), "row 0 of queries is not finite"),
        (lambda: topk([[1.0]], [[1e39]], 1), "row 0 of embeddings is not finite in float32"),
        (lambda: Index(np.zeros((0, 4))), r"embeddings have shape \(0, 4\)"),
        (lambda: Index(FEW, method="tree"), "method 'tree' is unknown; allowed: auto, exact,"),
        (lambda: Index(FEW, recall=0), "recall is 0; allowed: above 0, up to 1"),
        (lambda: Index(FEW, method="cells", sample=FEW[:0]), "sample has no queries"),
    ],
)
def test_what_cannot_be_searched_is_refused(call, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=text):
        call()
