"""Numbers with the word they count, in the singular or in the plural, and clients by number."""

from collections.abc import Iterable

__all__ = ["how_many", "listed", "one_or_many"]


def how_many(number: int, one: str, many: str = "") -> str:
    """A number and what it counts, for a sentence.

    Args:
        number: How many there are, 0 or more.
        one: What follows a 1, as ``run`` or ``sample is``.
        many: What follows all others; empty: ``one`` with an s.

    >>> how_many(1, "run"), how_many(0, "run"), how_many(1200, "sample is", "samples are")
    ('1 run', '0 runs', '1,200 samples are')
    """
    return f"{number:,} {one_or_many(number, one, many)}"


def one_or_many(number: int, one: str, many: str = "") -> str:
    """The word alone, in the singular for 1; the arguments of `how_many`.

    >>> one_or_many(1, "seed"), one_or_many(3, "seed"), one_or_many(2, "class", "classes")
    ('seed', 'seeds', 'classes')
    """
    return one if number == 1 else many or f"{one}s"


def listed(clients: Iterable[int], most: int = 5) -> str:
    """Clients in words: ``client 3``, ``clients 1, 2 and 5 others``.

    >>> listed([3]), listed([1, 2]), listed(range(9))
    ('client 3', 'clients 1, 2', 'clients 0, 1, 2, 3, 4 and 4 others')
    """
    found = list(clients)
    text = ", ".join(map(str, found[:most]))
    rest = len(found) - most
    more = f" and {how_many(rest, 'other')}" if rest > 0 else ""
    return f"{one_or_many(len(found), 'client')} {text}{more}"
