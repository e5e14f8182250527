"""Copy what is kept of a finished run into the repository: small files, no paths of the machine.

    python -m experiments.publish run runs/cifar10-quick fedce/quick [--figures accuracy rounds]

``results/<study>/<variant>/seed-N/`` gets configuration and provenance; the results, per client
with six significant digits; and, where a page shows how the run went, of ``rounds.jsonl`` what its
figures are drawn from, with five digits. ``--rounds`` keeps more of some: the metrics of at most
fifty rounds of each stage, the last among them. A whole study: ``nmoe study report --publish``.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.publish.published import RESULTS
from nmoe_flower.arguments import Parser
from nmoe_flower.study import publish_run


def main(argv: Sequence[str]) -> int:
    """Publish one run."""
    parser = Parser(
        prog="python -m experiments.publish run",
        description=str(__doc__).splitlines()[0],
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("variant", metavar="STUDY/VARIANT")
    parser.add_argument("--figures", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--rounds", action="store_true", help="keep rounds that no figure needs")
    args = parser.parse_args(argv)
    target = RESULTS / args.variant
    print(publish_run(args.run, target, figures=args.figures, rounds=args.rounds))
    return 0
