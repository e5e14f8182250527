import pytest

from nmoe_flower.inference import served


@pytest.mark.parametrize(
    ("base", "per_row", "most", "expected"),
    [
        (60e-6, 4e-6, 256, 128),  # 128 rows take 0.57 ms, 256 take 1.08: more than 1
        (60e-6, 4e-6, 64, 64),
        (60e-6, 4e-6, 100, 64),  # a power of two
        (200e-6, 0.0, 256, 0),  # batches save up to 0.2 ms a request
        (50e-6, 960e-6, 256, 0),  # one row alone is too long
        (5e-6, 90e-6, 256, 8),  # 8 rows take 0.725 ms, 16 take 1.445
    ],
)
def test_rows_at_once_follow_from_what_passes_take(
    base: float, per_row: float, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_seconds", lambda _compute, latents: base + per_row * len(latents))
    assert served.rows_at_once(lambda latents: latents, columns=3, most=most) == expected
