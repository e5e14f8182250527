import json
import logging

import pytest

from nmoe_flower.inference.telemetry import JsonFormatter, RefusalLog, log_event

LOGGER = logging.getLogger("test-logs")


def test_an_event_is_one_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_event(LOGGER, logging.INFO, "swapped", peer='a"\n', count=3)
    log_event(LOGGER, logging.DEBUG, "unseen")
    LOGGER.info("plain %s", "text")
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert all("\n" not in line for line in lines)
    event, plain = map(json.loads, lines)
    assert (event["event"], event["peer"], event["count"]) == ("swapped", 'a"\n', 3)
    assert (event["level"], event["logger"]) == ("info", "test-logs")
    assert plain["event"] == "plain text"
    assert caplog.messages[0] == 'swapped peer="a\\"\\n" count=3'


def test_the_time_is_that_of_the_record() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "hello", None, None)
    record.created = 86_400.25
    assert json.loads(JsonFormatter().format(record))["time"] == "1970-01-02T00:00:00.250+00:00"


def test_an_exception_is_told(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("boom")
    except ValueError:
        LOGGER.exception("failed")
    line = json.loads(JsonFormatter().format(caplog.records[0]))
    assert line["error"].endswith("ValueError: boom")


def test_a_flood_of_refusals_is_told_once_per_interval(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    refused = RefusalLog(LOGGER, seconds=10, clock=lambda: now[0])
    for _ in range(5):
        refused("a", "busy", "text")
    refused("b", "busy", "text")
    refused("a", "shape", "text")
    now[0] = 10.0
    refused("a", "busy", "text")
    told = [(r.fields["peer"], r.fields["reason"], r.fields["untold"]) for r in caplog.records]
    assert told == [("a", "busy", 0), ("b", "busy", 0), ("a", "shape", 0), ("a", "busy", 4)]


def test_many_callers_do_not_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    refused = RefusalLog(LOGGER, clock=lambda: 0.0)
    for number in range(3000):
        refused(str(number), "busy", "text")
    assert len(refused._told) <= 1024
