"""Draw the published figures again from what is published, and compare.

python -m experiments.publish figures            # all, into results/
python -m experiments.publish figures --check    # 1 if one differs from what its files say
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from experiments.publish.published import RESULTS
from nmoe_flower.files import write_bytes
from nmoe_flower.report import alignment_table, draw_alignment, draw_figures, load_runs

COLOURS = 256


def small(figure: Path) -> bytes:
    """A figure as a PNG with a palette: a third of the bytes, and the same to the eye."""
    with Image.open(figure) as image:
        drawn = image.convert("RGB").quantize(
            COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
    data = BytesIO()
    drawn.save(data, "PNG", optimize=True)
    return data.getvalue()


def again() -> Iterator[tuple[Path, bytes]]:
    """Every published figure, and table of policies, with what its files say it is."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for figures in sorted(RESULTS.glob("*/*/seed-*/figures")):
            drawn = {path.name: path for path in draw_figures(figures.parent, out / figures.name)}
            for path in sorted(figures.glob("*.png")):
                yield path, small(drawn[path.name])
        for study in sorted(path.parent for path in RESULTS.glob("*/alignment.png")):
            runs = load_runs(sorted(path.parent for path in study.glob("*/seed-*/results.json")))
            yield study / "table.txt", f"{alignment_table(runs).rstrip()}\n".encode()
            for path in draw_alignment(runs, out):
                if (study / path.name).exists():
                    yield study / path.name, small(path)


def main(argv: Sequence[str]) -> int:
    """Write them, or compare; 1 if one differs."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.publish figures", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args(argv)
    differ = 0
    for path, found in again():
        if path.read_bytes() != found:
            differ = int(args.check)
            print(path.relative_to(RESULTS), "differs" if args.check else "written")
            if not args.check:
                write_bytes(path, found)
    return differ
