"""The protocol page says what the code does."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nmoe_flower.inference
from nmoe_flower.inference import ExpertServer, Manifest, encode_tensor
from nmoe_flower.inference.bundle import BUNDLE_PARTS, TextManifest
from nmoe_flower.inference.protocol.peer_pb2 import (
    GenerateReply,
    GenerateRequest,
    PredictReply,
    PredictRequest,
    ScoreReply,
    ScoreRequest,
    Tensor,
)
from nmoe_flower.inference.protocol.wire import MAX_ID, MAX_MESSAGE_BYTES, PROTOCOL
from nmoe_flower.inference.serve import ServiceMetrics
from nmoe_flower.inference.serve.text_requests import _IDLE_SECONDS

SOURCE = Path(nmoe_flower.inference.__file__).parent
PAGE = (Path(__file__).parents[3] / "docs/reference/protocol.md").read_text(encoding="utf-8")


def texts(module: str, function: str, position: int) -> Iterator[str]:
    """The literal texts a module passes to ``function`` at ``position``."""
    tree = ast.parse(next(SOURCE.rglob(f"{module}.py")).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function:
            argument = node.args[position]
            if isinstance(argument, ast.Constant):
                yield argument.value


def test_reasons_are_listed() -> None:
    reasons = set(texts("requests", "RefusedError", 1)) | set(texts("requests", "WireError", 0))
    reasons |= set(texts("wire", "WireError", 0))
    reasons |= set(texts("text_requests", "RefusedError", 1))
    reasons |= set(texts("text_requests", "WireError", 0))
    assert {"garbage", "shape", "version", "busy", "draining", "idle", "context"} <= reasons
    assert [reason for reason in reasons if f"`{reason}`" not in PAGE] == []


def test_events_are_listed() -> None:
    events = {
        event
        for module in ("service", "watch", "telemetry")
        for event in texts(module, "log_event", 2)
    }
    assert {"serving", "swapped", "refused", "not-taken-up"} <= events
    assert [event for event in events if f"`{event}`" not in PAGE] == []


def test_counters_are_listed() -> None:
    kinds = {"counter": "_total", "gauge": "", "histogram": ""}
    metrics = [f"{m.name}{kinds[m.type]}" for m in ServiceMetrics().registry.collect()]
    assert len(metrics) == 13
    assert [name for name in metrics if f"`{name}" not in PAGE] == []


@pytest.mark.parametrize("message", [PredictRequest, Tensor])
def test_field_numbers_are_those_of_the_messages(message: type) -> None:
    for field in message.DESCRIPTOR.fields:  # type: ignore[attr-defined]
        row = f"| `{field.name}` | {field.number} |"
        assert row in PAGE or f"`{field.name}` ({field.number})" in PAGE


def test_messages_about_text_are_described() -> None:
    section = PAGE[PAGE.index("## Text") : PAGE.index("## Tensor")]
    for message in (ScoreRequest, GenerateRequest):
        table = section[section.index(f"| `{message.__name__}` |") :].partition("\n\n")[0]
        assert all(f"`{field.name}`" in table for field in message.DESCRIPTOR.fields)
    for field in (*ScoreReply.DESCRIPTOR.fields, *GenerateReply.DESCRIPTOR.fields):
        assert f"`{field.name}` ({field.number})" in section
    limits = inspect.signature(ExpertServer).parameters
    assert f"`--max-texts` streams at once ({limits['max_texts'].default})" in section
    assert f"of memory ({limits['max_text_mib'].default:g};" in " ".join(section.split())
    assert f"{_IDLE_SECONDS:g} seconds" in section


def test_the_reply_and_the_constants() -> None:
    for field in PredictReply.DESCRIPTOR.fields:
        assert f"`{field.name}` ({field.number})" in PAGE
    for value in Tensor.DType.items():
        name, number = value
        assert number == 0 or f"| {number} {name} |" in PAGE
    assert f"up to {MAX_ID} characters" in PAGE
    assert f"at most {MAX_MESSAGE_BYTES >> 20} MiB" in PAGE
    assert f"protocol {PROTOCOL})" in PAGE


def test_the_example_of_a_tensor() -> None:
    matrix = np.array([[1.0, -2.0]])
    for kind, shown in (("float32", 4), ("float16", 2), ("int8", 1)):
        data = encode_tensor(matrix, kind).data.hex()  # type: ignore[arg-type]
        assert f"`{data[: 2 * shown]} {data[2 * shown :]}`" in PAGE


def test_the_bundle_is_described() -> None:
    for name in Manifest.model_fields:
        assert f"`{name}`" in PAGE or name.endswith("_version")
    assert all(f"`{part}.safetensors`" in PAGE for part in BUNDLE_PARTS)
    for name in TextManifest.model_fields:
        assert f"`{name}`" in PAGE or "_version" in name
