"""What is computed in bfloat16: what the user says, or what the machine is faster in."""

from contextlib import nullcontext
from typing import Literal

import torch

from nmoe_flower.machine import cpu_model

__all__ = ["autocast", "use_bf16"]


def autocast(bf16: bool, device: torch.device) -> "torch.autocast | nullcontext[None]":
    """Bfloat16 autocast on ``device``, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def use_bf16(
    precision: Literal["auto", "bf16", "float32"], device: torch.device, *, worthwhile: bool
) -> bool:
    """Decide on bfloat16: always, never, or where the hardware is faster in it.

    Args:
        precision: The user's word, ``run.precision``.
        device: Where it is computed.
        worthwhile: Whether the network gains by it where the hardware does.
    """
    if precision != "auto":
        return precision == "bf16"
    if not worthwhile:
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and _cpu_gains()


def _cpu_gains() -> bool:
    """Whether products of bfloat16 are faster on this CPU than those of float32.

    AVX512-BF16 multiplies two numbers where AVX512 multiplies one. An AMD core starts as many such
    instructions as of float32. An Intel core starts half as many, and has to convert besides; there
    it takes AMX, which a virtual machine may lack.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if "Intel" in cpu_model():
        return bool(torch.cpu._is_amx_tile_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())
