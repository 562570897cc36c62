"""Weights on disk. (Stub of the lead: the owner of this file rewrites it.)"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def load_weights(
    model: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device | str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {n: t.to(dtype) for n, t in tensors.items()}
    model.load_state_dict(tensors, assign=True, strict=False)


def save_weights(model: nn.Module, folder: Path, max_shard_bytes: int) -> None:
    tensors = {n: p.detach() for n, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
