"""What tables and figures call the things of a study, and in which order they stand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nmoe_flower.report import GATE_NAMES, gate_order, place_of_test, test_label
from nmoe_flower.study.product import BASE, own_label, same, value_name

__all__ = ["METRIC_NAMES", "Labels", "is_number"]

METRIC_NAMES = {
    "accuracy": "accuracy",
    "worst_client": "accuracy, worst client",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auc": "AUC",
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity",
    "worst_bits_per_byte": "bits per byte, worst client",
    "pooled_bits_per_byte": "bits per byte, pooled",
    "local_ratio": "local ratio",
    "bytes_per_sample": "bytes per sample",
    "bytes_per_device": "bytes per device",
    "representation.probe_accuracy": "linear probe",
    "representation.knn_accuracy": "k-NN",
    "representation.effective_rank": "effective rank",
    "representation.noise_edge": "noise edge",
}


@dataclass(frozen=True)
class Labels:
    """Labels of a study's values, and their order.

    Attributes:
        variants: By name, what a variant is called.
        axes: By axis, its values in the order of the file.
        own: What the study calls a value, by that value or by ``dimension.value``: these go first.
            ``local``, a gate and a test, means the gate.
    """

    variants: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)

    def of_dimension(self, dimension: str) -> str:
        """What stands above the labels of a dimension.

        >>> Labels().of_dimension("data.tau"), Labels().of_dimension("gate")
        ('tau', 'gate')
        """
        short = "" if dimension == "number" else dimension.rpartition(".")[2]
        return self.own.get(dimension, short)

    def of_value(self, dimension: str, value: Any, *, alone: bool = False) -> str:
        """What one value of a dimension is called.

        Args:
            dimension: variant, gate, test, metric, seed, or an axis.
            value: The value.
            alone: It stands where nothing else names the dimension, as above a column.

        >>> labels = Labels(variants={"a": "Ours"})
        >>> labels.of_value("variant", "a"), labels.of_value("data.tau", 0.5, alone=True)
        ('Ours', 'tau = 0.5')
        >>> labels.of_value("metric", "gate.top-k"), labels.of_value("gate", "control:fedavg")
        ('top-k', 'FedAvg')
        >>> labels = Labels(own={"local": "own expert"})
        >>> labels.of_value("gate", "local+prior"), labels.of_value("test", "local")
        ('own expert + prior', 'local test')
        >>> labels = Labels(variants={"base": "base", "a": "Ours"})
        >>> labels.of_value("variant", "base"), Labels().of_value("variant", "base")
        ('base', '')
        """
        text = value_name(value)
        if (own := own_label(self.own, dimension, text)) is not None:
            return own
        if dimension == "variant":
            nameless = text == BASE and len(self.variants) < 2
            return "" if nameless else self.variants.get(text, text)
        if dimension == "number":
            return text
        if dimension == "gate":
            base = text.removesuffix("+prior")
            name = own_label(self.own, dimension, base) or GATE_NAMES.get(base, base)
            return f"{name} + prior" if base != text else name
        if dimension == "test" and text:
            label: str = test_label(text)
            return label if label.startswith("IID") else f"{label[0].lower()}{label[1:]}"
        if dimension == "metric":
            return METRIC_NAMES.get(text, text.rpartition(".")[2].replace("_", " "))
        names = dimension == "seed" or "." in dimension
        return f"{self.of_dimension(dimension)} = {text}" if alone and names else text

    def of_setting(self, axis: str, value: Any) -> str:
        """A value of an axis, with the axis where the value alone says nothing.

        >>> Labels().of_setting("clients", "20"), Labels().of_setting("setting", "iid")
        ('20 clients', 'iid')
        """
        text = self.of_value(axis, value, alone=True)
        return f"{text} {self.of_dimension(axis)}" if is_number(text) else text

    def order(self, dimension: str, value: Any, listed: Sequence[Any] = ()) -> tuple[int, Any]:
        """Sort key: as the table lists them, else as the file does."""
        known = list(listed)
        if dimension == "variant":
            known = known or list(self.variants)
        elif dimension not in ("gate", "test", "metric", "seed", "number"):
            known = list(self.axes.get(dimension, ()))
        for place, other in enumerate(known):
            if same(value, other):
                return place, ""
        if dimension == "gate":
            return len(known) + gate_order(value)[0], value
        if dimension == "test":
            return place_of_test(value)
        if dimension == "seed":
            return int(value), ""
        return len(known), value_name(value)


def is_number(text: str) -> bool:
    """Whether a text is a finite number and nothing else.

    >>> is_number("0.5"), is_number("tau = 0.5"), is_number("nan")
    (True, False, False)
    """
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
