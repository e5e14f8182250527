"""Measure on synthetic data, or compute, what the pages on privacy and on FedSC's loss state.

    python -m experiments.publish synthetic    # all, about a minute and a half on one core
    python -m experiments.publish synthetic privacy-audit loss-of-batches

Each table goes to results/NAME/table.txt; the command `pages` puts it into its page.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from experiments.publish.published import RESULTS, markdown
from nmoe_flower.files import write_text
from nmoe_flower.losses import RunningCorrelation, local_spectral, unit_ball
from nmoe_flower.privacy import (
    GaussianMechanism,
    audit_releases,
    epsilon_spent,
    membership_auc,
    mu_of,
    noise_edge,
    noise_multiplier_for,
    sensitivity,
    shrink_spectrum,
    steps_epsilon,
)

DELTA = 1e-5
Floats = npt.NDArray[np.float64]
Table = tuple[list[str], list[list[str]]]


# --- features ---


def clusters(rng: np.random.Generator, number: int, dim: int, spread: float = 0.4) -> Floats:
    """Samples [n, d] of length 1 around ten orthogonal centres; ``spread`` is the noise's variance
    over the centre's length."""
    samples: Floats = rng.standard_normal((number, dim)) * math.sqrt(spread / dim)
    samples[np.arange(number), rng.integers(10, size=number)] += 1
    return _of_length_1(samples)


def slanted(rng: np.random.Generator, number: int, dim: int) -> Floats:
    """Samples [n, d] of length 1 whose directions matter less and less."""
    samples = rng.standard_normal((number, dim)) * np.linspace(1, 0.05, dim)
    return _of_length_1(samples)


def _of_length_1(samples: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(samples, axis=1, keepdims=True)
    return samples / lengths


def matrix_of(samples: Floats) -> Floats:
    return samples.T @ samples / len(samples)


# --- accounts ---


def accountants() -> Table:
    """Exact composition beside Opacus's bounds."""
    rows = []
    published = 0.919  # the noise of FedSC's code on CIFAR-10, over the sensitivity
    for noise, releases in ((7.0, 50), (2.68, 20), (3.73, 1), (published, 1), (published, 200)):
        spent = [
            epsilon_spent(noise, releases, DELTA, method=method)
            for method in ("exact", "prv", "rdp")
        ]
        rows.append([f"{noise:#.3g}", str(releases), *(f"{epsilon:.2f}" for epsilon in spent)])
    return ["noise multiplier", "releases", "exact", "Opacus PRV", "Opacus RDP"], rows


def multipliers() -> Table:
    """Noise for a budget."""
    counts = (1, 10, 20, 50, 100, 200)
    rows = [
        [f"{epsilon:g}", f"{mu_of(epsilon, DELTA):.3f}"]
        + [f"{noise_multiplier_for(epsilon, DELTA, count):#.3g}" for count in counts]
        for epsilon in (0.5, 1, 2, 4, 8)
    ]
    return ["epsilon", "mu", "1 release", *(str(count) for count in counts[1:])], rows


def steps() -> Table:
    """DP-SGD: batches of 50 of 2,500 images."""
    rows = []
    for noise in (0.71, 1.33, 6.15):
        history = [(noise, 0.02, 600)]
        spent = [
            steps_epsilon(history, DELTA, adjacency=adjacency)
            for adjacency in ("add-remove", "replace-one")
        ]
        rows.append([f"{noise:g}", "600", *(f"{epsilon:#.3g}" for epsilon in spent)])
    return ["noise multiplier", "steps", "added or removed", "replaced"], rows


# --- after the release ---


def shrinking() -> Table:
    """Error of the mean of ten clients, relative to the true mean."""
    rows = []
    for epsilon, releases in ((8, 20), (2, 20), (1, 50)):
        mechanism = GaussianMechanism(noise_multiplier_for(epsilon, DELTA, releases), 1.0, 2500)
        noise = torch.Generator().manual_seed(0)
        rng = np.random.default_rng(0)
        std = mechanism.noise_std / math.sqrt(10)
        errors = []
        for _ in range(5):
            clients = [torch.from_numpy(matrix_of(clusters(rng, 2500, 128))) for _ in range(10)]
            truth = torch.stack(clients).mean(dim=0).numpy()
            released = [mechanism.release(client, noise) for client in clients]
            mean = torch.stack(released).mean(dim=0).numpy()
            found = [mean, *(shrink_spectrum(mean, std, goal=g) for g in ("matrix", "eigenvalues"))]
            errors.append([np.linalg.norm(one - truth) / np.linalg.norm(truth) for one in found])
        means = np.mean(errors, axis=0)
        edge = noise_edge(std, 128)
        rows.append([f"{epsilon}, {releases}", f"{edge:.4f}", *(f"{mean:.3f}" for mean in means)])
    header = ["epsilon, releases", "noise edge", "as released"]
    return [*header, 'shrunk ("matrix")', 'shrunk ("eigenvalues")'], rows


# --- attacks ---

SIZE, CLIP = 4, 2.0  # of the audited data set


def ours() -> Callable[[Floats, int], Floats]:
    mechanism = GaussianMechanism(1.0, CLIP, SIZE)
    generator = torch.Generator().manual_seed(0)

    def release(data: Floats, number: int) -> Floats:
        total = mechanism.correlation()
        total.add(torch.from_numpy(data))
        matrix = total.result()
        return torch.stack([mechanism.release(matrix, generator) for _ in range(number)]).numpy()

    return release


def broken(
    noise: Callable[[Floats], Floats], *, clips: bool = True
) -> Callable[[Floats, int], Floats]:
    """The mechanism with something wrong: ``noise`` maps symmetric noise to what is added."""
    rng = np.random.default_rng(1)

    def release(data: Floats, number: int) -> Floats:
        length = np.linalg.norm(data, axis=1, keepdims=True)
        kept = data * np.minimum(1, CLIP / np.maximum(length, 1e-12)) if clips else data
        full = rng.standard_normal((number, 3, 3))
        symmetric = (full + full.transpose(0, 2, 1)) / 2
        return kept.T @ kept / SIZE + sensitivity(CLIP, SIZE) * noise(symmetric)

    return release


def symmetrised(noise: Floats) -> Floats:
    upper = np.triu(noise)
    return (upper + upper.transpose(0, 2, 1)) / 2


def audit() -> Table:
    """Lower bounds on mu; what is claimed is mu = 1."""
    mechanisms = {
        "ours": ours(),
        "half the noise": broken(lambda noise: noise / 2),
        "no clipping": broken(lambda noise: noise, clips=False),
        "noise on one triangle only": broken(np.triu),
        "the same, then symmetrised": broken(symmetrised),
    }
    rows = []
    for name, mechanism in mechanisms.items():
        result = audit_releases(
            mechanism, noise_multiplier=1.0, clip=CLIP, num_examples=SIZE, delta=DELTA,
            trials=2000, rng=np.random.default_rng(0),
        )  # fmt: skip
        bounds = [f"{finding.mu:.2f}" for finding in result.findings]
        pairs = [finding.pair for finding in result.findings]
        rows.append([name, *bounds, "passes" if result.passed else "fails"])
    return ["mechanism", *pairs, "verdict"], rows


def membership() -> Table:
    """Area under the curve, one release, mean of three draws."""
    epsilons = (None, 8, 2, 1)
    rows = []
    for number, dim in ((100, 32), (500, 128), (2500, 128)):
        cells = []
        for epsilon in epsilons:
            rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
            found = []
            for _ in range(3):
                members, outsiders = slanted(rng, number, dim), slanted(rng, 2000, dim)
                released, ridge = matrix_of(members), 1e-3
                if epsilon is not None:
                    noise = noise_multiplier_for(epsilon, DELTA, 1)
                    mechanism = GaussianMechanism(noise, 1.0, number)
                    released = mechanism.release(torch.from_numpy(released), generator).numpy()
                    ridge = noise_edge(mechanism.noise_std, dim)
                found.append(membership_auc(released, members, outsiders, ridge=ridge))
            cells.append(f"{np.mean(found):.2f}")
        rows.append([f"{number}, {dim}", *cells])
    names = ["no noise" if epsilon is None else f"epsilon {epsilon}" for epsilon in epsilons]
    return ["n, d", *names], rows


# --- the loss of a batch ---


def uniformity(z1: torch.Tensor, z2: torch.Tensor, **options: Any) -> torch.Tensor:
    """The term of the loss that pushes samples apart."""
    loss = local_spectral(z1, z2, None, share=1.0, **options)
    return loss + (z1 * z2).sum(dim=1).mean()


def batches() -> Table:
    """Excess of the term's value, and noise of its gradient by a linear layer, at fixed weights."""
    rng = np.random.default_rng(0)
    samples = clusters(rng, 2500, 128)
    shake = math.sqrt(0.1 / 128)
    views = [
        torch.from_numpy(samples + shake * rng.standard_normal(samples.shape)) for _ in range(2)
    ]
    layer = torch.eye(128, dtype=torch.float64, requires_grad=True)

    def measured(chosen: npt.NDArray[np.intp], **options: Any) -> tuple[float, torch.Tensor]:
        features = [unit_ball(view[chosen] @ layer) for view in views]
        value = uniformity(*features, **options)
        return value.item(), torch.autograd.grad(value, layer)[0]

    everything = np.arange(len(samples))
    truth, slope = measured(everything)

    def noise(gradients: list[torch.Tensor]) -> float:
        distances = [float(torch.linalg.norm(gradient - slope)) for gradient in gradients]
        return float(np.mean(distances) / torch.linalg.norm(slope))

    rows = []
    for size in (16, 32, 128, 512):
        values: dict[str, list[float]] = {"plain": [], "others": []}
        gradients: dict[str, list[torch.Tensor]] = {"others": [], "running": []}
        past = RunningCorrelation(0.9)
        for number in range(140 if size < 512 else 60):  # the first 20 fill the running matrix
            chosen = rng.choice(everything, size, replace=False)
            if number >= 20:
                values["plain"].append(measured(chosen, unbiased=False)[0])
                value, gradient = measured(chosen)
                values["others"].append(value)
                gradients["others"].append(gradient)
                gradients["running"].append(measured(chosen, running=past.value)[1])
            both = torch.cat([unit_ball(view[chosen]) for view in views])
            past.update(both)
        excess = [f"{100 * (np.mean(found) / truth - 1):+.1f} %" for found in values.values()]
        rows.append([str(size), *excess, *(f"{noise(found):.2f}" for found in gradients.values())])
    header = ["B", "excess of the value: plain", "without own terms"]
    return [*header, "gradient noise, without own terms", "with a running matrix"], rows


TABLES: dict[str, Callable[[], Table]] = {
    "privacy-accountants": accountants,
    "privacy-multipliers": multipliers,
    "privacy-steps": steps,
    "privacy-shrinking": shrinking,
    "privacy-audit": audit,
    "privacy-membership": membership,
    "loss-of-batches": batches,
}


def text(name: str) -> str:
    """A table in Markdown."""
    return "\n".join(markdown(*TABLES[name]())) + "\n"


def main(argv: Sequence[str]) -> int:
    """Write the tables that are named, or all."""
    names = list(argv) or list(TABLES)
    unknown = [name for name in names if name not in TABLES]
    if unknown:
        print(f"no table {', '.join(unknown)}; there are {', '.join(TABLES)}")
        return 2
    for name in names:
        started = time.monotonic()
        table = text(name)
        write_text(RESULTS / name / "table.txt", table)
        print(table + f"{name}: {time.monotonic() - started:.1f} s\n")
    return 0
