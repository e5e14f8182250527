"""What a budget leaves of correlation matrices: the noise of one, of the mean, and its edge."""

import argparse
import itertools
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nmoe_flower.errors import ConfigError
from nmoe_flower.privacy import (
    MAX_DIM,
    noise_edge,
    noise_multiplier_for,
    packed_size,
    sensitivity,
)
from nmoe_flower.summary import padded

__all__ = ["Plan", "plan", "show"]


@dataclass(frozen=True)
class Plan:
    """One choice of budget and width, for clients of equal size.

    Attributes:
        epsilon: Of all releases of a client together.
        releases: Matrices a client sends.
        dim: d, the width of the features.
        noise_multiplier: Noise over sensitivity, of each release.
        noise_std: Of the noise in one client's R.
        mean_noise_std: Of the noise in the mean of all clients' R.
        mean_noise_edge: Largest eigenvalue of that noise: what is below is hidden.
        smallest_useful: 1/C, the eigenvalues of C clusters of equal size.
        largest_dim: Widest features, of those that are packed, whose edge stays below 1/C.
        kilobytes: Of one release.
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


def plan(
    epsilon: float,
    releases: int,
    dim: int,
    *,
    delta: float = 1e-5,
    examples: int = 2500,
    clients: int = 10,
    classes: int = 10,
    adjacency: Literal["replace-one", "add-remove"] = "replace-one",
) -> Plan:
    """Size the noise of a budget; features are in the unit ball.

    Raises:
        ConfigError: A number is out of range.

    >>> plan(8, 20, 128).verdict, round(plan(8, 20, 128).mean_noise_edge, 4)
    ('clear', 0.0077)
    """
    for name, value in (("clients", clients), ("classes", classes)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    multiplier = noise_multiplier_for(epsilon, delta, releases, num_examples=examples)
    std = multiplier * sensitivity(1.0, examples, adjacency=adjacency)
    mean_std, smallest = std / math.sqrt(clients), 1 / classes
    return Plan(
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


def show(args: argparse.Namespace) -> int:
    """Print a plan in words, or a table of several, or JSON; returns the exit code."""
    common = {
        "delta": args.delta,
        "examples": args.examples,
        "clients": args.clients,
        "classes": args.classes,
        "adjacency": args.adjacency,
    }
    choices = itertools.product(args.epsilon, args.releases, args.dim)
    plans = [plan(*choice, **common) for choice in choices]
    if args.format == "json":
        rows = [{**asdict(one), "verdict": one.verdict} for one in plans]
        print(json.dumps({**common, "plans": rows}, indent=2))
    elif len(plans) == 1:
        print(_words(plans[0], common))
    else:
        print(_table(plans))
    return 0


def _words(one: Plan, common: dict[str, Any]) -> str:
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


def _table(plans: list[Plan]) -> str:
    header = ["epsilon", "releases", "d", "multiplier", "std of R", "of the mean", "noise edge",
              "against", "verdict"]  # fmt: skip
    body = [
        [f"{p.epsilon:g}", str(p.releases), str(p.dim), f"{p.noise_multiplier:.2f}",
         f"{p.noise_std:.2e}", f"{p.mean_noise_std:.2e}", f"{p.mean_noise_edge:.4f}",
         f"{p.smallest_useful:.3g}", p.verdict]
        for p in plans
    ]  # fmt: skip
    return padded([header, *body])
