from pathlib import Path

import pytest
import torch

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import SmallLM, SmallSizes


def drawn(seed: int = 0, **sizes: int) -> SmallLM:
    torch.manual_seed(seed)
    model = SmallLM(
        SmallSizes(**{"vocab_size": 11, "width": 8, "blocks": 2, "heads": 2, "window": 6, **sizes})
    )
    for parameter in model.parameters():  # blocks begin as the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_the_model_of_the_defaults_has_the_size_that_is_told() -> None:
    """Tokens 2,048 x 192, places 128 x 192, four blocks of 12 x 192^2."""
    model = SmallLM(SmallSizes(2048))
    assert sum(p.numel() for p in model.parameters()) == (2048 + 128) * 192 + 4 * 12 * 192**2


@pytest.mark.parametrize("bf16", [False, True])
def test_no_token_sees_a_later_one(bf16: bool) -> None:
    model, tokens = drawn().eval(), torch.tensor([[1, 2, 3, 4, 5]])
    later = tokens.clone()
    later[0, 3] = 9
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.inference_mode():
        one, other = model(tokens), model(later)
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.equal(one[:, 3:], other[:, 3:])


def test_plain_attention_is_fused_attention() -> None:
    """On a CPU bfloat16 takes the plain products."""
    model, tokens = drawn().eval(), torch.arange(6)[None] % 11
    with torch.inference_mode():
        exact = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(tokens).float()
    assert torch.allclose(exact, rounded, atol=0.05 * float(exact.abs().max()))


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    model = drawn()
    model.save(tmp_path, {"trained-on": "nothing"})
    read = SmallLM.read(tmp_path)
    assert read.sizes == model.sizes
    assert all(torch.equal(t, read.state_dict()[n]) for n, t in model.state_dict().items())


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        SmallLM.read(tmp_path)
    drawn().save(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(ConfigError, match=r"not that of small-lm: it has no vocab_size, width"):
        SmallLM.read(tmp_path)
    drawn(width=16).save(tmp_path / "other")
    (tmp_path / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(ConfigError, match="does not fit its config"):
        SmallLM.read(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"width": 0}, "width = 0; allowed"),
        ({"heads": 3}, "heads = 3 do not divide width = 8"),
        ({"blocks": -1}, "blocks = -1"),
        ({"vocab_size": 1.5}, "vocab_size = 1.5"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        SmallSizes(**{"vocab_size": 11, "width": 8, "heads": 2, **sizes})


def test_widths_of_a_recipe_are_one_per_block() -> None:
    assert SmallSizes.of_widths((64, 64, 64), vocab_size=9, window=7) == SmallSizes(9, 64, 3, 2, 7)
    assert SmallSizes.of_widths((), vocab_size=9, window=7) == SmallSizes(9, window=7)
    assert SmallSizes.of_widths((20,), vocab_size=9, window=7).heads == 1
    with pytest.raises(ConfigError, match="one width, got 8, 16"):
        SmallSizes.of_widths((8, 16), vocab_size=9, window=7)
