"""The figures of a run: accuracy per gate, who asks whom, who holds what, the rounds."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nmoe_flower.catalogue import GATES
from nmoe_flower.report.canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    colours,
    count_rounds,
    few_ticks,
    light_grid,
    new,
    save,
    shortened,
    write_shares,
)
from nmoe_flower.report.tables import (
    GATE_NAMES,
    gate_kind,
    gate_order,
    place_of_test,
    shown_tests,
    test_label,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "draw_accuracy",
    "draw_bits_per_byte",
    "draw_partition",
    "draw_rounds",
    "draw_routing",
    "drawn_routing",
    "moving_mean",
]

_NEAR = 0.3  # an axis that would start below this starts at 0
_PILE = 0.12  # how far, of a line of the figure, equal dots go to either side
_LOOKS = (
    ("", BLUE, "o", -0.17, "without prior correction"),
    ("+prior", ORANGE, "D", 0.17, "with prior correction"),
)
_ANNOTATED = 12  # experts, at most, whose shares are written into the map
_TEST = "-test"
_ELSEWHERE = ("balanced", "probe-", "knn-")  # no metrics of training, or in figures of their own
_COLUMNS = 2
_LONG = 30

_PLAIN_GATES = frozenset(name for name, gate in GATES.items() if gate.plain)

# By metric: round and value.
Points = dict[str, list[tuple[float, float]]]


def draw_accuracy(results: Sequence[Mapping[str, Any]], path: Path, *, note: str = "") -> None:
    """Accuracy of every gate and control, local and IID test side by side.

    A marker and the number beside it are the mean over clients and seeds. Small dots are the
    clients of a single seed or, of several, the seeds; then a bar shows their standard deviation.
    Hollow markers are upper bounds. An axis need not start at 0 and says where it does; the two
    differ. Validation, on which settings are chosen, is drawn only where it is alone.

    Args:
        results: What results.json holds, one per seed; only ``rows`` is read.
        path: The PNG to write.
        note: What the figure stands for, as the seeds.
    """
    _draw_gates(results, path, "accuracy", note)


def draw_bits_per_byte(results: Sequence[Mapping[str, Any]], path: Path, *, note: str = "") -> None:
    """As `draw_accuracy`, of runs on text: bits per byte, of which less is better.

    Args:
        results: What results.json holds, one per seed; only ``rows`` is read.
        path: The PNG to write.
        note: What the figure stands for, as the seeds.
    """
    _draw_gates(results, path, "bits_per_byte", note)


def _draw_gates(results: Sequence[Mapping[str, Any]], path: Path, metric: str, note: str) -> None:
    rows = [
        {
            "gate": row["gate"],
            "test": row["test"],
            "value": float(row[metric]),
            "clients": _of_clients(row, metric),
        }
        for result in results
        for row in result["rows"]
        if row.get(metric) is not None
    ]
    tests = shown_tests(row["test"] for row in rows)
    bases = sorted({_base(row["gate"]) for row in rows}, key=gate_order)
    places = _places(bases)
    figure = new(max(3.6 * len(tests), 3.6), 0.9 + 0.27 * (max(places.values(), default=0) + 1))
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots(1, max(len(tests), 1), sharey=True, squeeze=False)[0]
    for axis, test in zip(axes, tests, strict=False):
        drawn = []
        for look in _LOOKS:
            for base, place in places.items():
                cell = [r for r in rows if r["test"] == test and r["gate"] == base + look[0]]
                drawn += _draw_cell(axis, place, cell, look)
        axis.set_title(test_label(test), fontsize=8.5)
        light_grid(axis, which="both")
        if metric == "accuracy":
            start = math.floor(max(min([1.0, *drawn]) - 0.02, 0) * 10) / 10
            axis.set_xlim(start if start > _NEAR else 0.0, 1.0)
        elif drawn:
            axis.set_xlim(max(math.floor(2 * min(drawn) - 0.2) / 2, 0), math.ceil(max(drawn)))
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_xlabel(metric.replace("_", " ").capitalize())
    axes[0].set_yticks(list(places.values()), [GATE_NAMES.get(base, base) for base in bases])
    axes[0].set_ylim(max(places.values(), default=0) + 0.6, -0.6)
    if rows:
        _legend(axes[0], rows, seeds=len(results))
    save(figure, path, note=note)


def _base(gate: str) -> str:
    return gate.removesuffix("+prior")


def _places(bases: Sequence[str]) -> dict[str, float]:
    """Where each row goes: gates, upper bounds and controls stand a little apart."""
    places: dict[str, float] = {}
    place, before = 0.0, ""
    for base in bases:
        kind = gate_kind(base)
        place += 0.4 if before not in {"", kind} else 0
        places[base] = place
        place, before = place + 1, kind
    return places


def _draw_cell(
    axis: "Axes",
    place: float,
    cell: Sequence[Mapping[str, Any]],
    look: tuple[str, str, str, float, str],
) -> list[float]:
    """Draw one gate of one test; returns the values drawn."""
    if not cell:
        return []
    _, colour, marker, shift, _ = look
    seeds = [row["value"] for row in cell]
    mean, y = statistics.fmean(seeds), place + shift
    dots = seeds if len(seeds) > 1 else cell[0]["clients"]
    if dots:  # an empty line that is not clipped breaks the layout
        axis.plot(dots, y + _piled(dots), "o", markersize=2.4, color=colour, alpha=0.4,
                  markeredgewidth=0, clip_on=False)  # fmt: skip
    if len(seeds) > 1:
        axis.errorbar(mean, y, xerr=statistics.stdev(seeds), color=INK, linewidth=0.9, capsize=1.8)
    hollow = gate_kind(cell[0]["gate"]) == "upper bound"
    axis.plot(mean, y, marker, markersize=4.2 if marker == "o" else 3.6, color=colour, zorder=4,
              markerfacecolor="white" if hollow else colour, clip_on=False)  # fmt: skip
    axis.annotate(f"{mean:.3f}", (1, y), (4, 0), xycoords=("axes fraction", "data"),
                  textcoords="offset points", fontsize=5.5, va="center", color=colour)  # fmt: skip
    return [mean, *dots]


def _piled(values: Sequence[float]) -> npt.NDArray[np.float64]:
    """How far each dot goes up or down, so that equal values form a pile and none hides another.

    >>> _piled([0.5, 0.25, 0.5, 0.5]).tolist()
    [0.0, 0.0, 0.06, -0.06]
    """
    found = np.asarray(values)
    before = np.array([np.count_nonzero(found[:place] == v) for place, v in enumerate(found)])
    step = min(_PILE / 2, _PILE / max((before.max() + 1) // 2, 1))
    places: npt.NDArray[np.float64] = (before + 1) // 2 * step * np.where(before % 2, 1.0, -1.0)
    return places + 0.0  # no negative zero


def _of_clients(row: Mapping[str, Any], metric: str) -> list[float]:
    values = (row.get("per_client") or {}).get(metric) or []
    return [float(value) for value in values if value is not None]


def _legend(axis: "Axes", rows: Sequence[Mapping[str, Any]], *, seeds: int) -> None:
    """Below everything, only the marks that occur."""
    from matplotlib.lines import Line2D

    gates = {str(row["gate"]) for row in rows}
    corrected = {gate.endswith("+prior") for gate in gates}
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=4, linestyle="", label=label)
        for suffix, colour, marker, _, label in _LOOKS
        if bool(suffix) in corrected and (suffix or len(corrected) > 1)
    ]
    if any(gate_kind(gate) == "upper bound" for gate in gates):
        handles.append(Line2D([], [], color=GREY, marker="o", markersize=4, linestyle="",
                              label="upper bound", markerfacecolor="white"))  # fmt: skip
    if seeds > 1 or any(row["clients"] for row in rows):
        label = "one seed" if seeds > 1 else "one client"
        handles.append(Line2D([], [], color=GREY, marker="o", markersize=2.4, linestyle="",
                              alpha=0.6, label=label))  # fmt: skip
    if seeds > 1:
        handles.append(Line2D([], [], color=INK, linewidth=0.9, label="standard deviation"))
    figure = axis.get_figure()
    assert figure is not None
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=7,
            handletextpad=0.5, columnspacing=1.6,
        )  # fmt: skip


def drawn_routing(routing: Collection[str]) -> list[tuple[str, str]]:
    """Gate and test of the routing that is worth a look, in the order of figures.

    Args:
        routing: Keys of ``routing`` in results.json, ``<gate>/<test>``.

    >>> drawn_routing(["federated/iid", "random/iid", "federated/local", "federated+prior/local"])
    [('federated', 'local'), ('federated', 'iid')]
    """
    named = [(gate, test) for gate, _, test in (name.rpartition("/") for name in routing)]
    tests = shown_tests(test for _, test in named)
    found = []
    for gate, test in named:
        base = gate.removesuffix("+prior")
        # The prior correction changes answers, never who is asked.
        known = base in _PLAIN_GATES or (base != gate and f"{base}/{test}" in routing)
        if test in tests and not known:
            found.append((gate, test))
    return sorted(found, key=lambda pair: (gate_order(pair[0]), place_of_test(pair[1])))


def draw_routing(
    matrix: Sequence[Sequence[float]], path: Path, *, title: str = "", note: str = ""
) -> None:
    """Heat map of who asks whom: row = client, column = expert, rows sum to 1.

    Args:
        matrix: Shares ``[m, m]``.
        path: The PNG to write.
        title: Goes before the local ratio ``LR``, the mean of the diagonal.
        note: What the figure stands for, as the seed.
    """
    shares = np.asarray(matrix, dtype=float)
    clients, experts = shares.shape
    figure = new(3.6, 3.2)
    figure.set_layout_engine("compressed")  # the usual one cuts the labels of square axes
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ratio = f"LR = {100 * np.trace(shares) / clients:.0f} %"
    axis.set_title(f"{title}, {ratio}" if title else ratio, fontsize=8.5)
    axis.set_xlabel("Expert ID")
    axis.set_ylabel("Client ID")
    axis.set_xticks(few_ticks(experts))
    axis.set_yticks(few_ticks(clients))
    if max(clients, experts) <= _ANNOTATED:
        write_shares(axis, shares)
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label("Share of the client's samples")
    bar.outline.set_linewidth(0.4)
    save(figure, path, note=note)


def draw_partition(
    counts_train: Sequence[Sequence[int]],
    counts_test: Sequence[Sequence[int]],
    class_names: Sequence[str],
    path: Path,
    *,
    counts_validation: Sequence[Sequence[int]] = (),
    pictures: Mapping[str, Sequence[tuple[str, np.ndarray]]] | None = None,
    note: str = "",
    of_text: bool = False,
) -> None:
    """Who holds what: samples per class, stacked, one bar per client, a panel per part.

    Args:
        counts_train: Counts ``[clients, C]``.
        counts_test: Counts ``[clients, C]``.
        class_names: The C names.
        path: The PNG to write.
        counts_validation: Counts ``[clients, C]``; empty if there is no such data.
        pictures: Some images of each client, with what it calls their class, uint8
            [H, W, channels], by the client's name; they are drawn below, a row each.
        note: What the figure stands for, as the seed.
        of_text: Counted are windows of text, per domain.
    """
    parts = {"Training data": np.asarray(counts_train), "Local test data": np.asarray(counts_test)}
    if len(counts_validation):
        parts["Validation data"] = np.asarray(counts_validation)
    below = 0.52 * len(pictures) if pictures else 0.0  # inches
    figure = new(3.6 * len(parts), 2.6 + below)
    from matplotlib.patches import Patch

    bars: Figure | SubFigure = figure
    if pictures:
        parted = figure.subfigures(2, 1, height_ratios=(2.6, below), squeeze=False)
        bars = parted[0, 0]
        _draw_pictures(parted[1, 0], pictures)
    axes = bars.subplots(1, len(parts))
    paint = colours(len(class_names))
    for axis, (title, counts) in zip(axes, parts.items(), strict=True):
        clients = np.arange(len(counts))
        heights = np.zeros(len(counts))
        for place in range(len(class_names)):
            held = np.flatnonzero(counts[:, place])  # hundreds of classes leave few at a client
            axis.bar(
                clients[held], counts[held, place], 0.85, bottom=heights[held], color=paint[place],
                linewidth=0,
            )  # fmt: skip
            heights += counts[:, place]
        axis.set_title(title, fontsize=8.5)
        axis.set_xlabel("Client ID")
        axis.set_xticks(few_ticks(len(counts)))
        axis.set_xlim(-0.6, len(counts) - 0.4)
        light_grid(axis)
    axes[0].set_ylabel("Windows" if of_text else "Samples")
    if len(class_names) <= 20:
        bars.legend(
            [Patch(color=colour, linewidth=0) for colour in paint],
            [shortened(name) for name in class_names],
            loc="outside right center", title="Domain" if of_text else "Class", title_fontsize=7.5,
            frameon=False, fontsize=7, ncols=math.ceil(len(class_names) / 12), reverse=True,
        )  # fmt: skip
    save(figure, path, note=note)


def _draw_pictures(
    figure: "SubFigure", pictures: Mapping[str, Sequence[tuple[str, np.ndarray]]]
) -> None:
    """A row of images per client, its name before them and the name of its class under each."""
    columns = max(map(len, pictures.values()))
    axes = figure.subplots(len(pictures), columns, squeeze=False)
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        for axis in row:
            axis.set_axis_off()
        row[0].text(
            -0.3, 0.5, shortened(name), fontsize=7, ha="right", va="center",
            transform=row[0].transAxes,
        )  # fmt: skip
        for axis, (label, image) in zip(row, images, strict=False):
            grey = image.shape[2] == 1
            axis.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255)
            axis.set_title(shortened(label), fontsize=4.5, pad=1, y=-0.24)


def draw_rounds(rounds: Sequence[Mapping[str, Any]], path: Path, *, note: str = "") -> None:
    """Loss of every stage over its rounds, test accuracy beside it where it was measured.

    From 30 rounds on, the loss of a round is drawn pale and a moving mean strong: rounds differ in
    who takes part, and that jumps more than the training moves.

    Args:
        rounds: Records of rounds.jsonl; stages without a loss and an accuracy are left out. The
            accuracy of stage ``<name>-test`` belongs to ``<name>``.
        path: The PNG to write.
        note: What the figure stands for, as the seed.
    """
    names = dict.fromkeys(_stage(record).removesuffix(_TEST) for record in rounds)
    panels = [
        (stage, kind, points)
        for stage in names
        for kind in ("loss", "accuracy")
        if (points := _points(rounds, stage, kind))
    ]
    columns = min(max(len(panels), 1), _COLUMNS)
    lines = max(math.ceil(len(panels) / columns), 1)
    figure = new(3.6 * columns, 2.1 * lines)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis, (stage, kind, points) in zip(axes, panels, strict=False):
        axis.set_title(stage, fontsize=8.5, loc="left")
        (_draw_loss if kind == "loss" else _draw_accuracy)(axis, points)
        axis.legend(
            loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3, frameon=False, fontsize=6.5,
            handlelength=1.6, columnspacing=1.2, borderpad=0.2,
        )  # fmt: skip
        count_rounds(axis)
        light_grid(axis, which="both")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    save(figure, path, note=note)


def _stage(record: Mapping[str, Any]) -> str:
    return str(record.get("stage", ""))


def _points(rounds: Sequence[Mapping[str, Any]], stage: str, kind: str) -> Points:
    """Points of every metric of a stage that speaks of ``kind``, by name, in order of rounds."""
    curves: Points = {}
    for record in rounds:
        metrics = record.get("metrics")
        if _stage(record) not in {stage, stage + _TEST} or not isinstance(metrics, dict):
            continue
        for name, value in metrics.items():
            number = isinstance(value, int | float) and math.isfinite(value)
            if number and kind in name and not name.startswith(_ELSEWHERE):
                curves.setdefault(name, []).append((float(record.get("round", 0)), float(value)))
    return {name: sorted(points) for name, points in curves.items()}


def _draw_loss(axis: "Axes", curves: Points) -> None:
    for (name, points), colour in zip(curves.items(), colours(len(curves)), strict=True):
        x, y = np.array(points).T
        label = name if len(curves) > 1 else ""
        if len(x) < _LONG:
            axis.plot(x, y, color=colour, linewidth=1.2, marker="o", markersize=2.5,
                      label=label or "each round")  # fmt: skip
            continue
        width = max(11, len(x) // 20 | 1)
        axis.plot(x, y, color=colour, linewidth=0.5, alpha=0.3, label=label or "each round")
        axis.plot(x, moving_mean(y, width), color=colour, linewidth=1.5,
                  label=f"{label} mean of {width} rounds".strip())  # fmt: skip
    axis.set_ylabel("Training loss")


def _draw_accuracy(axis: "Axes", curves: Points) -> None:
    # Dashes on top let the curve below show: the two are often equal.
    styles: dict[str, tuple[Any, Any, str, float]] = {
        "accuracy-local": (BLUE, "-", "o", 4.5),
        "accuracy-iid": ("#E69F00", (0, (3, 2)), "s", 2.4),
        "accuracy-validation": (GREY, (0, (1, 1.5)), "D", 2.2),
    }
    spare = iter(colours(10)[2:])
    for name in sorted(curves, reverse=True):
        x, y = np.array(curves[name]).T
        colour, dashes, marker, size = styles.get(name) or (next(spare, BLUE), "-", "^", 3)
        spoken = test_label(name.removeprefix("accuracy-"))
        label = spoken if spoken.startswith("IID") else spoken.lower()
        axis.plot(x, y, color=colour, linestyle=dashes, linewidth=1.3, marker=marker,
                  markersize=size, label=label if name in styles else name)  # fmt: skip
    axis.set_ylabel("Test accuracy")


def moving_mean(values: npt.NDArray[np.float64], width: int) -> npt.NDArray[np.float64]:
    """Mean over ``width`` neighbours, an odd number.

    At the start it takes as many on either side as there are before: losses fall fast there, and
    the mean begins where they do. At the end, where they are level, it takes those there are.

    >>> moving_mean(np.array([9.0, 4.0, 2.0, 3.0, 1.0]), 3)
    array([9., 5., 3., 2., 2.])
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    first = np.maximum(place - width // 2, 0)
    last = np.minimum(np.minimum(place + width // 2, 2 * place) + 1, len(values))
    means: npt.NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means
