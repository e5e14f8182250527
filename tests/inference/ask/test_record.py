"""What a record says of a query, and what a router counts: by hand, and of real calls."""

import json
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nmoe_flower.cli import main
from nmoe_flower.cli.options import serve_metrics
from nmoe_flower.errors import ConfigError
from nmoe_flower.inference import CallRecord, Client, RemoteExperts, RouterMetrics, Sent
from nmoe_flower.inference.ask.breaker import Breaker

IDS = np.array([[1, 2], [2, 0], [3, 1], [1, 3]])
# Row 0: both answered. Row 1: expert 2 silent. Row 2: the next best, 2. Row 3: the local one, 0.
BY = np.array([[1, 2], [-1, 0], [2, -1], [0, -1]])
RECORD = CallRecord(
    own=0,
    expert_ids=IDS,
    answered_by=BY,
    ms=12.34567,
    deadline_ms=500.0,
    sent=(
        Sent("fox", 1, "chosen", 3, "answered", 3.21, 100, 50),
        Sent("owl", 2, "chosen", 2, "garbage", 4.5, 80, 7),
        Sent("owl", 2, "hedge", 1, "unfinished", 4.5, 40),
        Sent("", 3, "chosen", 2, "unknown"),
    ),
    moved=1,
)


def test_rows_that_fell_back_and_slots_that_stay_silent_are_told_apart() -> None:
    assert RECORD.fell_back.tolist() == [2, 3]
    assert RECORD.silent == 1


def test_the_line_is_json_with_everything_counted() -> None:
    value = json.loads(RECORD.line())
    sent = value.pop("sent")
    assert value == {
        "own": 0,
        "rows": 4,
        "ms": 12.346,
        "deadline_ms": 500.0,
        "chosen": {"0": 1, "1": 3, "2": 2, "3": 2},
        "answered": {"0": 2, "1": 1, "2": 2},
        "next_best": 1,
        "local": 1,
        "silent": 1,
        "moved": 1,
        "bytes_up": 220,
        "bytes_down": 57,
    }
    assert sent[0] == {
        "peer": "fox",
        "expert": 1,
        "why": "chosen",
        "rows": 3,
        "outcome": "answered",
        "ms": 3.21,
        "bytes_up": 100,
        "bytes_down": 50,
    }
    assert "\n" not in RECORD.line()


Make = Callable[..., Any]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 2, 2), np.uint8)


def values(metrics: RouterMetrics) -> dict[tuple[str, ...], float]:
    """Samples by name (without ``nmoe_router_``) and labels, those that are 0 left out."""
    return {
        (sample.name.removeprefix("nmoe_router_"), *sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.value and not sample.name.endswith("_created")
    }


def test_a_record_is_counted() -> None:
    """Row 0 is answered as chosen, row 1 by a next-best, row 2 here; one choice was moved."""
    metrics = RouterMetrics()
    record = CallRecord(
        own=0,
        expert_ids=np.array([[1], [2], [3]]),
        answered_by=np.array([[1], [1], [0]]),
        ms=40.0,
        deadline_ms=1000.0,
        sent=[
            Sent("a", 1, "chosen", 1, "answered", ms=4.0, bytes_up=10, bytes_down=20),
            Sent("b", 2, "chosen", 1, "busy", ms=1.0, bytes_up=11),
            Sent("a", 1, "next-best", 1, "answered", ms=30.0, bytes_up=12, bytes_down=21),
            Sent("", 3, "chosen", 1, "unknown"),
            Sent("b", 2, "hedge", 1, "unfinished", ms=5.0, bytes_up=13),
        ],
        moved=1,
    )
    metrics.observe(record)
    found = values(metrics)
    assert found["rows_total",] == 3
    assert found["moved_total",] == 1
    assert found["fallback_rows_total", "next-best"] == 1
    assert found["fallback_rows_total", "local"] == 1
    requests = {key[1:]: value for key, value in found.items() if key[0] == "requests_total"}
    assert requests == {
        ("a", "chosen", "answered"): 1,
        ("b", "chosen", "busy"): 1,
        ("a", "next-best", "answered"): 1,
        ("nobody", "chosen", "unknown"): 1,
        ("b", "hedge", "unfinished"): 1,
    }
    failed = {key[1:]: value for key, value in found.items() if key[0] == "failed_rows_total"}
    assert failed == {("b", "busy"): 1, ("nobody", "unknown"): 1}  # unfinished is no failure
    assert found["sent_bytes_total", "a"] == 22
    assert found["sent_bytes_total", "b"] == 24
    assert found["received_bytes_total", "a"] == 41
    assert found["peer_seconds_count", "a"] == 2
    assert found["peer_seconds_sum", "a"] == pytest.approx(0.034)
    assert ("peer_seconds_count", "b") not in found  # no answer, no latency
    assert found["peer_seconds_bucket", "a", "0.005"] == 1
    assert found["query_seconds_sum",] == pytest.approx(0.04)
    metrics.observe(record)
    assert values(metrics)["rows_total",] == 6


def test_calls_and_breakers_are_counted(neighbourhood: Make) -> None:
    around, metrics = neighbourhood(2), RouterMetrics()
    latents = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    scores = torch.tensor([0.0, 2.0, 1.0]).expand(6, 3)
    with RemoteExperts(
        around.list, own=0, local=around.experts[0], ranking=lambda _: scores, deadline=20.0,
        metrics=metrics, make_breaker=lambda: Breaker(failures=1, cooldown=1000.0, longest=1000.0),
    ) as router:  # fmt: skip
        chosen = torch.ones(6, 1, dtype=torch.int64)
        router(latents, chosen)
        assert values(metrics)["breaker", "peer-1", "closed"] == 1
        around[1].mood = "broken"
        _, record = router.ask(latents, chosen)
        found = values(metrics)
        assert found["requests_total", "peer-1", "chosen", "answered"] == 1
        assert found["requests_total", "peer-1", "chosen", "failed"] == 1
        assert found["requests_total", "peer-2", "next-best", "answered"] == 1
        assert found["failed_rows_total", "peer-1", "failed"] == 6
        assert found["fallback_rows_total", "next-best"] == 6
        assert found["rows_total",] == 12
        assert found["sent_bytes_total", "peer-2"] == record.sent[-1].bytes_up > 6 * 4 * 4
        breakers = {key[1:] for key in found if key[0] == "breaker"}
        assert breakers == {("peer-1", "open"), ("peer-2", "closed")}
    assert not [key for key in values(metrics) if key[0] == "breaker"]  # closed: nobody is known


def test_a_page_is_served_while_a_command_runs() -> None:
    metrics = RouterMetrics()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = pytest.raises(ConfigError, match=f"cannot listen on metrics port {port}: Addr")
        with refused, serve_metrics(metrics.registry, port):
            pass
    with serve_metrics(metrics.registry, port):
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b"nmoe_router_rows_total 0.0" in answer.read()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=10)
    with serve_metrics(metrics.registry, None):
        pass


def test_infer_serves_its_counters(
    tmp_path: Path, neighbourhood: Make, bundle_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at while the command asks: five images, one batch."""
    around = neighbourhood()
    bundle_of(around)
    around.list.write(tmp_path / "peers.json")
    np.save(tmp_path / "images.npy", IMAGES)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    pages: list[str] = []
    predict = Client.predict

    def looking(client: Client, images: Any) -> Any:
        answer = predict(client, images)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            pages.append(page.read().decode())
        return answer

    monkeypatch.setattr(Client, "predict", looking)
    arguments = ["infer", tmp_path / "bundle", tmp_path / "images.npy", "--insecure"]
    options = ["--peers", tmp_path / "peers.json", "--metrics-port", port, "--deadline", 20]
    assert main([str(one) for one in (*arguments, *options)]) == 0
    (page,) = pages
    assert "nmoe_router_rows_total 5.0" in page
    assert 'nmoe_router_breaker{peer="peer-1",state="closed"} 1.0' in page
