"""Low-rank adapters: finetune a two-hundredth of the numbers, keep the rest frozen.

A layer's change is the product of two thin matrices: x goes to W x + (alpha / rank) B A
x, with A (rank, inputs), B (outputs, rank) and W as it was (Hu et al. 2021, arXiv
2106.09685). Files are those of PEFT: what one saves the other loads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from projects.llama3_qlora.linear import Linear, linear
from projects.llama3_qlora.model import Llama
from utils.runtime import Problem

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
PREFIX, WEIGHTS, SETTINGS = (
    "base_model.model.",
    "adapter_model.safetensors",
    "adapter_config.json",
)


@dataclass(frozen=True)
class LoRAConfig:
    """Rank of the change, its size `alpha` (the change is multiplied by alpha / rank),
    and the names of the layers that get one. Raises `Problem` for impossible values."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = LINEARS

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise Problem(
                f"LoRA needs a rank of 1 or more and an alpha above 0, not {self.rank} "
                f"and {self.alpha}."
            )
        unknown = sorted(set(self.targets) - set(LINEARS))
        if unknown or not self.targets:
            raise Problem(
                f"LoRA's targets are some of {', '.join(LINEARS)}, not "
                f"{', '.join(unknown) or 'none'}."
            )


class LoRALinear(nn.Module):
    """Any linear layer, frozen, and a low-rank change to it.

    A starts with random numbers and B with zeros: the layer computes what it did, and B
    has a gradient. Were both zero, each would wait for the other for ever.
    """

    def __init__(self, base: nn.Module, config: LoRAConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.alpha / config.rank
        weight = weight_of(base)
        (outputs, inputs), at = weight.shape, weight.device
        self.lora_A = nn.Parameter(torch.empty(config.rank, inputs, device=at))
        self.lora_B = nn.Parameter(torch.zeros(outputs, config.rank, device=at))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as PEFT and nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs) to (..., outputs), in the type of x."""
        inner = linear(x, self.lora_A.to(x.dtype))  # (..., rank)
        return self.base(x) + linear(inner, self.lora_B.to(x.dtype)) * self.scale

    def change(self) -> Tensor:
        """What the adapter adds to the weights (outputs, inputs)."""
        return (self.lora_B @ self.lora_A) * self.scale


def weight_of(layer: nn.Module) -> Tensor:
    """The weights (outputs, inputs) of a linear layer, decoded where quantized."""
    if isinstance(layer, nn.Linear):
        return layer.weight.detach()
    decoded: Tensor = getattr(layer, "dequantized")()  # noqa: B009
    return decoded


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers of a model by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}


def add_lora(model: Llama, config: LoRAConfig) -> Llama:
    """Freeze a model and give its target layers adapters that change nothing yet, in
    place. Raises `Problem` when it has adapters already."""
    if lora_layers(model):
        raise Problem("The model has adapters already: merge them first.")
    model.requires_grad_(False)
    for name, layer in target_layers(model, config.targets).items():
        put(model, name, LoRALinear(layer, config))
    return model


def merge(model: Llama) -> Llama:
    """Add every adapter to its layer's weights, in place: the model is then a plain
    one, with float weights in the adapted layers, and no slower than before."""
    for name, layer in lora_layers(model).items():
        weight = weight_of(layer.base)
        merged = Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            merged.weight = nn.Parameter(weight + layer.change().to(weight.dtype))
        put(model, name, merged)
    return model


def save_adapter(model: Llama, config: LoRAConfig, folder: str | Path) -> None:
    """Write the adapters as PEFT does: `adapter_model.safetensors` and
    `adapter_config.json`. Raises `Problem` when there are none."""
    folder, layers = Path(folder), lora_layers(model)
    if not layers:
        raise Problem("The model has no adapters to save.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            weight = layer.get_parameter(part).detach().contiguous()
            tensors[f"{PREFIX}{name}.{part}.weight"] = weight
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": list(config.targets),
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def load_adapter(model: Llama, folder: str | Path) -> LoRAConfig:
    """Give a model the adapters of a PEFT folder, in place; gives their configuration.

    Raises `Problem`, before the model is touched, when files are missing or damaged, do
    not fit the model, or are of a kind that is more than A and B.
    """
    config, tensors = read_adapter(folder)
    check_fits(model, config, tensors, Path(folder).name)
    add_lora(model, config)
    for name, layer in lora_layers(model).items():
        with torch.no_grad():
            for part in ("lora_A", "lora_B"):
                layer.get_parameter(part).copy_(tensors[f"{name}.{part}.weight"])
    return config


def read_adapter(folder: str | Path) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """Configuration and tensors of a PEFT folder, `NAME.lora_A.weight` and B. Raises
    `Problem` as `load_adapter` does."""
    folder = Path(folder)
    try:
        values = json.loads((folder / SETTINGS).read_text("utf-8"))
        tensors = load_file(folder / WEIGHTS)
        config = LoRAConfig(
            values["r"], values["lora_alpha"], tuple(sorted(values["target_modules"]))
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise Problem(
            f"{folder.name} holds no adapter that can be read: {SETTINGS} or {WEIGHTS} "
            f"is missing or damaged ({type(error).__name__})."
        ) from None
    extra = [
        key
        for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
        if values.get(key)
    ]
    if values.get("peft_type") != "LORA" or extra:
        kind = ", ".join(extra) or values.get("peft_type")
        raise Problem(f"{folder.name} is not plain LoRA ({kind}).")
    return config, {k.removeprefix(PREFIX): v for k, v in tensors.items()}


def check_fits(
    model: Llama, config: LoRAConfig, tensors: Mapping[str, Tensor], source: str
) -> None:
    """Raises `Problem`, naming the `source`, when an adapter's tensors are not exactly
    those that its targets in this model need."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, layer in target_layers(model, config.targets).items():
        outputs, inputs = weight_of(layer).shape
        expected[f"{name}.lora_A.weight"] = (config.rank, inputs)
        expected[f"{name}.lora_B.weight"] = (outputs, config.rank)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise Problem(
                f"{source} does not fit this model: {name} is {found.get(name)}, not "
                f"{expected.get(name)}."
            )


def target_layers(model: Llama, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The layers with one of the target names, by their full name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets
    }


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one with this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
