"""The circuit breaker and what is learnt of a peer, on a clock of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe_flower.errors import ConfigError
from nmoe_flower.inference.ask.breaker import Breaker
from nmoe_flower.inference.ask.link import Health


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures=3, cooldown=2.0, longest=7.0, clock=clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed()


def test_only_failures_in_a_row_open_it(breaker: Breaker) -> None:
    fail(breaker, 2)
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.closed
    breaker.failed()
    assert breaker.state == "open"
    assert not breaker.closed


def test_a_probe_is_due_after_the_cooldown(breaker: Breaker, clock: Clock) -> None:
    assert breaker.probe_in() == float("inf")
    assert not breaker.begin_probe()
    fail(breaker, 3)
    clock.now += 1.5
    assert breaker.probe_in() == 0.5
    assert not breaker.begin_probe()
    clock.now += 0.5
    assert breaker.begin_probe()
    assert breaker.state == "half-open"


def test_there_is_one_probe_at_a_time(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 2.0
    assert [breaker.begin_probe() for _ in range(3)] == [True, False, False]


def test_the_cooldown_doubles_up_to_the_longest(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    waits = []
    for _ in range(4):
        waits.append(breaker.probe_in())
        clock.now += breaker.probe_in()
        assert breaker.begin_probe()
        breaker.probe_failed()
    assert waits == [2.0, 4.0, 7.0, 7.0]


def recover(breaker: Breaker, clock: Clock) -> None:
    clock.now += breaker.probe_in()
    assert breaker.begin_probe()
    breaker.probe_succeeded()
    assert breaker.closed


def test_who_fails_again_soon_waits_longer(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    recover(breaker, clock)
    breaker.succeeded()
    breaker.succeeded()
    fail(breaker, 3)
    assert breaker.probe_in() == 4.0


def test_who_was_well_for_a_while_starts_anew(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    recover(breaker, clock)
    for _ in range(3):
        breaker.succeeded()
    fail(breaker, 3)
    assert breaker.probe_in() == 2.0


def test_answers_to_old_requests_change_nothing_while_open(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 2.0
    breaker.succeeded()
    breaker.failed()
    assert breaker.state == "open"
    assert breaker.begin_probe()
    breaker.failed()
    breaker.succeeded()
    assert breaker.state == "half-open"
    breaker.probe_succeeded()
    assert breaker.closed


def test_failures_before_the_probe_are_forgotten(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, 3)
    recover(breaker, clock)
    fail(breaker, 2)
    assert breaker.closed


def test_a_probe_nobody_sent_changes_nothing(breaker: Breaker) -> None:
    breaker.probe_succeeded()
    assert breaker.closed
    breaker.probe_failed()
    assert breaker.closed
    fail(breaker, 3)
    breaker.probe_succeeded()
    assert breaker.state == "open"


@given(st.lists(st.sampled_from(["succeeded", "failed", "probe", "wait"]), max_size=60))
def test_whatever_happens_it_can_close_again(events: list[str]) -> None:
    """No state is a dead end, and a probe is never further away than the longest cooldown."""
    clock = Clock()
    breaker = Breaker(failures=2, cooldown=1.0, longest=8.0, clock=clock)
    for event in events:
        if event == "wait":
            clock.now += 0.7
        elif event != "probe":
            getattr(breaker, event)()
        elif breaker.begin_probe():
            breaker.probe_failed()
    if not breaker.closed:
        assert breaker.probe_in() <= 8.0
        recover(breaker, clock)


@pytest.mark.parametrize(
    "settings",
    [{"failures": 0}, {"cooldown": 0.0}, {"cooldown": -1.0}, {"cooldown": 9.0, "longest": 8.0}],
)
def test_settings_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="allowed: 1 or more failures"):
        Breaker(**settings)  # type: ignore[arg-type]


def test_health_learns_by_moving_means(breaker: Breaker) -> None:
    health = Health(breaker)
    assert health.penalty(100.0) == 0.0
    health.failed("busy")
    assert health.failure == pytest.approx(0.2)  # 0 + 0.2 (1 - 0)
    health.failed("busy")
    assert health.failure == pytest.approx(0.36)  # 0.2 + 0.2 (1 - 0.2)
    health.succeeded(10.0)
    assert health.failure == pytest.approx(0.288)  # 0.36 (1 - 0.2)
    assert health.penalty(100.0) == pytest.approx(0.288)
    assert (health.answered, dict(health.failures)) == (1, {"busy": 2})
    health.took(60.0)
    assert health.latency_ms == pytest.approx(20.0)  # 10 + 0.2 (60 - 10)
    assert health.penalty(40.0) == pytest.approx(0.5)
    assert health.penalty(1.0) == 1.0


def test_who_is_not_asked_is_as_unwell_as_can_be(breaker: Breaker) -> None:
    health = Health(breaker)
    health.succeeded(0.0)
    for _ in range(3):
        health.failed("unavailable")
    assert health.penalty(1e9) == 1.0
