"""int8 and int4 weights: the errors that docstrings promise, the memory they save."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from projects.llama3_qlora import KVCache, Llama, LlamaConfig, generate, quantize
from projects.llama3_qlora.quantize import (
    FEW_ROWS,
    Int4Linear,
    Int8Linear,
    quantize_int8,
)
from projects.llama3_qlora.rounding import gptq, nearest
from utils.runtime import Problem


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


# --- four bits -------------------------------------------------------------------


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.manual_seed(seed))


@pytest.fixture(params=[True, False], ids=["kernel", "no kernel"])
def kernel(request, monkeypatch):
    """Both kinds of processors: with PyTorch's fast int4 kernel and without."""
    if request.param and not quantize.INT4_KERNEL:
        pytest.skip("this processor has no fast int4 kernel")
    monkeypatch.setattr(quantize, "INT4_KERNEL", request.param)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31), st.booleans())
def test_packing_round_trip(rows, blocks, seed, fast):
    shape, generator = (16 * rows, 32 * blocks), torch.Generator().manual_seed(seed)
    codes = torch.randint(16, shape, generator=generator, dtype=torch.uint8)
    pairs = quantize.two_to_a_byte(codes)
    assert pairs.shape == (16 * rows, 16 * blocks) and pairs.dtype == torch.uint8
    assert torch.equal(quantize.one_to_a_byte(pairs), codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "INT4_KERNEL", fast and quantize.INT4_KERNEL)
        packed = quantize.into_kernel(codes)
        assert packed.numel() * 2 == codes.numel()
        assert torch.equal(quantize.from_kernel(packed, shape[1]), codes)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_stores_what_was_coded(group, kernel):
    weight = example(group, 48, 256)
    coded = nearest(weight, group)
    layer = Int4Linear(coded)
    assert torch.equal(layer.codes(), coded.codes)
    # scale and zero in bfloat16: 1/512 of 15 scales and of the zero, at most 8 more
    step = coded.scale.repeat_interleave(group, 1)
    assert torch.all((layer.dequantized() - coded.decoded()).abs() <= step * 23 / 512)
    error = (layer.dequantized() - weight).abs()
    assert torch.all(error <= step * (0.5 + 23 / 512)) and error.max() > 0
    assert torch.equal(layer.dequantized()[5], torch.zeros(256))


@pytest.mark.parametrize("rows", [1, 3, 8, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_result_is_that_of_the_dequantized_weights(rows, dtype, kernel):
    layer = Int4Linear(nearest(example(1, 48, 256)))
    x = normal(2, rows, 256).to(dtype)
    y, expected = layer(x), F.linear(x.float(), layer.dequantized())
    assert y.shape == (rows, 48) and y.dtype == dtype
    # x, the weights and y are each rounded to bfloat16: 1/512 of every product
    size = F.linear(x.float().abs(), layer.dequantized().abs())
    assert torch.all((y.float() - expected).abs() <= size * 3.1 / 512)
    assert layer(x.view(1, rows, 256)).shape == (1, rows, 48)


def test_int4_state_is_the_same_on_all_processors(monkeypatch):
    coded = nearest(example(4, 48, 128))
    states = []
    for fast in (quantize.INT4_KERNEL, False):
        monkeypatch.setattr(quantize, "INT4_KERNEL", fast)
        layer = Int4Linear(coded)
        states.append(layer.state_dict())
        other = Int4Linear(nearest(torch.zeros(48, 128)))
        other.load_state_dict(copy.deepcopy(layer).state_dict())
        assert torch.equal(other.dequantized(), layer.dequantized())
    assert list(states[0]) == list(states[1]) == ["grid", "codes"]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert sum(t.nbytes for t in states[0].values()) * 8 == 48 * 128 * 4.5


@pytest.mark.parametrize("make", [nearest, lambda w, g: gptq(w, torch.eye(80), g)])
def test_groups_that_do_not_divide_a_row_are_refused(make):
    with pytest.raises(Problem, match="Groups of 64 do not divide rows of 80"):
        make(torch.ones(16, 80), 64)


@pytest.mark.parametrize(("outputs", "group"), [(24, 64), (16, 16)])
def test_sizes_that_the_kernel_lacks_are_refused(outputs, group):
    with pytest.raises(Problem, match="Int4Linear needs groups of 32"):
        Int4Linear(nearest(torch.ones(outputs, 64), group))


def test_int4_says_that_it_needs_the_cpu():
    with pytest.raises(Problem, match="on the CPU only"):
        Int4Linear(nearest(torch.ones(16, 64)))(torch.ones(1, 64, device="meta"))


def test_int8_passes_a_gradient_to_few_rows():
    layer = Int8Linear(torch.randn(32, 64))
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).square().sum().backward()
    expected = 2 * layer(x.detach().requires_grad_()) @ layer.dequantized()
    torch.testing.assert_close(x.grad, expected.detach())
