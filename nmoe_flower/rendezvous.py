"""Several calls that meet wherever one of them waits for what can be done for all at once.

Each runs as a coroutine of its own, in this thread, one at a time and in order: until it calls
`meet`, or to its end. When all have done so, what they wait for is done together, and they go on.
What runs does not know whether it has company.
"""

import contextvars
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from nmoe_flower.errors import EngineError
from nmoe_flower.installation import install_hint

__all__ = ["in_company", "meet", "require_rendezvous", "run_together"]

T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")


class _Met(NamedTuple):
    """What a call that waits hands to the one that runs them all."""

    question: Any
    serve: Callable[[list[Any]], Sequence[Any]]


_host: contextvars.ContextVar[Any] = contextvars.ContextVar("rendezvous", default=None)


def require_rendezvous() -> None:
    """Refuse where calls cannot wait for each other.

    Raises:
        EngineError: greenlet is not installed.
    """
    if importlib.util.find_spec("greenlet") is None:
        raise EngineError(
            f"engine.stack needs greenlet, which is not installed here: {install_hint('stack')}; "
            "or set engine.stack = 0"
        )


def run_together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run calls until each has ended, those that `meet` together from meeting to meeting.

    Whatever one of them raises is raised here, and ends the others where they wait.

    Args:
        calls: The calls; the first runs first.

    Returns:
        What they return, in their order.
    """
    from greenlet import getcurrent, greenlet

    here = getcurrent()
    results: dict[int, T] = {}
    members = []
    for call in calls:
        member = greenlet(call)
        member.gr_context = contextvars.copy_context()
        member.gr_context.run(_host.set, here)
        members.append(member)
    try:
        turns: dict[int, tuple[Any, ...]] = dict.fromkeys(range(len(members)), ())
        while turns:
            waiting: dict[int, _Met] = {}
            for place, answer in turns.items():
                said = members[place].switch(*answer)
                if members[place].dead:
                    results[place] = said
                else:
                    waiting[place] = said
            turns = _served(waiting)
    finally:
        for member in members:
            with suppress(BaseException):
                if member and not member.dead:
                    member.throw(KeyboardInterrupt)  # which every call lets through
    return [results[place] for place in range(len(members))]


def _served(waiting: dict[int, _Met]) -> dict[int, tuple[Any, ...]]:
    """An answer for each that waits, from whoever it named."""
    answers: dict[int, tuple[Any, ...]] = {}
    for serve in dict.fromkeys(met.serve for met in waiting.values()):
        places = [place for place, met in waiting.items() if met.serve == serve]
        found = serve([waiting[place].question for place in places])
        answers |= {place: (one,) for place, one in zip(places, found, strict=True)}
    return dict(sorted(answers.items()))


def in_company() -> bool:
    """Whether `meet` would wait for others."""
    return _host.get() is not None


def meet(question: Q, serve: Callable[[list[Q]], Sequence[A]]) -> A:
    """Wait until all who run together wait or have ended; then be answered with them.

    Args:
        question: What is asked.
        serve: Answers the questions of all who named it, in their order; called once for all.
    """
    host = _host.get()
    if host is None:
        return serve([question])[0]
    answer: A = host.switch(_Met(question, serve))
    return answer
