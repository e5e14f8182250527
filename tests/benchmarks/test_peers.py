import pytest

from benchmarks.peers import main


def test_every_part_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--peers", "20", "--latent", "8", "--embedding", "99"]) == 0
    told = capsys.readouterr().out
    for part in ("read the list", "check its signature", "all together", "route one latent"):
        assert part in told
    assert "20 peers" in told
    assert "8 numbers of each" in told
