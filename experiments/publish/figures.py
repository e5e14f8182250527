"""Draw the published figures again from what is published, and compare.

python -m experiments.publish figures            # all, into results/
python -m experiments.publish figures --check    # 1 if one differs from what its files say

Of the figures that a study declares those are published that are in its folder; to add one, make
it there as an empty ``figure-NAME.webp`` and draw all again.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.publish import worth
from experiments.publish.published import RESULTS
from nmoe_flower.arguments import Parser
from nmoe_flower.files import write_bytes
from nmoe_flower.report import canvas, draw_alignment, load_runs
from nmoe_flower.study import (
    PUBLISHED_DOTS,
    Study,
    read_findings,
    small_figures,
    small_picture,
    write_findings,
)


def again() -> Iterator[tuple[Path, bytes]]:
    """Every published figure, with what its files say it is."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for figures in sorted(RESULTS.glob("*/*/seed-*/figures")):
            names = [path.stem for path in sorted(figures.glob("*.webp"))]
            for name, picture in small_figures(figures.parent, names).items():
                yield figures / f"{name}.webp", picture
        for study in sorted(path.parent for path in RESULTS.glob("*/alignment.webp")):
            runs = load_runs(sorted(path.parent for path in study.glob("*/seed-*/results.json")))
            for path in draw_alignment(runs, out):
                place = study / path.with_suffix(".webp").name
                if place.exists():
                    yield place, small_picture(path)
        for study in sorted({path.parent for path in RESULTS.glob("*/figure-*.webp")}):
            spec = Study.load(RESULTS.parent / "experiments" / f"{study.name}.toml")
            write_findings(read_findings(spec, study / "table.json"), out / study.name)
            for path in sorted(study.glob("figure-*.webp")):
                yield path, small_picture(out / study.name / path.with_suffix(".png").name)
        if (drawing := worth.draw(out / "worth.png")) is not None:
            yield worth.PLACE, small_picture(drawing)


def main(argv: Sequence[str]) -> int:
    """Write them, or compare; 1 if one differs."""
    parser = Parser(
        prog="python -m experiments.publish figures",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args(argv)
    differ = 0
    with canvas.resolution(PUBLISHED_DOTS):
        for path, found in again():
            if not path.exists() or path.read_bytes() != found:
                differ = int(args.check)
                print(path.relative_to(RESULTS), "differs" if args.check else "written")
                if not args.check:
                    write_bytes(path, found)
    return differ
