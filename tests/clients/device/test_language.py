from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from nmoe_flower.clients.device import Language
from nmoe_flower.errors import ReplyError
from nmoe_flower.models import AdaptedLM, SmallLM, SmallSizes


def test_an_adapter_for_another_backbone_is_refused_by_its_hash() -> None:
    """Its shapes fit; what it was trained on does not."""
    torch.manual_seed(0)
    model = AdaptedLM(SmallLM(SmallSizes(11, 8, 2, 2, 6)), 11)
    device = cast(Any, SimpleNamespace(partition=1))
    own, other = (Language(device, cast(Any, None), model, letter * 32) for letter in (b"a", b"b"))
    fresh = {name: part.numpy() for name, part in model.fresh(2).items()}
    own.load(own.signed(fresh))
    assert all(np.array_equal(value, fresh[name]) for name, value in model.state().items())
    with pytest.raises(ReplyError, match=r"backbone 626262.*, and that of client 1 is 616161"):
        own.load(other.signed(fresh))
