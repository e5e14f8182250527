"""``nmoe privacy``: what a budget leaves of correlation matrices, and what its noise hides."""

import argparse
import itertools
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nmoe_flower.arguments import Number, Whole
from nmoe_flower.cli.options import add_format
from nmoe_flower.errors import ConfigError

__all__ = ["ABOUT", "NoisePlan", "add_arguments", "noise_plan"]

ABOUT = "what a privacy budget leaves"

_EXAMPLES = """\
examples:
  nmoe privacy --epsilon 8 --delta 1e-5 --releases 20 --dim 128 --examples 2500 --clients 10
  nmoe privacy --epsilon 1 2 4 8 --dim 64 128 256

With several values a row is printed for every combination. Noise hides eigenvalues of the mean
matrix below its noise edge; for C clusters of equal size the smallest that matters is 1/C.
"""


@dataclass(frozen=True)
class NoisePlan:
    """One choice of budget and width, for clients of equal size.

    Attributes:
        epsilon: Budget of all releases of a client together.
        releases: Matrices a client sends.
        dim: d, the width of the features.
        noise_multiplier: Noise over sensitivity, of each release.
        noise_std: Standard deviation of the noise in one client's R.
        mean_noise_std: Standard deviation of the noise in the mean of all clients' R.
        mean_noise_edge: Largest eigenvalue of that noise: what is below is hidden.
        smallest_useful: 1/C, the eigenvalues of C clusters of equal size.
        largest_dim: Widest features, of those that are packed, whose edge stays below 1/C.
        kilobytes: Size of one release.
    """

    epsilon: float
    releases: int
    dim: int
    noise_multiplier: float
    noise_std: float
    mean_noise_std: float
    mean_noise_edge: float
    smallest_useful: float
    largest_dim: int
    kilobytes: float

    @property
    def verdict(self) -> Literal["clear", "tight", "hidden"]:
        """``clear``: the edge is at most half of 1/C; ``hidden``: the useful part is lost."""
        if self.mean_noise_edge >= self.smallest_useful:
            return "hidden"
        return "clear" if 2 * self.mean_noise_edge <= self.smallest_useful else "tight"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``nmoe privacy``."""
    parser.description = "What a privacy budget leaves of FedSC's correlation matrices."
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    several: tuple[tuple[str, Number | Whole, float, str, str], ...] = (
        ("--epsilon", Number(0, 1e6, open=True), 8.0, "E", "of a client (8)"),
        ("--releases", Whole(1, 10**6), 20, "T", "of a client (20)"),
        ("--dim", Whole(1, 2048), 128, "D", "width of a feature (128)"),
    )
    for name, kind, standard, metavar, text in several:
        parser.add_argument(
            name, type=kind, nargs="+", default=[standard], metavar=metavar, help=text
        )
    for name, default, metavar, text in (
        ("--examples", 2500, "N", "per client (2500)"),
        ("--clients", 10, "M", "how many clients (10)"),
        ("--classes", 10, "C", "or clusters (10)"),
    ):
        parser.add_argument(name, type=Whole(1), default=default, metavar=metavar, help=text)
    delta = Number(0, 1, open=True, below=True)
    parser.add_argument(
        "--delta", type=delta, default=1e-5, metavar="D", help="of a client (%(default)s)"
    )
    parser.add_argument(
        "--adjacency",
        choices=("replace-one", "add-remove"),
        default="replace-one",
        help="what two neighbouring data sets differ by: one example is another, or is not there "
        "(%(default)s)",
    )
    add_format(parser)
    parser.set_defaults(command=_command)


def _command(args: argparse.Namespace) -> int:
    """Print a plan in words, or a table of several, or JSON."""
    common = {
        "delta": args.delta,
        "examples": args.examples,
        "clients": args.clients,
        "classes": args.classes,
        "adjacency": args.adjacency,
    }
    choices = itertools.product(args.epsilon, args.releases, args.dim)
    plans = [noise_plan(*choice, **common) for choice in choices]
    if args.format == "json":
        rows = [{**asdict(one), "verdict": one.verdict} for one in plans]
        print(json.dumps({**common, "plans": rows}, indent=2))
    elif len(plans) == 1:
        print(_words(plans[0], common))
    else:
        print(_table(plans))
    return 0


def _words(one: NoisePlan, common: dict[str, Any]) -> str:
    ratio = one.smallest_useful / one.mean_noise_edge
    verdict = {
        "clear": f"They are {ratio:.1f} times the edge: the budget is enough.",
        "tight": f"They are only {ratio:.1f} times the edge: expect a loss.",
        "hidden": "Noise hides them: sharing such matrices does not help. Use narrower features, "
        "fewer releases, a larger epsilon, or clients with more samples.",
    }[one.verdict]
    return "\n".join(
        [
            f"budget            epsilon {one.epsilon:g} at delta {common['delta']:g} for all "
            f"{one.releases} releases of a client, {common['adjacency']}",
            f"noise multiplier  {one.noise_multiplier:.4g}",
            f"noise of one R    {one.noise_std:.3g} standard deviation, {common['examples']} "
            "samples",
            f"noise of the mean {one.mean_noise_std:.3g} standard deviation, {common['clients']} "
            "clients",
            f"noise edge        {one.mean_noise_edge:.3g} with d = {one.dim}: eigenvalues of the "
            "mean below it are hidden",
            f"smallest useful   {one.smallest_useful:.3g}, the eigenvalues of "
            f"{common['classes']} clusters of equal size",
            f"bytes             {one.kilobytes:.1f} kB per release",
            "",
            f"{verdict} Features of up to {one.largest_dim} dimensions keep the edge below "
            f"{one.smallest_useful:.3g}.",
            "The weights are not covered by this budget.",
        ]
    )


def _table(plans: list[NoisePlan]) -> str:
    from nmoe_flower.summary import padded

    header = ["epsilon", "releases", "d", "multiplier", "std of R", "of the mean", "noise edge",
              "against", "verdict"]  # fmt: skip
    body = [
        [f"{p.epsilon:g}", str(p.releases), str(p.dim), f"{p.noise_multiplier:.2f}",
         f"{p.noise_std:.2e}", f"{p.mean_noise_std:.2e}", f"{p.mean_noise_edge:.4f}",
         f"{p.smallest_useful:.3g}", p.verdict]
        for p in plans
    ]  # fmt: skip
    return padded([header, *body])


def noise_plan(
    epsilon: float,
    releases: int,
    dim: int,
    *,
    delta: float = 1e-5,
    examples: int = 2500,
    clients: int = 10,
    classes: int = 10,
    adjacency: Literal["replace-one", "add-remove"] = "replace-one",
) -> NoisePlan:
    """Size the noise of a budget; features are in the unit ball.

    Args:
        epsilon: Budget of all releases of a client together, above 0.
        releases: Matrices a client sends, at least 1.
        dim: Width d of the features, 1 to `MAX_DIM`.
        delta: Chance that the budget does not hold, in (0, 1).
        examples: Samples of each client.
        clients: Clients whose matrices are averaged, at least 1.
        classes: Clusters C of equal size that the features form, at least 1.
        adjacency: What neighbouring data sets differ in.

    Raises:
        ConfigError: A number is out of range.

    >>> one = noise_plan(8, 20, 128)
    >>> one.verdict, round(one.mean_noise_edge, 4)
    ('clear', 0.0077)
    """
    from nmoe_flower.privacy import (
        MAX_DIM,
        noise_edge,
        noise_multiplier_for,
        packed_size,
        sensitivity,
    )

    for name, value in (("clients", clients), ("classes", classes)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    multiplier = noise_multiplier_for(epsilon, delta, releases, num_examples=examples)
    std = multiplier * sensitivity(1.0, examples, adjacency=adjacency)
    mean_std, smallest = std / math.sqrt(clients), 1 / classes
    return NoisePlan(
        epsilon=epsilon,
        releases=releases,
        dim=dim,
        noise_multiplier=multiplier,
        noise_std=std,
        mean_noise_std=mean_std,
        mean_noise_edge=noise_edge(mean_std, dim),
        smallest_useful=smallest,
        largest_dim=min(MAX_DIM, math.ceil((smallest / mean_std) ** 2 / 2) - 1),
        kilobytes=4 * packed_size(dim) / 1000,
    )
