"""int8 weights: the error that the docstring promises, and the memory they save."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projects.llama3_qlora import KVCache, Llama, LlamaConfig, generate
from projects.llama3_qlora.quantize import FEW_ROWS, Int8Linear, quantize_int8


def example(seed, outputs=48, inputs=80):
    weight = torch.randn(outputs, inputs, generator=torch.manual_seed(seed))
    weight *= torch.logspace(-3, 3, outputs)[:, None]  # rows of very different size
    weight[5] = 0
    return weight


def small(tied=True):
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 160}
    heads = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "tie_embeddings": tied}
    return Llama(LlamaConfig(**sizes, **heads)).eval()


def n_bytes(module):
    tensors = [*module.parameters(), *module.buffers()]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


@pytest.mark.parametrize("seed", range(3))
def test_no_weight_is_off_by_more_than_half_its_scale(seed):
    weight = example(seed)
    layer = Int8Linear(weight)
    largest = weight.abs().amax(1, keepdim=True)
    error = (layer.dequantized() - weight).abs()
    assert torch.all(error <= largest / 254 * (1 + 1e-4))
    assert error.max() > 0  # int8 is not exact: the bound is put to the test
    assert torch.equal(layer.dequantized()[5], torch.zeros(80))
    assert layer.weight.dtype == torch.int8
    assert layer.weight.abs().amax(1)[0] == 127  # the whole range is used


@pytest.mark.parametrize("rows", [1, 7, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_is_that_of_the_dequantized_weights(rows, dtype):
    layer = Int8Linear(example(1))
    x = torch.randn(rows, 80, generator=torch.manual_seed(2)).to(dtype)
    y, expected = layer(x), F.linear(x.float(), layer.dequantized())
    assert y.shape == (rows, 48) and y.dtype == dtype
    # x and y are rounded to bfloat16 at worst: 1/256 of each product, 1/256 of the sum
    size = F.linear(x.float().abs(), layer.dequantized().abs())
    assert torch.all((y.float() - expected).abs() <= size / 128 + 1e-6)
    if rows > FEW_ROWS and dtype == torch.float32:  # a prompt: nothing is rounded
        assert torch.all((y - expected).abs() <= 1e-6 * size)


def test_leading_dimensions_stay():
    layer = Int8Linear(example(3))
    x = torch.randn(2, 3, 80)
    assert torch.equal(layer(x)[1, 2], layer(x[1, 2][None])[0])


@pytest.mark.parametrize("tied", [False, True])
def test_every_linear_layer_is_replaced_and_the_embedding_stays(tied):
    model = small(tied)
    embedding = model.model.embed_tokens.weight.detach().clone()
    assert quantize_int8(model) is model
    assert not [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len([m for m in model.modules() if isinstance(m, Int8Linear)]) == 2 * 7 + 1
    assert torch.equal(model.model.embed_tokens.weight, embedding)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_stay_close(tied):
    model = small(tied)
    for weight in model.parameters():  # logits of ordinary size
        weight.data *= 4 if weight.dim() == 2 else 1
    ids = torch.randint(300, (1, FEW_ROWS + 20), generator=torch.manual_seed(3))
    with torch.inference_mode():
        expected = model(ids)
        quantize_int8(model)
        cache = KVCache(model.config, 1, 200)
        prompt, few = model(ids[:, :-20], cache), model(ids[:, -20:], cache)
    error = (torch.cat([prompt, few], 1) - expected).std() / expected.std()
    assert 1e-4 < error < 0.03


def test_memory_is_a_quarter_and_generation_runs():
    model = small(tied=False)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    before = sum(map(n_bytes, linears))
    other = n_bytes(model) - before
    small_model = quantize_int8(copy.deepcopy(model))
    scales = sum(6 * len(m.weight) for m in linears)  # a float and a bfloat16 per row
    assert n_bytes(small_model) == before // 4 + scales + other
    assert len(generate(small_model, [[1, 2, 3], [4]], 5)[1]) == 5
