from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nmoe_flower.errors import ConfigError
from nmoe_flower.models import AdaptedLM, OpenLM, SmallLM, SmallSizes, language, open_language_model
from nmoe_flower.models.language import LanguageWish


def opened(backbone: str, weights: Path | str = "", **options: int) -> OpenLM:
    torch.manual_seed(0)
    settings = {"vocab_size": 11, "window": 6, **options}
    return open_language_model(backbone, str(weights), cache=Path("none"), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_model_of_transformers_is_adapted(llama: Path) -> None:
    one = opened(f"transformers:{llama}")
    again = opened("transformers:tiny", weights=llama)
    assert one.digest == again.digest
    assert one.vocab_size == 16
    model = AdaptedLM(one.network, one.vocab_size, targets=("q_proj", "down_proj"))
    assert model.layers == ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj")
    model.load({name: part.numpy() for name, part in model.fresh(2).items()})
    tokens = torch.arange(12).view(2, 6)
    plain = again.network(tokens).logits
    assert torch.allclose(model.logits(tokens), plain, atol=1e-6)
    assert model.losses(tokens).shape == (2, 5)


def test_the_hash_is_that_of_the_weights(tmp_path: Path) -> None:
    drawn = opened("small-lm")
    assert drawn.digest == opened("small-lm").digest
    assert isinstance(drawn.network, SmallLM)
    drawn.network.save(tmp_path)
    assert opened("small-lm", tmp_path).digest == drawn.digest
    with torch.no_grad():
        drawn.network.tokens.weight[0, 0] += 1e-3
    drawn.network.save(tmp_path)
    assert opened("small-lm", tmp_path).digest != drawn.digest


def test_the_hash_of_a_language_model_is_the_same_for_ever(tmp_path: Path) -> None:
    """Runs and bundles of old hold it: this is the one of the first that were written."""
    model = SmallLM(SmallSizes.of_widths((8,), vocab_size=11, window=6))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(0.5)
    model.save(tmp_path)
    told = "4b39f0a43f56054eb94133e17d6e6e51ee85dab47cab77ddf21dd18577b6b180"
    assert opened("small-lm", tmp_path).digest.hex() == told


class OneNumber(torch.nn.Module):
    """A network with a parameter that has no dimensions."""

    def __init__(self, wish: LanguageWish) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(float(wish.window)))
        self.config = SimpleNamespace(vocab_size=wish.vocab_size)


def test_a_parameter_may_have_no_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_transformers", OneNumber)
    digests = [opened("transformers:one", window=window).digest for window in (6, 6, 7)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("backbone", "weights", "options", "reason"),
    [
        ("resnet18", "", {}, "reads no text; allowed: small-lm, smollm2-135m or transformers:NAME"),
        ("small-lm", "/no/such", {}, "extractor.weights = /no/such: .*config.json is missing"),
        ("smollm2-135m", "/no/such.gguf", {}, "there is no such file"),
        ("transformers:/no/such", "", {}, "there is no such folder"),
        ("small-lm", "here", {"vocab_size": 12}, "knows 11 tokens, and the text has 12"),
        ("small-lm", "here", {"window": 7}, "text.window = 7: .* reads windows of up to 6 tokens"),
    ],
)
def test_what_cannot_be_opened_is_told(
    tmp_path: Path, backbone: str, weights: str, options: dict[str, int], reason: str
) -> None:
    if weights == "here":
        SmallLM(SmallSizes(11, 8, 1, 2, 6)).save(tmp_path)
        weights = str(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        opened(backbone, weights, **options)


def test_a_folder_that_transformers_cannot_read_is_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=f"extractor.weights = {tmp_path} cannot be read"):
        opened("transformers:tiny", tmp_path)
