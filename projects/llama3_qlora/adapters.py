"""One base model, many adapters, one batch: each row has its own (Chen et al. 2023,
Punica, arXiv 2310.18547; Sheng et al. 2023, S-LoRA, arXiv 2311.03285)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from projects.llama3_qlora import lora
from projects.llama3_qlora.model import Llama
from utils.runtime import Problem


class Adapters:
    """The adapters of a model, and which of them each row of the next batch uses."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.rows = torch.zeros(0, dtype=torch.long)

    def use(self, names: Sequence[str | None]) -> None:
        """One name for each row, or None for the base model. Raises `Problem` for a
        name that is not there."""
        unknown = sorted({n for n in names if n is not None} - set(self.names))
        if unknown:
            raise Problem(f"There is no adapter {', '.join(unknown)}.")
        none = len(self.names)  # the place of the adapter that changes nothing
        rows = [none if n is None else self.names.index(n) for n in names]
        self.rows = torch.tensor(rows)


class ManyLoRALinear(nn.Module):
    """A linear layer and a stack of changes to it: A (adapters, rank, inputs), B
    (adapters, outputs, rank), the scale already in B, thin ones filled with zeros."""

    def __init__(self, base: nn.Module, A: Tensor, B: Tensor, chosen: Adapters) -> None:  # noqa: N803
        super().__init__()
        self.base, self.chosen = base, chosen
        self.A: Tensor
        self.B: Tensor
        self.register_buffer("A", A)
        self.register_buffer("B", B)

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, time, inputs) to (batch, time, outputs)."""
        rows = self.chosen.rows
        if len(rows) != len(x):
            raise Problem(f"{len(rows)} adapters were chosen for {len(x)} rows.")
        return self.base(x) + x @ self.A[rows].mT @ self.B[rows].mT


def add_adapters(model: Llama, folders: Mapping[str, str | Path]) -> Adapters:
    """Give a model, in place, all adapters of several PEFT folders; they are chosen row
    by row with `use`. Raises `Problem` as `lora.load_adapter` does."""
    chosen = Adapters(list(folders))
    found = [lora.read_adapter(folder) for folder in folders.values()]
    for (config, tensors), folder in zip(found, folders.values(), strict=True):
        lora.check_fits(model, config, tensors, Path(folder).name)
    rank = max(config.rank for config, _ in found)
    targets = sorted({target for config, _ in found for target in config.targets})
    for name, layer in lora.target_layers(model, targets).items():
        outputs, inputs = lora.weight_of(layer).shape
        A = torch.zeros(len(found) + 1, rank, inputs)
        B = torch.zeros(len(found) + 1, outputs, rank)
        for place, (config, tensors) in enumerate(found):
            if f"{name}.lora_A.weight" not in tensors:
                continue  # this adapter leaves the layer alone
            A[place, : config.rank] = tensors[f"{name}.lora_A.weight"]
            scaled = tensors[f"{name}.lora_B.weight"] * (config.alpha / config.rank)
            B[place, :, : config.rank] = scaled
        lora.put(model, name, ManyLoRALinear(layer, A, B, chosen))
    return chosen
