"""Quantized models on disk: a folder in which codes stay codes.

As other quantized folders of Hugging Face's form: `config.json` says under
`quantization_config` which layers hold what, `model.safetensors` has their codes and
scales. Loading goes layer by layer; the float model never exists as a whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from projects.llama3_qlora.checkpoint import SINGLE, SUMS, checksum, weight_files
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.nf4 import NF4Linear
from projects.llama3_qlora.quantize import Int4Linear, Int8Embedding, Int8Linear
from projects.llama3_qlora.rounding import GROUP, nearest
from utils.runtime import Problem

METHOD = "companion-packed"
KINDS: dict[type[nn.Module], str] = {
    Int8Linear: "int8",
    Int4Linear: "int4",
    NF4Linear: "nf4",
}
TABLE = ".table"  # what an `Int8Embedding` calls its weights; the file does not


def save_packed(model: Llama, folder: str | Path) -> None:
    """Write a model that `quantize` or `nf4` made. Matrices that are still floats are
    stored in bfloat16, vectors as they are; what head and embedding share once.

    Raises `Problem` when nothing is quantized, group sizes differ or the disk refuses.
    """
    folder = Path(folder)
    layers = {
        name: layer for name, layer in model.named_modules() if type(layer) in KINDS
    }
    tensors = {
        name: weight.detach().bfloat16() if weight.dim() > 1 else weight.detach()
        for name, weight in model.named_parameters()
        if name.rpartition(".")[0] not in layers
    }
    for name, layer in layers.items():
        for key, tensor in layer.state_dict().items():
            tensors[f"{name.removesuffix(TABLE)}.{key}"] = tensor.contiguous()
    values = model.config.to_hf() | {"quantization_config": _entry(layers)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{SINGLE}.partial"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.chmod(0o644)
        partial.replace(folder / SINGLE)
        text = json.dumps(values, indent=2) + "\n"
        (folder / "config.json").write_text(text, "utf-8")
        lines = [f"{digest}  {name}\n" for name, digest in checksum(folder).items()]
        (folder / SUMS).write_text("".join(lines), "utf-8")
    except (OSError, SafetensorError) as error:
        raise Problem(f"{folder.name} could not be written ({error}).") from None


def _entry(layers: dict[str, nn.Module]) -> dict[str, Any]:
    if not layers:
        raise Problem("Nothing in this model is quantized: use save_pretrained.")
    groups = {x.group for x in layers.values() if isinstance(x, Int4Linear)} or {GROUP}
    if len(groups) > 1:
        raise Problem(f"One folder has one group size, not {sorted(groups)}.")
    kinds = {n.removesuffix(TABLE): KINDS[type(x)] for n, x in layers.items()}
    return {"quant_method": METHOD, "group_size": groups.pop(), "layers": kinds}


def load_packed(folder: str | Path) -> Llama:
    """The model of a folder that `save_packed` wrote, float32 where it is not codes.

    Raises `Problem` when files are missing, damaged or do not fit `config.json`.
    """
    folder = Path(folder)
    values, entry = _read(folder)
    config = LlamaConfig.from_hf(values)
    with torch.device("meta"):  # shapes without memory
        model = Llama(config)
    try:
        (path,) = weight_files(folder)
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise Problem(f"{SINGLE} in {folder.name} is damaged ({error}).") from None
    for name, kind in entry["layers"].items():
        layer = _empty(model, name, kind, entry["group"])
        _fill(layer, name, tensors)
        _place(model, name, layer)
    floats = {
        name: _take(tensors, name, weight).float()
        for name, weight in model.named_parameters()
        if weight.is_meta
    }
    model.load_state_dict(floats, strict=False, assign=True)
    if config.tie_embeddings and isinstance(model.lm_head, nn.Linear):
        model.lm_head.weight = model.model.embed_tokens.weight
    if tensors:
        raise Problem(f"{folder.name} has {min(tensors)}, unknown to config.json.")
    return model


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """`config.json`, and the part of it that says what is quantized."""
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
        entry = values.pop("quantization_config", {})
        ours = entry.get("quant_method") == METHOD
        if ours:
            entry = {"layers": dict(entry["layers"]), "group": int(entry["group_size"])}
    except FileNotFoundError:
        raise Problem(f"There is no config.json in {folder.name}.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Problem(f"config.json in {folder.name} is damaged.") from None
    if not ours:
        raise Problem(f"{folder.name} was not written by save_packed.")
    return values, entry


def _empty(model: Llama, name: str, kind: str, group: int) -> nn.Module:
    """A quantized layer of zeros in the shape of a layer on the meta device."""
    try:
        shape = model.get_submodule(name).get_parameter("weight").shape
    except AttributeError:
        raise Problem(f"config.json quantizes {name}, which is no layer.") from None
    weight = torch.zeros(shape)
    if kind == "int8":
        return Int8Linear(weight)
    if kind == "int4":
        return Int4Linear(nearest(weight, group))
    if kind == "nf4":
        return NF4Linear(weight)
    raise Problem(f"{name} is stored as {kind!r}; int8, int4 and nf4 are known.")


def _fill(layer: nn.Module, name: str, tensors: dict[str, Tensor]) -> None:
    state = layer.state_dict()
    found = {key: _take(tensors, f"{name}.{key}", like) for key, like in state.items()}
    layer.load_state_dict(found)


def _take(tensors: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Remove a tensor from those of the file, in shape and of the right sort."""
    if name not in tensors:
        raise Problem(f"The file lacks {name}, which config.json asks for.")
    tensor = tensors.pop(name)
    floating = like.is_floating_point() and tensor.is_floating_point()
    if tensor.shape != like.shape or not (floating or tensor.dtype == like.dtype):
        raise Problem(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not "
            f"{like.dtype} of shape {tuple(like.shape)} as config.json asks."
        )
    return tensor


def _place(model: Llama, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    if isinstance(model.get_submodule(name), nn.Embedding):
        if model.config.tie_embeddings:
            model.register_module("lm_head", layer)
        layer = Int8Embedding(layer)  # type: ignore[arg-type]
    model.get_submodule(parent).register_module(child, layer)
