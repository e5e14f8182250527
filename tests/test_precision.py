"""What is computed in bfloat16: what is asked for, or what the processor is faster in."""

import pytest
import torch
from torch import Tensor, nn

from nmoe_flower.training import autocast, fit, precision, sgd, use_bf16

CPU = torch.device("cpu")


def test_what_is_asked_for_is_done() -> None:
    assert use_bf16("bf16", CPU, worthwhile=False)
    assert not use_bf16("float32", CPU, worthwhile=True)


def test_auto_leaves_small_networks_and_other_devices_in_float32() -> None:
    assert not use_bf16("auto", CPU, worthwhile=False)
    assert not use_bf16("auto", torch.device("mps"), worthwhile=True)


@pytest.mark.parametrize(
    ("cpu", "level", "bf16", "amx", "gains"),
    [
        ("AMD EPYC 9B45", "AVX512", True, False, True),  # products of two at once
        ("Intel(R) Xeon(R) Processor", "AVX512", True, False, False),  # half as many: no gain
        ("Intel(R) Xeon(R) Processor", "AVX512", True, True, True),  # by AMX
        ("Intel64 Family 6 Model 207 Stepping 2, GenuineIntel", "AVX512", True, False, False),
        ("AMD EPYC 7763", "AVX2", False, False, False),
        ("Intel(R) Xeon(R) Gold 6248", "AVX512", False, False, False),
        ("AMD EPYC 9B45", "DEFAULT", True, False, False),  # ATEN_CPU_CAPABILITY=default
    ],
)
def test_auto_takes_what_the_processor_is_faster_in(
    monkeypatch: pytest.MonkeyPatch, cpu: str, level: str, bf16: bool, amx: bool, gains: bool
) -> None:
    monkeypatch.setattr(precision, "cpu_model", lambda: cpu)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert use_bf16("auto", CPU, worthwhile=True) is gains


def test_forward_passes_compute_in_bfloat16_and_weights_stay() -> None:
    module, seen = nn.Linear(1, 1, bias=False), []

    def batch_loss(batch: Tensor) -> Tensor:
        seen.append(module(batch).dtype)
        return module(batch).float().sum()

    fit(module, [torch.ones(1, 1)], batch_loss, optimizer=sgd(module, learning_rate=1.0), bf16=True)
    assert seen == [torch.bfloat16]
    assert module.weight.dtype == torch.float32
    with autocast(False, CPU):
        assert module(torch.ones(1, 1)).dtype == torch.float32
