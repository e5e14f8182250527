"""Text between peers: scored and written as the whole model in one process would."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from nmoe_flower.errors import ConfigError, DataError
from nmoe_flower.inference.ask.text_peers import HERE, Source, sources
from nmoe_flower.inference.bundle import OF_ALL
from nmoe_flower.inference.serve import RefusedError
from nmoe_flower.models import Chunks, text_routes, unigram_scores

Make = Callable[..., Any]
ACROSS = "klmklmklkmklmkmk"  # device 1's letters


def mixed(village: Any, tokens: np.ndarray, chunks: Chunks, top_k: int = 1) -> np.ndarray:
    """What the pipeline says of the same windows: all experts score all, then they are mixed."""
    nats = np.stack([village.nats(expert, tokens) for expert in range(3)], axis=1)
    frequencies = village.bundles[0].frequencies()
    scores = chunks.scores(unigram_scores(tokens, frequencies))
    return chunks.loss(nats, *text_routes(scores, top_k))


@pytest.mark.parametrize(
    ("send", "encoding", "apart"),
    [
        ("tokens", "float16", 1e-4),
        ("hidden", "float32", 2e-3),  # offsets travel as float16
        ("hidden", "float16", 2e-2),
        ("hidden", "int8", 0.5),
    ],
)
def test_peers_score_as_the_pipeline_does(
    village: Make, windows: np.ndarray, send: str, encoding: str, apart: float
) -> None:
    made = village(query__send="tokens")
    made.serve(1, 2)
    client = made.client(send=send, encoding=encoding)
    for chunks, top_k in ((Chunks(40, 8), 1), (Chunks(40, 8, 4, 6), 2)):
        client._top_k = top_k
        found = client.score_windows(windows, chunks)
        np.testing.assert_allclose(found.nats, mixed(made, windows, chunks, top_k), atol=apart)
        assert found.peers.keys() == {0, 1, 2}
        assert found.peers[1] == ["peer-1"]
        assert found.peers[0] == ["self"]


@pytest.mark.parametrize("candidates", [0, 2])
def test_the_posterior_weighs_peers_anew_at_each_token(
    village: Make, windows: np.ndarray, candidates: int
) -> None:
    """Token by token: each expert that is asked counts by what it made of all tokens before."""
    made = village(
        gate="posterior", gate__methods="unigram,posterior", text__candidates=candidates,
        query__send="tokens",
    )  # fmt: skip
    made.serve(1, 2)
    found = made.client(send="tokens").score_windows(windows)
    scores = unigram_scores(windows[:, :8], made.bundles[0].frequencies()).sum(axis=2)
    nats = np.stack([made.nats(expert, windows) for expert in range(3)], axis=1).astype(float)
    asked = np.argsort(-scores, axis=1, kind="stable")[:, : candidates or 3]
    assert np.array_equal(found.asked[:, 0], asked)
    for row, who, told in zip(nats, asked, found.nats, strict=True):
        log_shares = np.zeros(len(who))
        for place, lost in enumerate(row[who].T):
            if place >= 7:  # before, the prefix is read
                shares = np.exp(log_shares - log_shares.max())
                wanted = -np.log(shares @ np.exp(-lost) / shares.sum())
                assert told[place] == pytest.approx(wanted, abs=1e-4)
            log_shares -= lost
    pieces = list(made.client(send="tokens").generate(ACROSS, 3))
    assert {piece.peer for piece in pieces} == {"peer-1"}  # one writes


def test_experts_beside_the_feed_forward_parts_are_asked_alike(
    village: Make, windows: np.ndarray
) -> None:
    made = village(expert__kind="ffn")
    made.serve(1)
    client, own = made.client(encoding="float32"), windows[1::3]  # device 1's letters
    found = client.score_windows(own)
    np.testing.assert_allclose(found.nats, made.nats(1, own), atol=2e-3)
    assert found.peers == {1: ["peer-1"]}
    tokens = [piece.token for piece in client.generate(ACROSS, 6)]
    assert tokens == made.greedy(1, list(ACROSS.encode()), 6)


def test_what_was_trained_in_bfloat16_is_asked_in_it(village: Make, windows: np.ndarray) -> None:
    """Halves compute in the precision of the whole, and its frozen layers are kept in it."""
    made = village(run__precision="bf16")
    made.serve(1)
    own = windows[1::3]  # device 1's letters
    found = made.client(encoding="float32").score_windows(own)
    with torch.autocast("cpu", torch.bfloat16):
        whole = made.nats(1, own)
    np.testing.assert_allclose(found.nats, whole, atol=0.1)


def test_what_travels_is_told_and_float16_halves_it(village: Make, windows: np.ndarray) -> None:
    made = village()
    made.serve(1, 2)
    costs = {}
    for encoding in ("float32", "float16", "int8"):
        client = made.client(encoding=encoding)
        costs[encoding] = client.score_windows(windows).cost.up
    rows, width = 4 * 39, 32  # two windows to each of two peers, all tokens but the last
    for encoding, size in (("float32", 4), ("float16", 2), ("int8", 1)):
        scales = 4 * rows if encoding == "int8" else 0
        assert costs[encoding] == pytest.approx(rows * width * size + scales, abs=120)


def test_a_long_text_is_scored_once_from_its_prefix_on(village: Make) -> None:
    """Windows overlap by the prefix, so that every later token counts once."""
    client = village().client()
    text = "abcab" * 21 + "a"
    found = client.score(text)
    assert (found.tokens, found.bytes, found.prefix) == (98, 98, 8)
    assert found.experts == {0: 1.0}
    assert found.answered_by == {"0": ["self"]}
    assert found.fallback is None
    assert found.cost.up == 0
    assert found.perplexity == pytest.approx(2**found.bits_per_byte, rel=1e-5)


def test_a_short_text_gives_half_of_itself(village: Make) -> None:
    assert village().client().score("abcab").prefix == 2


def test_stand_ins_answer_in_their_order(village: Make, windows: np.ndarray) -> None:
    """Replica, next best, the adapter of all devices, one's own."""
    rows = windows[1:2]  # of device 1
    made = village(replicas=2)  # device 1's adapter is at device 2, too
    made.serve(1, 2)
    whole = made.client().score_windows(rows)
    made.kill(1)
    client = made.client()
    client._asking.peers = made.client()._asking.peers
    found = client.score_windows(rows)
    assert found.peers == {1: ["peer-2"]}
    np.testing.assert_allclose(found.nats, whole.nats, atol=1e-6)
    made.kill(2)  # held here: 0, and 2 as a replica
    assert made.client().score_windows(rows).peers.keys() <= {0, 2}
    alone = village()
    settings = {"fallbacks": 0}
    assert alone.client(**settings).score_windows(rows).peers == {OF_ALL: ["self"]}
    poor = village(shared=False)
    assert poor.client(**settings).score_windows(rows).peers == {0: ["self"]}
    assert poor.client(**settings).score("klmklmkl").fallback == "local"


def test_who_is_asked_in_which_order() -> None:
    placed = {"holders": [[0], [1, 2], [2, 0]], "own": 0, "fallbacks": 1}
    every = {"usable": lambda _: True, "held": {0, OF_ALL}}
    assert sources([1, 2, 0], **placed, **every) == [
        Source(1, 1), Source(1, 2), Source(2, 2), Source(OF_ALL, HERE),
    ]  # fmt: skip
    assert sources([0, 1], **placed, **every) == [Source(0, HERE)]
    few = {"usable": lambda peer: peer == 2, "held": {0}}
    assert sources([1, 0, 2], **placed, **few) == [Source(1, 2), Source(0, HERE)]
    none = {"usable": lambda _: False, "held": {0}}
    assert sources([1, 2, 0], **placed, **none) == [Source(0, HERE)]


@pytest.mark.parametrize("send", ["hidden", "tokens"])
def test_a_peer_writes_what_the_whole_model_would(village: Make, send: str) -> None:
    made = village(query__send="tokens")
    made.serve(1)
    generation = made.client(send=send, encoding="float32").generate(ACROSS, 20)
    tokens = [piece.token for piece in generation]
    assert tokens == made.greedy(1, list(ACROSS.encode()), 20)
    assert {piece.peer for piece in generation.pieces} == {"peer-1"}
    assert len(generation.ms) == 20
    assert generation.cost.down > 0


@pytest.mark.parametrize("send", ["hidden", "tokens"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_lost_or_doubled_when_a_peer_dies(
    village: Make, send: str, temperature: float
) -> None:
    made = village(replicas=2, query__send="tokens")
    made.serve(1, 2)
    settings = {"temperature": temperature, "seed": 7}
    client = made.client(send=send, encoding="float32")
    whole = [piece.token for piece in client.generate(ACROSS, 20, **settings)]
    made.stall(1, tokens=7)
    generation = client.generate(ACROSS, 20, **settings)
    tokens, writers = [], []
    for place, piece in enumerate(generation):
        tokens.append(piece.token)
        writers.append(piece.peer)
        if place == 6:
            made.kill(1)
    assert tokens == whole
    assert writers == ["peer-1"] * 7 + ["peer-2"] * 13
    assert list(generation.cost.failures.values()) == [1]


@pytest.mark.parametrize("send", ["hidden", "tokens"])
@pytest.mark.parametrize(
    ("code", "reason", "same"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", True),
        (grpc.StatusCode.INVALID_ARGUMENT, "refused", True),
        (grpc.StatusCode.FAILED_PRECONDITION, "version", True),
        (grpc.StatusCode.INTERNAL, "failed", False),
    ],
)
def test_a_question_that_fails_leaves_a_text_at_the_same_peer_alone(
    village: Make, send: str, code: grpc.StatusCode, reason: str, same: bool
) -> None:
    """Only where the connection may be ill the next question takes a new one."""
    made = village(query__send="tokens")
    made.serve(1)
    client = made.client(send=send)
    generation = client.generate(ACROSS, 12)
    writers = [next(iter(generation)).peer]

    async def refused(*given: Any) -> Any:
        raise RefusedError(code, reason, "not now")

    for served in made._servers[1]._requests.served:
        served.compute = refused
    channel = client._asking.peers._channels[1]
    connection = channel._channel
    assert client.score(ACROSS).cost.failures == {f"peer-1: {reason}": 1}
    assert (channel._channel is connection) is same
    writers += [piece.peer for piece in generation]
    assert writers == ["peer-1"] * 12
    assert generation.cost.failures == {}
    assert not channel._calls


def test_what_a_peer_says_begins_no_line_of_the_log(
    village: Make, caplog: pytest.LogCaptureFixture
) -> None:
    made = village()
    made.serve(1)
    words = "x\nERROR \x1b[31mall is lost"

    async def refused(*given: Any) -> Any:
        raise RefusedError(grpc.StatusCode.INTERNAL, "internal", words)

    for served in made._servers[1]._requests.served:
        served.compute = refused
    made.client().score(ACROSS)
    [record] = [one for one in caplog.records if one.name.endswith("text_asking")]
    assert record.getMessage() == (
        'peer-failed peer="peer-1" partition=1 expert=1 reason="failed" '
        'detail="INTERNAL: x\\nERROR \\u001b[31mall is lost"'
    )
    assert record.fields["detail"] == f"INTERNAL: {words}"  # type: ignore[attr-defined]


def test_a_text_ends_at_home_when_nobody_is_left(village: Make) -> None:
    made = village(shared=False)
    made.serve(1)
    generation = made.client(fallbacks=0).generate(ACROSS, 9)
    pieces = []
    for piece in generation:
        pieces.append(piece)
        if len(pieces) == 3:
            made.kill(1)
    assert [piece.peer for piece in pieces] == ["peer-1"] * 3 + ["self"] * 6
    start = list(ACROSS.encode()) + [piece.token for piece in pieces[:3]]
    assert [piece.token for piece in pieces[3:]] == made.greedy(0, start, 6)


@pytest.mark.parametrize("send", ["hidden", "tokens"])
def test_who_writes_is_decided_again_after_every_chunk(village: Make, send: str) -> None:
    """And whoever writes again reads only what came since it last did."""
    made = village(gate="unigram-chunks", query__send="tokens")
    made.serve(1, 2)
    client = made.client(send=send, encoding="float32")
    turns = iter([1, 2, 1, 0, 1])
    client._rank = lambda tokens: [next(turns)]
    pieces = list(client.generate(ACROSS, 18))
    assert [piece.expert for piece in pieces] == [1] * 4 + [2] * 4 + [1] * 4 + [0] * 4 + [1] * 2
    text = list(ACROSS.encode())
    for expert, count in ((1, 4), (2, 4), (1, 4), (0, 4), (1, 2)):
        text += made.greedy(expert, text, count)
    assert [piece.token for piece in pieces] == text[len(ACROSS) :]


def test_the_latest_tokens_decide_who_writes(village: Make) -> None:
    client = village(gate="unigram-chunks").client()
    assert client._rank(np.array(list(b"abcabcabcabcxyzxyz")))[0] == 2
    assert village(gate="unigram").client()._rank(np.array(list(b"abcabcabcxyz")))[0] == 0


def test_bad_questions_are_refused_in_words(village: Make) -> None:
    client = village().client()
    for call, said in (
        (lambda: client.score(""), "empty"),
        (lambda: client.score("a"), "single token"),
        (lambda: client.score("abcd", prefix=4), "--prefix 4 .*allowed: 1 to 3"),
        (lambda: client.generate("", 3), "empty"),
        (
            lambda: client.generate("a" * 30, 11),
            "30 tokens, and 11 .*reads 40 in all; allowed: .* to 29 tokens or --generate up to 10",
        ),
        (lambda: client.generate("a" * 40, 1), "allowed: a text of up to 39 tokens$"),
        (lambda: client.generate("ab", 40), "allowed: --generate up to 38$"),
        (lambda: client.generate("a" * 40, 40), "allowed: less of both$"),
        (lambda: client.score_windows(np.zeros((1, 41), np.int64)), "41 tokens.*up to 40"),
    ):
        with pytest.raises(DataError, match=said):
            call()
    with pytest.raises(ConfigError, match="--generate 0"):
        client.generate("a", 0)
    with pytest.raises(ConfigError, match="temperature"):
        client.generate("a", 1, temperature=-1.0)


def test_what_fails_at_work_is_not_taken_for_a_closed_client(
    village: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = village().client()

    def lower(*given: Any) -> Any:
        raise RuntimeError("can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(client.experts, "lower", lower)
        for ask in (lambda: client.score("abcab"), lambda: list(client.generate("abcab", 1))):
            with pytest.raises(RuntimeError, match="can't allocate memory"):
                ask()
    client.close()
    with pytest.raises(ConfigError, match="this client is closed; make a new one"):
        client.score("abcab")


def test_tokens_leave_only_where_the_operator_allows_it(village: Make) -> None:
    made = village()
    made.serve(1)
    with pytest.raises(ConfigError, match="is the text itself"):
        made.client(send="tokens")
    client = made.client()
    client._asking.send = "tokens"  # a device that does not obey
    found = client.score(ACROSS)
    assert found.cost.failures == {"peer-1: denied": 1}
    assert found.fallback is not None
    assert made.served(1) == 0


def test_all_blocks_adapted_need_tokens(village: Make) -> None:
    made = village(adapter__blocks="all", query__send="tokens")
    made.serve(1)
    with pytest.raises(ConfigError, match="allowed: --send tokens"):
        made.client()
    generation = made.client(send="tokens").generate(ACROSS, 5)
    assert [p.token for p in generation] == made.greedy(1, list(ACROSS.encode()), 5)
