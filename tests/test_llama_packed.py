"""Folders of quantized models: bit for bit, of the size foretold, safe to damage."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from projects.llama3_qlora import Llama, generate
from projects.llama3_qlora.checkpoint import verify
from projects.llama3_qlora.nf4 import quantize_nf4
from projects.llama3_qlora.packed import load_packed, save_packed
from projects.llama3_qlora.quantize import (
    Int4Linear,
    Int8Linear,
    quantize_embedding,
    quantize_int4,
    quantize_int8,
)
from projects.llama3_qlora.rounding import nearest
from tests.test_llama_quantize import small
from utils.runtime import Problem


def by_32(_, weight):
    return nearest(weight, 32)


def at_nf4(model):
    """NF4 wants rows in multiples of 64, which this model's down_proj has not."""
    with pytest.raises(Problem, match="multiple of 64"):
        quantize_nf4(model)
    for block in model.model.layers:
        block.mlp.down_proj = Int8Linear(block.mlp.down_proj.weight)
    return quantize_nf4(model)


WAYS = {
    "int8": quantize_int8,
    "int4": lambda model: quantize_int4(model, by_32),
    "int4, int8 head": lambda model: quantize_embedding(quantize_int4(model, by_32)),
    "nf4 and int8": at_nf4,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_comes_back_bit_for_bit(way, tied, tmp_path):
    model = WAYS[way](small(tied).bfloat16().float())
    save_packed(model, tmp_path)
    verify(tmp_path)
    again = load_packed(tmp_path).eval()
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids))
    shared = again.model.embed_tokens.weight is getattr(again.lm_head, "weight", None)
    shared |= getattr(again.model.embed_tokens, "table", None) is again.lm_head
    assert shared == (tied and way != "int8")
    assert generate(again, [[1, 2, 3], [4]], 5) == generate(model, [[1, 2, 3], [4]], 5)
    with pytest.raises(Problem, match="This model is quantized"):
        Llama.from_pretrained(tmp_path)


def test_size_of_a_file_is_that_of_the_formula(tmp_path):
    model = small()
    matrices = sum(m.weight.numel() for m in model.model.layers.modules() if linear(m))
    save_packed(quantize_int4(model, by_32), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = 300 * 64 * 2 + 5 * 64 * 4  # the embedding in 16 bits, five norms in 32
    stored = sum(t.nbytes for t in tensors.values())
    assert stored == matrices * (4 + 32 / 32) / 8 + kept
    header = (tmp_path / "model.safetensors").stat().st_size - stored
    assert 0 < header < 6000


def linear(module):
    return isinstance(module, nn.Linear)


def edit(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))


def tensors_without(folder, name, replacement=None):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    if replacement is not None:
        tensors[name] = replacement
    save_file(tensors, folder / "model.safetensors")


Q = "model.layers.1.self_attn.q_proj"
DAMAGE = {
    "is stored as 'int3'": lambda f: edit(f, lambda c: c["layers"].update({Q: "int3"})),
    "which is no layer": lambda f: edit(f, lambda c: c["layers"].update(x="int4")),
    "Groups of 48 do not": lambda f: edit(f, lambda c: c.update(group_size=48)),
    "not torch.bfloat16 of": lambda f: edit(f, lambda c: c.update(group_size=64)),
    "not written by save_packed": lambda f: edit(
        f, lambda c: c.update(quant_method="")
    ),
    "config.json in .* damaged": lambda f: edit(f, lambda c: c.pop("layers")),
    "There is no config.json": lambda f: (f / "config.json").unlink(),
    "lacks .*q_proj.grid": lambda f: tensors_without(f, f"{Q}.grid"),
    "of shape .*, not torch.uint8": lambda f: tensors_without(
        f, f"{Q}.codes", torch.zeros(64, 31, dtype=torch.uint8)
    ),
    "has extra, unknown": lambda f: tensors_without(f, "extra", torch.zeros(1)),
    "is damaged": lambda f: (f / "model.safetensors").write_bytes(b"x" * 100),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_a_damaged_folder_says_what_is_wrong(sentence, tmp_path):
    model = small()
    for block in model.model.layers:  # so that a group of 64 divides other rows
        block.mlp.down_proj = Int8Linear(block.mlp.down_proj.weight)
    save_packed(quantize_int4(model, by_32), tmp_path)
    DAMAGE[sentence](tmp_path)
    with pytest.raises(Problem, match=sentence):
        load_packed(tmp_path)


def test_only_quantized_models_of_one_group_size_are_saved(tmp_path):
    with pytest.raises(Problem, match="Nothing in this model is quantized"):
        save_packed(small(), tmp_path)
    mixed = quantize_int4(small(), by_32)
    mixed.model.layers[0].self_attn.q_proj = Int4Linear(nearest(torch.ones(64, 64)))
    with pytest.raises(Problem, match=r"one group size, not \[32, 64\]"):
        save_packed(mixed, tmp_path)
