"""The kinds of work that are measured, and what is aimed at."""

from dataclasses import dataclass

__all__ = ["FLOOR_GOALS", "KINDS", "LARGE", "START_GOALS", "Kind", "kind_of"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of work: every client takes ``steps`` plain SGD steps a round on its own images.

    Args:
        name: Name on the command line.
        clients: All take part in every round.
        steps: SGD steps per client and round.
        batch: Images per step.
        images: Synthetic images of each client.
        shape: Shape of one image.
        hidden: Width of the layer before the last; 0 is logistic regression.
        residual: Whether the convolutions are residual blocks, with normalised groups.
        rounds: Measured rounds at least.
        block: Rounds in a row before the other runner's turn.
        warm_up: Rounds before the first measured one.
        goals: Seconds per round, as a multiple of the bare loop, per runner.
    """

    name: str
    clients: int
    steps: int
    batch: int
    images: int
    shape: tuple[int, ...]
    hidden: int
    rounds: int
    block: int
    warm_up: int
    goals: dict[str, float]
    residual: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("tiny", 10, 60, 10, 600, (784,), 0, 10, 5, 3, {"inprocess": 1.2}),
        Kind("short", 10, 1, 50, 200, (3, 32, 32), 100, 10, 2, 3, {"inprocess": 1.07, "ray": 1.5}),
        Kind(
            "residual",
            10,
            1,
            20,
            200,
            (3, 32, 32),
            0,
            10,
            2,
            3,
            {"inprocess": 0.97, "channels-last": 0.97},
            True,
        ),
        Kind("many", 50, 5, 20, 100, (3, 32, 32), 740, 3, 1, 1, {"inprocess": 1.03, "ray": 1.5}),
    )
}

LARGE = Kind("large", 100, 0, 1, 1, (784,), 14_150, 1, 1, 0, {})
"""For the memory of the server: 45 MB of weights that clients send back as they came."""

START_GOALS = {"inprocess": 8.0}
"""Seconds to the end of round 1, interpreter and imports included."""

FLOOR_GOALS = {"inprocess": 10.0, "ray": 100.0}
"""Milliseconds for an exchange of 1 kB with 10 nodes."""


def kind_of(name: str) -> Kind:
    """The kind of that name, the large one included."""
    return LARGE if name == LARGE.name else KINDS[name]
