"""Devices, traces and the clock."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmoe_flower.alignment import (
    PROFILES,
    Clock,
    DeviceProfile,
    Event,
    World,
    draw_devices,
    read_trace,
    seconds_of,
)
from nmoe_flower.errors import ConfigError

BOARD = PROFILES["board"]


def trace(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "trace.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_seconds_are_latency_transfer_and_work() -> None:
    """0.1 + 4e6 / 2e6 + 1e10 / 5e9 + 1e6 / 5e5 = 0.1 + 2 + 2 + 2."""
    took = seconds_of(BOARD, flops=1e10, bytes_down=4e6, bytes_up=1e6)
    assert took == pytest.approx(6.1)


def test_a_round_lasts_as_long_as_its_slowest_client_until_the_deadline() -> None:
    clock = Clock(deadline=10)
    assert clock.advance({}) == 0
    assert clock.advance({3: 4.0, 1: 7.0}) == 7.0
    assert not clock.is_late(10.0)
    assert clock.is_late(10.1)
    assert clock.advance({0: 99.0}) == 10
    assert clock.elapsed == 17.0


def test_devices_are_drawn_from_all_profiles_by_the_seed() -> None:
    drawn = draw_devices(["phone", "board"], 200, seed=1)
    assert drawn == draw_devices(["phone", "board"], 200, seed=1)
    assert drawn != draw_devices(["phone", "board"], 200, seed=2)
    assert 70 < sum(device == BOARD for device in drawn) < 130  # 100 +- 4 deviations of 7
    with pytest.raises(ConfigError, match="'toaster' is unknown; allowed: server, laptop"):
        draw_devices(["toaster"], 1)


@pytest.mark.parametrize(
    "wrong",
    [{"compute": 0.0}, {"memory": -1.0}, {"upload": float("nan")}, {"availability": 1.5},
     {"latency": float("inf")}],
)  # fmt: skip
def test_impossible_devices_are_refused(wrong: dict[str, float]) -> None:
    values = {"compute": 1.0, "memory": 1.0, "download": 1.0, "upload": 1.0, **wrong}
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} of a device"):
        DeviceProfile(**values)


def test_availability_is_chance_that_a_trace_overrules() -> None:
    """0.9 over 2000 rounds: 1800 +- 5 deviations of 13.4."""
    world = World([PROFILES["phone"], BOARD], events=[Event(5, 1, {}, online=False)], seed=4)
    assert world.online(7).tolist() == world.online(7).tolist()
    present = np.array([world.online(r) for r in range(1, 2001)])
    assert abs(present[:, 0].sum() - 1800) < 68
    assert present[:4, 1].all()
    assert not present[4:, 1].any()


def test_a_trace_names_devices_and_events(tmp_path: Path) -> None:
    content = {
        "devices": [
            {"client": 1, "compute": 1e9, "memory": 1e6, "download": 1e3, "upload": 1e3},
            {"client": 0, "profile": "phone", "upload": 7.0},
        ],
        "events": [
            {"round": 5, "client": 0, "online": False},
            {"round": 3, "client": 1, "compute": 2e9},
        ],
    }
    world = read_trace(trace(tmp_path, content), 2)
    assert world.at(1)[0].upload == 7.0
    assert world.at(1)[0].compute == PROFILES["phone"].compute
    assert [world.at(r)[1].compute for r in (2, 3, 9)] == [1e9, 2e9, 2e9]
    assert not world.online(6)[0]


def test_reading_a_trace_makes_every_change_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [{"round": number, "client": 0, "upload": 1e5} for number in range(1, 301)]
    made, check = [], DeviceProfile.__post_init__

    def counted(device: DeviceProfile) -> None:
        made.append(device)
        check(device)

    monkeypatch.setattr(DeviceProfile, "__post_init__", counted)
    read_trace(
        trace(tmp_path, {"devices": [{"client": 0, "profile": "phone"}], "events": events}), 1
    )
    assert len(made) == 301  # the device, and one for each event


ONE = {"client": 0, "profile": "phone"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not valid JSON"),
        ([], "must be"),
        ({"clients": []}, "must be"),
        ({"devices": [3]}, "must be a list of objects"),
        ({"devices": []}, "client 0 of 1 has no device"),
        ({"devices": [ONE, ONE]}, "client 0 has two devices"),
        ({"devices": [{"client": 4, "profile": "phone"}]}, "client is 4"),
        ({"devices": [{"client": "a", "profile": "phone"}]}, "client is 'a'"),
        ({"devices": [{"client": 0, "profile": "toaster"}]}, "profile 'toaster'"),
        ({"devices": [{"client": 0, "compute": 1}]}, "no profile and no download"),
        ({"devices": [{**ONE, "speed": 1}]}, "'speed' is unknown"),
        ({"devices": [{**ONE, "compute": "fast"}]}, "compute is 'fast'"),
        ({"devices": [{**ONE, "compute": -1}]}, "compute of a device is -1"),
        ({"devices": [ONE], "events": [{"client": 0}]}, "round is None"),
        ({"devices": [ONE], "events": [{"round": 1, "client": 0, "online": 1}]}, "online is 1"),
        ({"devices": [ONE], "events": [{"round": 1, "client": 0, "memory": -2}]}, "memory of a"),
    ],
)
def test_a_malformed_trace_is_refused_in_words(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_trace(trace(tmp_path, content), 1)


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.json"):
        read_trace(tmp_path / "gone.json", 1)
