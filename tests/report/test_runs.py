import shutil

import pytest

from nmoe_flower.errors import NMoEError
from nmoe_flower.report import load_runs
from nmoe_flower.report.runs import differing_settings


def test_a_finished_run_is_read(finished_run):
    (run,) = load_runs([finished_run("one", {"run.seed": 5})])
    assert run.config.run.seed == 5
    assert run.provenance["seed"] == 5
    assert len(run.results["rows"]) == 34
    assert (run.configuration, run.label) == ("1-one", "")


def test_runs_of_a_study_are_called_as_their_variants(finished_run, tmp_path):
    folders = []
    for variant, tau in (("top-1", 0.2), ("top-2", 0.5)):
        for seed in (0, 1):
            made = finished_run(f"seed-{seed}", {"run.seed": seed, "data.tau": tau})
            folders.append(tmp_path / "little" / variant / f"seed-{seed}")
            folders[-1].parent.mkdir(parents=True, exist_ok=True)
            shutil.move(made, folders[-1])
    runs = load_runs(folders)
    assert [run.configuration for run in runs] == ["1-top-1", "1-top-1", "2-top-2", "2-top-2"]
    assert [run.config.run.name for run in runs] == ["top-1", "top-1", "top-2", "top-2"]


def test_a_folder_named_twice_counts_once(finished_run):
    path = finished_run("one")
    assert len(load_runs([path, path / ".." / "one"])) == 1


def lacks(name):
    return lambda path: (path / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lacks("results.json"),
            r"one is not finished: it has no results\.json; finish it",
        ),
        (lacks("config.toml"), r"one is not a run folder: it has no config\.toml"),
        (lacks("provenance.json"), r"cannot read .*provenance\.json"),
        (shutil.rmtree, "one is not a folder"),
    ],
)
def test_what_is_missing_is_named(finished_run, damage, message):
    good, bad = finished_run("good", {"run.seed": 9}), finished_run("one")
    damage(bad)
    with pytest.raises(NMoEError, match=message):
        load_runs([good, bad])


def test_no_folder_at_all():
    with pytest.raises(NMoEError, match="at least one run folder"):
        load_runs([])


def test_the_same_seed_twice_is_no_second_seed(finished_run):
    # Names and checkpoints change nothing a run computes.
    runs = [finished_run("a"), finished_run("b", {"run.checkpoint-every": 7})]
    with pytest.raises(NMoEError, match=r"a and .*b hold the same configuration and seed 0"):
        load_runs(runs)


def test_seeds_share_a_group_and_a_label(finished_run):
    runs = load_runs([finished_run("a"), finished_run("b", {"run.seed": 1})])
    assert runs[0].group == runs[1].group
    assert {run.configuration for run in runs} == {"1-a"}
    assert {run.label for run in runs} == {""}
    assert differing_settings(runs) == {}


def test_a_setting_without_effect_separates_nothing(finished_run):
    # data.alpha belongs to the Dirichlet split; these runs use the dominant class.
    runs = load_runs([finished_run("a"), finished_run("b", {"run.seed": 1, "data.alpha": 0.1})])
    assert runs[0].group == runs[1].group


def test_labels_hold_what_tells_runs_of_one_table_apart(finished_run):
    runs = load_runs(
        [
            finished_run("mild", {"data.tau": 0.5}),
            finished_run("long", {"data.tau": 0.2, "gate.rounds": 80}),
            finished_run("short", {"data.tau": 0.2, "gate.rounds": 20}),
            finished_run("alpha", {"data.scheme": "dirichlet", "data.alpha": 0.1}),
        ]
    )
    assert [run.label for run in runs] == [
        "", "gate.rounds = 80", "gate.rounds = 20", "data.alpha = 0.1",
    ]  # fmt: skip
    assert differing_settings(runs[1:3]) == {
        "gate.rounds": {"2-long": "80", "3-short": "20"},
    }
    assert set(differing_settings(runs)) == {
        "data.scheme", "data.tau", "data.alpha", "gate.rounds",
    }  # fmt: skip


def test_tables_of_numbers_are_told_apart_by_name(finished_run):
    def table(name, mean):
        return {
            "data.kind": "features", "extractor.backbone": "mlp", "data.dataset": f"/{name}.csv",
            "data.feature-columns": "x", "data.feature-means": mean, "data.feature-deviations": 1,
        }  # fmt: skip

    runs = [
        finished_run("a", table("a", 0.5)),
        finished_run("b", table("b", 0.25)),
        finished_run("c", table("b", 0)),
    ]
    assert [run.label for run in load_runs(runs[:2])] == [
        "data.dataset = a.csv", "data.dataset = b.csv",
    ]  # fmt: skip
    assert set(differing_settings(load_runs(runs[1:]))) == {"data.feature-means"}


def test_many_differences_are_replaced_by_the_name(finished_run):
    several = {"gate.rounds": 9, "gate.hidden": 8, "gate.keep": 0.5, "expert.epochs": 3}
    runs = load_runs([finished_run("a"), finished_run("b", several)])
    assert [run.label for run in runs] == ["1-a", "2-b"]


def test_data_folders_of_one_name_stay_apart(finished_run):
    runs = load_runs(
        [
            finished_run("a", {"data.dataset": "/one/cifar10"}),
            finished_run("b", {"data.dataset": "/two/cifar10"}),
        ]
    )
    assert [run.label for run in runs] == ["1-a", "2-b"]
