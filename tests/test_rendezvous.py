"""Who meets is answered together, by whoever all of them named."""

from collections.abc import Sequence
from functools import partial

from nmoe_flower.rendezvous import meet, run_together


class Doubler:
    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def serve(self, questions: Sequence[int]) -> list[int]:
        self.asked.append(list(questions))
        return [2 * question for question in questions]


def ask(number: int, doubler: Doubler) -> int:
    return meet(number, doubler.serve)  # each access makes another method object


def test_all_who_name_a_method_of_one_object_are_served_at_once() -> None:
    one, other = Doubler(), Doubler()
    calls = [partial(ask, 1, one), partial(ask, 2, other), partial(ask, 3, one)]
    assert run_together(calls) == [2, 4, 6]
    assert (one.asked, other.asked) == ([[1, 3]], [[2]])
