"""Write the tables of all pages of docs/ from the result files in results/.

Between ``<!-- study NAME TABLE -->`` and ``<!-- end -->`` stands a table of the study
``experiments/NAME.toml``, made from ``results/NAME/table.json``: one of its tables, comparisons, or
what its sweep chose, or several, which say once what they share; or, in place of a table, ``page``:
its page, and where its numbers come from; or ``devices``: what its systems have a device hold and
send, which needs no run.
Between ``<!-- run NAME -->`` and ``<!-- end -->`` stands what the files of the run NAME say: where
it comes from, its table, what its stages cost; or the ``table.txt`` of NAME. Between
``<!-- benchmark NAME -->`` and ``<!-- end -->`` stand the figures of
``results/benchmarks/NAME.json``. ``--check`` only compares.
"""

import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from experiments.publish.devices import devices
from experiments.publish.published import RESULTS, place
from experiments.publish.timings import timings
from nmoe_flower.begun import RUNS, read_origin
from nmoe_flower.report import read_results
from nmoe_flower.study import (
    Findings,
    Study,
    Tabular,
    from_where,
    read_findings,
    table_to_markdown,
    tables_by_name,
)

DOCS = RESULTS.parent / "docs"
BLOCK = re.compile(r"(<!-- run (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OF_BENCHMARK = re.compile(r"(<!-- benchmark (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
OF_STUDY = re.compile(r"(<!-- study (\S+) (\S+(?: \S+)*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PAGE, OF_DEVICES = "page", "devices"
COLUMNS = (
    ("accuracy", "local"),
    ("accuracy", "iid"),
    ("balanced_accuracy", "local"),
    ("macro_f1", "local"),
    ("macro_f1", "iid"),
    ("auc", "local"),
    ("local_ratio", "local"),
    ("bytes_per_sample", "local"),
)


def origin(name: str) -> str:
    folder = place(name)
    source, results = read_origin(folder), read_results(folder / "results.json")
    machine, versions, row = source["machine"], source["versions"], results["rows"][0]
    return (
        f"{row['clients']} clients, scheme {row['scheme']}"
        + (f" (tau = {row['tau']})" if row["scheme"] == "dominant" else "")
        + f", seed {source['seed']}; {machine['cores']} cores of an {machine['cpu']}, no GPU, "
        f"torch {versions['torch']}, flwr {versions['flwr']}; {source['started'][:10]}; "
        f"{results['seconds'] / 60:.0f} minutes of training and tests; revision "
        f"{source['git']['revision'][:7]}. "
        + ", ".join(
            f"[{file.name}](../{file.relative_to(RESULTS.parent)})"
            for file in (folder / "results.json", folder.parents[1] / RUNS)
        )
    )


def table(name: str) -> list[str]:
    rows = {
        (row["gate"], row["test"]): row
        for row in read_results(place(name) / "results.json")["rows"]
    }
    gates = sorted({gate for gate, _ in rows}, key=lambda g: (g.startswith("control:"), g))
    heads = [f"{metric.replace('_', ' ')}, {test}" for metric, test in COLUMNS]
    heads = [
        head.removesuffix(", local") if "ratio" in head or "bytes" in head else head
        for head in heads
    ]
    lines = [f"| gate | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for gate in gates:
        cells = []
        for metric, test in COLUMNS:
            value = rows[gate, test].get(metric)
            digits = 0 if metric == "bytes_per_sample" else 3
            cells.append("" if value is None else f"{value:.{digits}f}")
        lines.append(f"| {gate} | {' | '.join(cells)} |")
    return lines


def costs(name: str) -> list[str]:
    stages = read_results(place(name) / "results.json")["stages"]
    lines = ["| stage | last round | seconds | MB up | MB down |", "|---|---|---|---|---|"]
    for stage, cost in stages.items():
        mega = [cost[key] / 1e6 for key in ("bytes_up", "bytes_down")]
        lines.append(
            f"| {stage} | {cost['rounds']:.0f} | {cost['seconds']:.1f} "
            f"| {mega[0]:,.1f} | {mega[1]:,.1f} |"
        )
    return lines


def block(match: re.Match[str]) -> str:
    name = match[2]
    table_file = place(name) / "table.txt"  # several runs, tabulated by another script
    if table_file.is_file():
        return match[1] + table_file.read_text(encoding="utf-8") + match[4]
    lines = [origin(name), "", *table(name), "", "What training cost:", "", *costs(name)]
    return match[1] + "\n".join(lines) + "\n" + match[4]


@cache
def read_study(study: str) -> Study:
    """The study of a name."""
    return Study.load(RESULTS.parent / "experiments" / f"{study}.toml")


@cache
def findings(study: str) -> Findings:
    """What a published study has found."""
    return read_findings(read_study(study), RESULTS / study / "table.json")


@cache
def found(study: str) -> dict[str, Tabular]:
    """Every table of a published study, by name."""
    return tables_by_name(findings(study))


def page_of(study: str, path: Path) -> str:
    """The study's page, which the site has, and where its numbers come from."""
    if not path.is_relative_to(DOCS):
        return f"{from_where(findings(study))}\n"
    link = "../" * (len(path.relative_to(DOCS).parts) - 1) + f"reports/{study}.html"
    return f"[All of it on a page]({link}): {from_where(findings(study))}\n"


def study_block(match: re.Match[str], path: Path) -> str:
    if match[3] == PAGE:
        return match[1] + page_of(match[2], path) + match[5]
    if match[3] == OF_DEVICES:
        return match[1] + devices(read_study(match[2])) + match[5]
    tables, names = found(match[2]), match[3].split()
    if unknown := [name for name in names if name not in tables]:
        raise SystemExit(f"{match[1].strip()}: {unknown[0]} is no table of {', '.join(tables)}")
    last = tables[names.pop()]
    shared = set(last.notes).intersection(*(tables[name].notes for name in names))
    before = [table_to_markdown(tables[name], without=shared) for name in names]
    return match[1] + "\n".join([*before, table_to_markdown(last)]) + match[5]


def benchmark_block(match: re.Match[str]) -> str:
    return match[1] + timings(match[2]) + match[4]


def main(argv: Sequence[str]) -> int:
    """Write the tables, or compare; 1 if one differs."""
    differ = 0
    for path in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))):
        page = path.read_text(encoding="utf-8")
        written = OF_STUDY.sub(partial(study_block, path=path), BLOCK.sub(block, page))
        written = OF_BENCHMARK.sub(benchmark_block, written)
        if written == page:
            continue
        if "--check" in argv:
            print(f"{path.name} differs from results/: run python -m experiments.publish pages")
            differ = 1
        else:
            path.write_text(written, encoding="utf-8")
    return differ
