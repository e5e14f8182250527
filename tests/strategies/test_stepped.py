from typing import Any

import pytest

from nmoe_flower.errors import ReplyError
from nmoe_flower.records import StepKey
from nmoe_flower.strategies.stepped import StepReports


def account(steps: int, epsilon: float = 1.0) -> dict[str, Any]:
    return {StepKey.STEPS: steps, StepKey.EPSILON: epsilon, StepKey.REPLACED: 2 * epsilon}


def test_the_last_word_of_every_client_counts_and_the_worst_is_told() -> None:
    reports = StepReports()
    reports.take(0, account(10, 1.0))
    reports.take(1, account(4, 3.0))
    reports.take(0, account(11, 1.5))
    assert reports.worst() == {StepKey.STEPS: 11, StepKey.EPSILON: 3.0, StepKey.REPLACED: 6.0}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({StepKey.EPSILON: 1.0}, "cannot be read"),
        (account(5) | {StepKey.REPLACED: "much"}, "cannot be read"),
        (account(-1), "negative"),
        (account(9), "went back from 10 to 9: was its ledger lost"),
    ],
)
def test_an_account_that_cannot_be_true_costs_the_reply(told: dict[str, Any], reason: str) -> None:
    reports = StepReports()
    reports.take(0, account(10))
    with pytest.raises(ReplyError, match=reason):
        reports.take(0, told)
    assert reports.costs[0].steps == 10


def test_a_resumed_server_still_knows_what_it_was_told() -> None:
    first, second = StepReports(), StepReports()
    first.take(3, account(10))
    second.load_state(first.state())
    second.take(3, account(12))  # the client went on while the server was away
    with pytest.raises(ReplyError, match="went back from 12 to 3"):
        second.take(3, account(3))


def test_clients_without_an_account_are_none_of_its_business() -> None:
    reports = StepReports()
    reports.take(0, {"loss": 1.0})
    assert reports.costs == {}
