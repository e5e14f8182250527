import pytest

from benchmarks.adding import main


def test_adding_up_is_told_beside_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kind", "tiny"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    name, clients, steps, adding, share = line.split()
    assert heading.split()[0] == "kind"
    assert (name, clients) == ("tiny", "10")
    assert 0 <= float(adding) < float(steps)
    assert 0 <= float(share) < 0.5
