"""Figures of a run, ready for a paper. Needs matplotlib (``nmoe-flower[report]``).

Colours are those of Okabe and Ito, which colour-blind readers tell apart; where more are needed, a
perceptually even map. Nothing here touches matplotlib's global state, so figures can be drawn from
any thread, without a display.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nmoe_flower.errors import NMoEError
from nmoe_flower.files import write_bytes
from nmoe_flower.report.tables import gate_kind, gate_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_accuracy", "draw_partition", "draw_rounds", "draw_routing"]

_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_GREY, _INK = "#8C8C8C", "#333333"
_CLASSES = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9",
    "#D55E00", "#F0E442", "#6A4C93", "#999999", "#1B1B1B",
)  # fmt: skip
_CONTROL_STYLES = {
    "control:fedavg": (_RED, (0, (5, 2))),
    "control:local-classifier": (_GREEN, (0, (1, 1.2))),
    "control:centralized": (_INK, (0, (6, 2, 1, 2))),
}
_TESTS = {"local": "Local test", "iid": "IID test"}
_ANNOTATED = 12


def draw_accuracy(results: Mapping[str, Any], path: Path) -> None:
    """Accuracy of every gate, local and IID test side by side.

    Bars are means over clients, dots the clients, lines the controls. The bar beside a gate's own
    is the gate with the prior correction; upper bounds are hatched.

    Args:
        results: What results.json holds; only ``rows`` is read. One seed.
        path: The PNG to write.
    """
    tests = [test for test in _TESTS if any(row["test"] == test for row in results["rows"])]
    figure = _figure(3.6 * max(len(tests), 1), 3.1)
    axes = figure.subplots(1, max(len(tests), 1), sharey=True, squeeze=False)[0]
    for axis, test in zip(axes, tests, strict=False):
        rows = {row["gate"]: row for row in results["rows"] if row["test"] == test}
        _draw_gates(axis, rows)
        axis.set_title(_TESTS[test])
    axes[0].set_ylabel("Accuracy")
    axes[0].set_ylim(0, 1)
    named: dict[str, Any] = {}
    for axis in axes:
        named |= {label: handle for handle, label in zip(*_legend(axis), strict=True)}
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=4, frameon=False, fontsize=7
    )
    _save(figure, path)


def _legend(axis: "Axes") -> tuple[list[Any], list[str]]:
    handles, labels = axis.get_legend_handles_labels()
    return handles, labels


def _draw_gates(axis: "Axes", rows: Mapping[str, Mapping[str, Any]]) -> None:
    bases = {name.removesuffix("+prior") for name in rows if not name.startswith("control:")}
    gates = sorted(bases, key=gate_order)
    for suffix, colour, shift in (("", _BLUE, -0.2), ("+prior", _ORANGE, 0.2)):
        label: str | None = "with prior correction" if suffix else "gate"
        for place, gate in enumerate(gates):
            row = rows.get(gate + suffix)
            if row is None:
                continue
            bound = gate_kind(gate) == "upper bound"
            axis.bar(
                place + shift, row["accuracy"], 0.38, color=colour, alpha=0.45 if bound else 0.9,
                hatch="////" if bound else None, edgecolor="white", linewidth=0,
                label=None if bound else label,
            )  # fmt: skip
            label = None
            _draw_clients(axis, place + shift, row)
    for control, (colour, dashes) in _CONTROL_STYLES.items():
        if control in rows:
            name = control.removeprefix("control:").replace("fedavg", "FedAvg").replace("-", " ")
            axis.axhline(
                rows[control]["accuracy"], color=colour, linestyle=dashes, linewidth=1.3, label=name
            )
    axis.set_xticks(range(len(gates)), gates, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.6, len(gates) - 0.4)
    _light_grid(axis)


def _draw_clients(axis: "Axes", place: float, row: Mapping[str, Any]) -> None:
    values = [v for v in (row.get("per_client") or {}).get("accuracy") or [] if v is not None]
    if values:
        spread = np.linspace(-0.11, 0.11, len(values)) if len(values) > 1 else np.zeros(1)
        axis.plot(
            place + spread, values, "o", markersize=2.0, color=_INK, markeredgewidth=0,
            alpha=0.75, zorder=3, clip_on=False,
        )  # fmt: skip


def draw_routing(matrix: Sequence[Sequence[float]], path: Path, *, title: str = "") -> None:
    """Heat map of who asks whom: row = client, column = expert, rows sum to 1.

    Args:
        matrix: Shares ``[m, m]``.
        path: The PNG to write.
        title: Goes before the local ratio ``LR``, the mean of the diagonal.
    """
    shares = np.asarray(matrix, dtype=float)
    clients, experts = shares.shape
    figure = _figure(3.6, 3.2)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ratio = f"LR = {100 * np.trace(shares) / clients:.0f} %"
    axis.set_title(f"{title}, {ratio}" if title else ratio)
    axis.set_xlabel("Expert ID")
    axis.set_ylabel("Client ID")
    axis.set_xticks(_ticks(experts))
    axis.set_yticks(_ticks(clients))
    if max(clients, experts) <= _ANNOTATED:
        for (row, column), share in np.ndenumerate(shares):
            text = "0" if share < 0.005 else f"{share:.2f}".lstrip("0")
            colour = "white" if share > 0.55 else _INK if share >= 0.005 else "#B5B5B5"
            axis.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    bar = figure.colorbar(image, ax=axis, fraction=0.046, pad=0.03)
    bar.set_label("Share of the client's samples")
    bar.outline.set_linewidth(0.4)
    _save(figure, path)


def draw_partition(
    counts_train: Sequence[Sequence[int]],
    counts_test: Sequence[Sequence[int]],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Who holds what: samples per class, stacked, one bar per client, train and test.

    Args:
        counts_train: Counts ``[clients, C]``.
        counts_test: Counts ``[clients, C]``.
        class_names: The C names.
        path: The PNG to write.
    """
    parts = {"Training data": np.asarray(counts_train), "Test data": np.asarray(counts_test)}
    figure = _figure(7.2, 2.8)
    axes = figure.subplots(1, 2)
    colours = _class_colours(len(class_names))
    for axis, (title, counts) in zip(axes, parts.items(), strict=True):
        clients = np.arange(len(counts))
        below = np.zeros(len(counts))
        for place, name in enumerate(class_names):
            axis.bar(
                clients, counts[:, place], 0.85, bottom=below, color=colours[place],
                label=str(name), linewidth=0,
            )  # fmt: skip
            below += counts[:, place]
        axis.set_title(title)
        axis.set_xlabel("Client ID")
        axis.set_xticks(_ticks(len(counts)))
        axis.set_xlim(-0.6, len(counts) - 0.4)
        _light_grid(axis)
    axes[0].set_ylabel("Samples")
    if len(class_names) <= 2 * len(_CLASSES):
        figure.legend(
            *_legend(axes[0]), loc="outside right center", title="Class", frameon=False, fontsize=7,
            ncols=math.ceil(len(class_names) / 12), reverse=True,
        )  # fmt: skip
    _save(figure, path)


def draw_rounds(rounds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss over rounds, and accuracy where it was measured, one column per stage.

    Args:
        rounds: Records of rounds.jsonl; stages without a loss and an accuracy are left out.
        path: The PNG to write.
    """
    curves = {
        stage: {kind: _curve(rounds, stage, kind) for kind in ("loss", "accuracy")}
        for stage in dict.fromkeys(str(record.get("stage", "")) for record in rounds)
    }
    curves = {stage: both for stage, both in curves.items() if any(both.values())}
    kinds = [kind for kind in ("loss", "accuracy") if any(both[kind] for both in curves.values())]
    figure = _figure(max(2.4 * len(curves), 3.6), max(1.9 * len(kinds), 2.2) + 0.2)
    axes = figure.subplots(max(len(kinds), 1), max(len(curves), 1), squeeze=False, sharex="col")
    for column, (stage, both) in enumerate(curves.items()):
        axes[0][column].set_title(stage)
        axes[-1][column].set_xlabel("Round")
        for line, kind in enumerate(kinds):
            _draw_curves(axes[line][column], both[kind], kind)
    for line, kind in enumerate(kinds):
        axes[line][0].set_ylabel(kind.capitalize())
    _save(figure, path)


def _curve(
    rounds: Sequence[Mapping[str, Any]], stage: str, kind: str
) -> dict[str, list[tuple[float, float]]]:
    """Points of every metric of a stage whose name ends in ``kind``, by name."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in rounds:
        if str(record.get("stage", "")) != stage:
            continue
        metrics = record.get("metrics")
        for name, value in {**record, **(metrics if isinstance(metrics, dict) else {})}.items():
            number = isinstance(value, int | float) and math.isfinite(value)
            if number and name.endswith(kind) and "balanced" not in name:
                curves.setdefault(name, []).append((float(record.get("round", 0)), float(value)))
    return curves


def _draw_curves(
    axis: "Axes", curves: Mapping[str, Sequence[tuple[float, float]]], kind: str
) -> None:
    if not curves:
        axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)
        axis.set_yticks([])
        return
    for (name, points), colour in zip(curves.items(), _CLASSES, strict=False):
        x, y = np.array(sorted(points)).T
        if len(x) > 60 and kind == "loss":
            axis.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
            width = len(x) // 20
            kernel = np.ones(width) / width
            x, y = np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")
        few = len(x) <= 20
        axis.plot(x, y, color=colour, linewidth=1.4, marker="o" if few else "", markersize=3,
                  label=name.replace("-", " ").replace("_", " "))  # fmt: skip
    if len(curves) > 1:
        axis.legend(frameon=False, fontsize=7, handlelength=1.4)
    _light_grid(axis, which="both")
    if kind == "accuracy":
        axis.set_ylim(0, 1)


def _class_colours(count: int) -> list[Any]:
    if count <= len(_CLASSES):
        return list(_CLASSES[:count])
    from matplotlib import colormaps

    return list(colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def _ticks(count: int) -> range:
    """At most about a dozen ticks."""
    return range(0, count, max(1, math.ceil(count / _ANNOTATED)))


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, inches; needs no display and no pyplot."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise NMoEError("figures need matplotlib: pip install 'nmoe-flower[report]'") from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    """Give every axis the common look and write the PNG, atomically."""
    for axis in figure.axes:
        axis.tick_params(labelsize=7, width=0.6, length=2.5, color=_GREY)
        axis.title.set_fontsize(8.5)
        for label in (axis.xaxis.label, axis.yaxis.label):
            label.set_fontsize(8)
        for side, spine in axis.spines.items():
            spine.set_linewidth(0.6)
            spine.set_color(_GREY)
            spine.set_visible(side in {"left", "bottom"} or bool(axis.images))
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    write_bytes(path, data.getvalue())


def _light_grid(axis: "Axes", *, which: Literal["both", "y"] = "y") -> None:
    axis.grid(axis=which, color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
