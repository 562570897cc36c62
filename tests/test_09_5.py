"""What notebook 09.5 says about sizes and formats."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from projects.llama3_qlora import Llama, nf4
from projects.llama3_qlora.packed import save_packed
from projects.llama3_qlora.quantize import (
    quantize_embedding,
    quantize_int4,
    quantize_int8,
)
from tests.notebook_code import namespace
from utils.props import lowbit
from utils.runtime import ROOT

REASON = "the notebook imports it"
pytest.importorskip("bitsandbytes", reason=REASON)
pytest.importorskip("torchao", reason=REASON)
gguf = pytest.importorskip("gguf", reason=REASON)

NAMES = ["bits_per_weight", "predicted_mb", "q8_0", "q4_0", "counted_mb"]


@pytest.fixture(scope="module")
def taught():
    return namespace("09.5", [*NAMES, "bits_left", "four_bit_head", "with_int8"])


@pytest.fixture(scope="module")
def base():
    return Llama.from_pretrained(ROOT / "data" / "models" / "base").eval()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(-6, 4), st.integers(1, 40))
def test_blocks_are_those_of_llama_cpp(taught, seed, power, blocks):
    weight = torch.randn(blocks, 32, generator=torch.Generator().manual_seed(seed))
    weight *= 10.0**power
    weight[0] = 0  # a block without a scale
    for name in ("Q8_0", "Q4_0"):
        kind = gguf.GGMLQuantizationType[name]
        expected = gguf.quants.quantize(weight.numpy(), kind)
        assert np.array_equal(taught[name.lower()](weight), expected)


WAYS = {
    "int8": quantize_int8,
    "int4": quantize_int4,
    "nf4": nf4.quantize_nf4,
    "both ends": lambda model: quantize_embedding(quantize_int4(model)),
}


@pytest.mark.parametrize("way", [*WAYS, "four_bit_head", "with_int8"])
def test_sizes_are_foretold(taught, base, way, tmp_path):
    makers = WAYS | {
        "four_bit_head": taught["four_bit_head"],
        "with_int8": lambda model: taught["with_int8"](model, "self_attn"),
    }
    model = makers[way](copy.deepcopy(base))
    save_packed(model, tmp_path)
    path = tmp_path / "model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    tensors = (path.stat().st_size - header) / 1e6
    # NF4 rounds the scales of scales up to whole blocks, and has an offset per matrix
    assert tensors == pytest.approx(taught["predicted_mb"](model), rel=2e-3)
    assert header < 0.01 * path.stat().st_size


def test_bits_are_those_of_the_papers(taught):
    bits = taught["bits_per_weight"]
    assert bits("nf4, single") == bits("int4") == 4.5
    assert bits("nf4, double") == pytest.approx(4.127, abs=5e-4)
    assert [bits("int4", group=g) for g in (32, 128, 256)] == [5, 4.25, 4.125]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_published_count_is_refuted_and_the_file_is_not(taught, base, tmp_path):
    dynamic = torch.ao.quantization.quantize_dynamic(
        lowbit.plain(base), {nn.Linear}, torch.qint8
    )
    taught["in_blocks"] = 3_145_728
    taught["embedding"] = base.model.embed_tokens.weight
    torch.save(dynamic.state_dict(), tmp_path / "model.pt")
    on_disk = (tmp_path / "model.pt").stat().st_size / 1e6
    counted = taught["counted_mb"](dynamic)
    assert taught["bits_left"](counted) < 0.1
    assert 8 <= taught["bits_left"](on_disk) < 8.5
    assert taught["counted_mb"](base) == pytest.approx(4 * 4.196608)
