"""Colours can be read in light and in dark, and told apart by everybody."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from nmoe_flower import report
from nmoe_flower.report.html.charts import COLOURS, STEPS

STYLE = Path(report.__file__).parent / "html" / "templates" / "style.css"
PAIRS = re.findall(
    r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", STYLE.read_text(encoding="utf-8")
)
SCHEMES = {
    "light": {name: light for name, light, _ in PAIRS},
    "dark": {name: dark for name, _, dark in PAIRS},
}
# What colour-blind readers see of linear red, green and blue (Machado, Oliveira and Fernandes 2009,
# severity 1).
BLIND = {
    "nobody": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def linear(colour):
    """Red, green and blue as amounts of light (sRGB)."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def contrast(one, two):
    """As WCAG 2 defines it, 1 to 21."""
    dark, light = sorted([luminance(one), luminance(two)])
    return (light + 0.05) / (dark + 0.05)


def lab(light):
    """CIE L*a*b* under D65."""
    xyz = np.clip(light, 0, 1) @ np.array(
        [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]]
    )
    part = xyz / [0.9505, 1.0, 1.089]
    root = np.where(part > 216 / 24389, np.cbrt(part), (24389 / 27 * part + 16) / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def test_the_ratios_are_those_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the known near miss


def test_every_colour_of_the_style_sheet_is_one_of_these():
    text = STYLE.read_text(encoding="utf-8")
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", text)) == {c for _, *two in PAIRS for c in two}
    used = set(re.findall(r"var\(--([\w-]+)\)", text)) - {"k"}
    assert used <= SCHEMES["light"].keys()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_can_be_read(scheme):
    colours = SCHEMES[scheme]
    lines = [f"c{i}" for i in range(COLOURS)]
    for name in ("ink", "muted", "accent", "better", "worse", *lines):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    for name in ("ink", "muted", "better", "worse"):
        assert contrast(colours[name], colours["raised"]) >= 4.5, name
    for name in ("focus", "own", "muted"):  # marks that are no text
        assert contrast(colours[name], colours["page"]) >= 3, name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers_in_a_heat_map_can_be_read(scheme):
    colours = SCHEMES[scheme]
    for step in range(STEPS):
        on = colours["on-high" if step >= 6 else "on-low"]
        assert contrast(on, colours[f"h{step}"]) >= 4.5, step


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shades_go_one_way_in_steps_that_can_be_seen(scheme):
    light = [lab(linear(SCHEMES[scheme][f"h{step}"]))[0] for step in range(STEPS)]
    steps = np.diff(light) * (-1 if scheme == "light" else 1)
    assert steps.min() >= 4.5
    assert steps.max() <= 14


@pytest.mark.parametrize("sight", BLIND)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_neighbouring_lines_are_told_apart_by_everybody(scheme, sight):
    """A difference of 2 is just seen; the four that most charts have are further apart."""
    seen = [
        lab(linear(SCHEMES[scheme][f"c{i}"]) @ np.transpose(BLIND[sight])) for i in range(COLOURS)
    ]
    apart = {
        (one, two): float(np.linalg.norm(seen[one] - seen[two]))
        for one, two in combinations(range(COLOURS), 2)
    }
    assert min(v for (_, two), v in apart.items() if two < 4) >= 25, apart
    assert min(apart.values()) >= 15, apart
