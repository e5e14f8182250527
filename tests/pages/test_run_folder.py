"""The page about the run folder names every stage, key and file that runs leave, and no other."""

import json
import re
from pathlib import Path

import pytest

from nmoe_flower.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "run-folder.md").read_text(encoding="utf-8")
SMALL = (
    "data.num-clients=4 data.train-per-client=20 data.test-per-client=20 extractor.rounds=2 "
    "extractor.local-steps=1 gate.rounds=2 gate.local-steps=1 gate.cycles=1 expert.epochs=1 "
    "expert.hidden=16 run.control-epochs=1 run.evaluate-every=1 alignment.rounds=2 "
    "alignment.local-steps=1"
)
# Together they reach every stage.
RUNS = {
    "all": "",
    "latents": "expert.sharing=latents gate.methods=federated run.controls=",
    "fedsc": "extractor.method=fedsc head.rounds=2 gate.methods=federated run.controls= "
    "privacy.enabled=true privacy.delta=1e-2",
    "sums": "extractor.method=fedsc extractor.rounds=0 head.method=sums expert.hidden= "
    "gate.methods=lda run.controls=ridge",
    "aligned": "run.system=aligned alignment.extractor=stage-1",
    "shortlist": "gate.shortlist=2 gate.methods=federated run.controls=",
    "baseline": "run.system=fedavg baseline.rounds=2 baseline.evaluate-every=1 "
    "baseline.tuning-steps=2",
}
# Those of text, and of adapters on a given backbone; tests/pipeline has their runs.
ELSEWHERE = {"standard", "gate/lda", "held-out"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("runs")
    for name, settings in RUNS.items():
        options = ["--workers", "0", "--no-figures", "--out", str(out), "--name", name]
        assert main(["run", *options, "--set", *SMALL.split(), *settings.split()]) == 0
    return [out / name for name in RUNS]


def lines(folders: list[Path]) -> list[dict[str, object]]:
    texts = [(folder / "rounds.jsonl").read_text(encoding="utf-8") for folder in folders]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def table(heading: str, nth: int = 0) -> set[str]:
    """The names in the first column of a table under a heading."""
    section = PAGE.split(f"\n{heading}\n")[1].split("\n## ")[0]
    tables = re.findall(r"^\|[^\n]*\|\n\|[-|]+\|\n((?:\|.*\n)+)", section, re.MULTILINE)
    return {
        name
        for row in tables[nth].splitlines()
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }


def test_every_stage_is_on_the_page(folders: list[Path]) -> None:
    seen = [line["stage"] for line in lines(folders)]
    assert table("## rounds.jsonl", 1) == set(seen) | ELSEWHERE


def test_every_stage_of_the_pipeline_has_occurred(folders: list[Path]) -> None:
    """A stage that the runs above do not reach would be forgotten on the page, too."""
    sources = (ROOT / "nmoe_flower" / "pipeline").rglob("*.py")
    call = re.compile(r'\b(?:gather|federate)\(\s*run,\s*"([^"]+)"')
    named = {stage for path in sources for stage in call.findall(path.read_text(encoding="utf-8"))}
    assert len(named) >= 15
    assert named <= {line["stage"] for line in lines(folders)} | ELSEWHERE


def test_every_key_of_a_line_is_on_the_page(folders: list[Path]) -> None:
    assert table("## rounds.jsonl") == {key for line in lines(folders) for key in line}


def test_every_key_of_the_results_is_on_the_page(folders: list[Path]) -> None:
    section = PAGE.split("\n## results.json\n")[1]
    for folder in folders:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for key in [*results, *results["rows"][0]]:
            assert re.search(rf'[`"]{key}[`"]', section), key


def test_every_file_is_on_the_page(folders: list[Path]) -> None:
    tree = PAGE.split("```text\n")[1].split("```")[0]
    named = set(re.findall(r"^  ([\w.-]+)", tree, re.MULTILINE))
    for folder in folders:
        assert {path.name for path in folder.iterdir()} <= named
    kept = {path.name for folder in folders for path in folder.glob("clients/*/*.json")}
    assert "privacy.json" in kept
    assert [name for name in kept if name not in tree] == []
