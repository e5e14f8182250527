import pytest

from nmoe_flower.inference.serve import served


@pytest.mark.parametrize(
    ("base", "per_row", "most", "expected"),
    [
        (60e-6, 3e-6, 256, 128),  # 128 rows take 0.44 ms, 256 take 0.83: more than 0.5
        (60e-6, 3e-6, 64, 64),
        (60e-6, 3e-6, 100, 64),  # a power of two
        (50e-6, 460e-6, 256, 0),  # one row alone is too long
        (5e-6, 45e-6, 256, 8),  # 8 rows take 0.365 ms, 16 take 0.725
    ],
)
def test_inline_rows_follow_from_what_passes_take(
    base: float, per_row: float, most: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_seconds", lambda _compute, latents: base + per_row * len(latents))
    assert served.inline_rows(lambda latents: latents, columns=3, most=most) == expected
