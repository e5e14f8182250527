"""pFedMoAP's two halves: the nearest heads are sent and stay; the gate weighs rows of heads."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from nmoe_flower.baselines.pfedmoap import PeerHeads, PooledHeads, attended
from nmoe_flower.baselines.row_attention import RowAttention
from nmoe_flower.models import Expert
from nmoe_flower.records import NUM_EXAMPLES
from tests.strategies.test_partial_experts import round_of


def head(value: float) -> dict[str, np.ndarray]:
    return {"expert.0.w": np.full(3, value, np.float32)}


def pooled(neighbours: int = 2) -> PooledHeads:
    strategy = PooledHeads(neighbours)
    strategy.pool = {client: head(at) for client, at in enumerate((0.0, 5.0, 1.0, -2.0))}
    return strategy


def test_the_nearest_are_told_by_their_heads_and_not_by_their_places() -> None:
    strategy = pooled()
    assert strategy.nearest([0, 1]) == {0: [2, 3], 1: [2, 0]}
    assert strategy.nearest([7]) == {}  # its first round
    strategy.assign([0, 7], 1)
    beside = strategy.beside(0)
    assert [float(value[0]) for value in beside.values()] == [1.0, -2.0]
    assert strategy.beside(7) == {}
    assert PooledHeads(0).nearest([0]) == {}
    assert pooled(0).nearest([0]) == {0: []}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 12), st.floats(0, 1e3))
def test_one_product_finds_the_neighbours_that_each_distance_finds(
    seed: int, clients: int, neighbours: int, common: float
) -> None:
    """Also where heads have much in common; of heads that are as near as float32 tells, any."""
    draws, strategy = np.random.default_rng(seed), PooledHeads(neighbours)
    for client in draws.permutation(40)[:clients].tolist():
        own = {"expert.0.w": draws.normal(size=(10, 6)), "expert.0.b": draws.normal(size=10)}
        strategy.pool[client] = {name: (common + v).astype(np.float32) for name, v in own.items()}
    found = strategy.nearest(list(strategy.pool))
    assert found.keys() == strategy.pool.keys()
    for client, mine in strategy.pool.items():
        apart = {
            other: sum(np.square(np.float64(head[name]) - mine[name]).sum() for name in head)
            for other, head in strategy.pool.items()
            if other != client
        }
        assert len(set(found[client])) == min(neighbours, clients - 1)
        np.testing.assert_allclose(
            [apart[other] for other in found[client]],
            sorted(apart.values())[:neighbours],
            rtol=1e-4,
        )


@pytest.mark.parametrize("factor", [1e37, 1e25, 1e-25])
def test_the_size_of_weights_changes_no_neighbours(factor: float) -> None:
    """Finite weights end no run, however large their squares are."""
    strategy = pooled()
    wanted = strategy.nearest(range(4))
    strategy.pool = {
        client: {name: (value * factor).astype(np.float32) for name, value in own.items()}
        for client, own in strategy.pool.items()
    }
    assert strategy.nearest(range(4)) == wanted


def test_of_heads_that_are_equal_the_lower_numbers_are_nearest() -> None:
    strategy = PooledHeads(2)
    strategy.pool = {client: head(1.5) for client in (5, 3, 9, 4)}
    assert strategy.nearest([4, 9]) == {4: [3, 5], 9: [3, 4]}


def test_heads_are_averaged_pooled_and_survive() -> None:
    strategy = PooledHeads(1)
    answers = {i: (head(1.0 + 2 * i), {NUM_EXAMPLES: 1 + 2 * i}) for i in range(2)}
    found = round_of(strategy, 2, answers)
    np.testing.assert_allclose(found["expert.0.w"], (1.0 + 3 * 3.0) / 4)
    assert {client: float(own["expert.0.w"][0]) for client, own in strategy.pool.items()} == {
        1: 1.0,
        2: 3.0,
    }
    other = PooledHeads(1)
    other.load_state(strategy.state())
    assert other.nearest([1]) == strategy.nearest([1]) == {1: [2]}
    np.testing.assert_array_equal(other.pool[2]["expert.0.w"], strategy.pool[2]["expert.0.w"])


def test_a_neighbours_head_in_a_reply_is_refused() -> None:
    strategy = pooled()
    stolen = {**head(1.0), "peer.0.expert.0.w": np.zeros(3, np.float32)}
    round_of(strategy, 2, {0: (stolen, {NUM_EXAMPLES: 1}), 1: (head(2.0), {NUM_EXAMPLES: 1})})
    (failure,) = strategy.last_exchange.failures
    assert re.search(r"'peer\.0\.expert\.0\.w' was not assigned", failure["reason"])
    assert float(strategy.pool[1]["expert.0.w"][0]) == 5.0  # as before


def split(rows: torch.Tensor) -> PeerHeads:
    """Heads of rows [K - 1, C, D + 1] whose last number is the bias."""
    return PeerHeads(rows[..., :-1].contiguous(), rows[..., -1].contiguous())


@pytest.mark.parametrize("dim", [6, 130])
def test_the_gate_weighs_rows_and_does_not_heed_the_order_of_peers(dim: int) -> None:
    torch.manual_seed(0)
    own, peers, latents = Expert(dim, 4, hidden=()), torch.randn(3, 4, dim + 1), torch.randn(5, dim)
    gate = RowAttention(dim, features=128, parts=8, scale=10.0, dropout=0.1).eval()
    assert gate.query.in_features == (6 if dim == 6 else 65)  # strided
    rows = torch.randn(3, 4, dim)
    weights = gate(latents, rows)
    assert weights.shape == (5, 4, 3)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(5, 4))
    found = attended(own, split(peers), gate, latents)
    turned = split(peers[[2, 0, 1]])
    torch.testing.assert_close(attended(own, turned, gate, latents), found)
    torch.testing.assert_close(attended(own, None, None, latents), own(latents))
    same = torch.cat([own.layers[0].weight, own.layers[0].bias[:, None]], dim=1).expand(3, -1, -1)
    torch.testing.assert_close(attended(own, split(same), gate, latents), 1.5 * own(latents))


@pytest.mark.parametrize("training", [False, True])
def test_the_weights_are_those_of_attention_as_it_is_usually_written(training: bool) -> None:
    """Over a last dimension of heads, of which dropout, drawn in that order, leaves out some."""
    torch.manual_seed(0)
    latents, rows = torch.randn(5, 12), torch.randn(3, 4, 12)
    gate = RowAttention(12, features=128, parts=8, scale=10.0, dropout=0.1).train(training)
    asked = F.normalize(gate.query(latents).view(5, 4, 3), dim=2)  # gcd(8, 12) parts
    keys = F.normalize(gate.key(rows).view(3, 4, 4, 3), dim=3)
    shares = (10 * torch.einsum("bpe,kcpe->bpck", asked, keys)).softmax(dim=3)
    torch.manual_seed(1)
    expected = F.dropout(shares, 0.1, training).mean(dim=1)
    torch.manual_seed(1)
    torch.testing.assert_close(gate(latents, rows), expected)
    assert ((expected.sum(dim=2) - 1).abs() > 1e-3).any() == training


def test_what_others_say_may_be_known_before() -> None:
    torch.manual_seed(2)
    own, peers, latents = Expert(6, 4, hidden=()), split(torch.randn(3, 4, 7)), torch.randn(5, 6)
    gate = RowAttention(6, features=128, parts=8, scale=10.0, dropout=0.1).eval()
    said = peers.logits(latents)
    for at, one in enumerate(zip(peers.weights, peers.biases, strict=True)):
        torch.testing.assert_close(said[:, at], F.linear(latents, *one))
    known = attended(own, peers, gate, latents, others=said)
    torch.testing.assert_close(known, attended(own, peers, gate, latents))


def test_an_own_weight_beyond_all_bounds_is_the_own_head() -> None:
    """The mixture is a constant beside it: found / weight = own + mixed / weight."""
    torch.manual_seed(1)
    own, latents = Expert(6, 4, hidden=()), torch.randn(50, 6)
    peers = split(torch.randn(3, 4, 7))
    gate = RowAttention(6, features=128, parts=8, scale=10.0, dropout=0.1).eval()
    alone = own(latents)
    usual, great = (attended(own, peers, gate, latents, own_weight=w) for w in (0.5, 1e6))
    torch.testing.assert_close(usual, attended(own, peers, gate, latents))
    assert (usual.argmax(dim=1) != alone.argmax(dim=1)).any()  # the peers have a say
    torch.testing.assert_close(great / 1e6, alone, atol=1e-4, rtol=0)
    assert (great.argmax(dim=1) == alone.argmax(dim=1)).all()
