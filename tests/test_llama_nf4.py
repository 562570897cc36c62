"""NF4 with double quantization, bit for bit bitsandbytes'."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.llama3_qlora import Llama, LlamaConfig, nf4
from utils.runtime import ROOT, Problem

bnb = pytest.importorskip("bitsandbytes.functional", reason="needs bitsandbytes")


def matrices():
    model = Llama.from_pretrained(ROOT / "data" / "models" / "base")
    linear = (m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear))
    made = [torch.randn(100, 192), torch.randn(7, 64) * 1e-3, torch.randn(33, 640) ** 5]
    return [layer.weight.detach() for layer in linear] + made


def test_levels_are_bitsandbytes():
    assert torch.equal(nf4.LEVELS, bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(nf4.SCALE_LEVELS, bnb.create_dynamic_map())


def test_codes_and_constants_are_bitsandbytes():
    torch.manual_seed(0)
    differing = total = 0
    for weight in matrices():
        layer = nf4.NF4Linear(weight)
        codes, state = bnb.quantize_4bit(
            weight, blocksize=64, quant_type="nf4", compress_statistics=True
        )
        assert torch.equal(layer.codes.flatten(), codes.flatten())
        assert torch.equal(layer.offset[0], state.offset)
        assert torch.equal(layer.scales_scale, state.state2.absmax)
        # its exact rounding of the scales, taken for doubles
        largest = weight.view(-1, 64).abs().amax(1) - state.offset
        scales, constants = torch.ops.bitsandbytes.quantize_blockwise.default(
            largest.double(), nf4.SCALE_LEVELS, 256
        )
        assert torch.equal(layer.scales.flatten(), scales)
        assert torch.equal(layer.scales_scale, constants)
        # its fast one for floats on a CPU looks up 16 bits of the number: in the middle
        # between two levels it may take the other
        apart = (layer.scales.flatten().int() - state.absmax.int()).abs()
        assert apart.max() <= 1
        differing, total = differing + int((apart > 0).sum()), total + len(apart)
    assert differing < 0.01 * total


def test_weights_are_bitsandbytes():
    for weight in matrices():
        layer = nf4.NF4Linear(weight)
        codes, state = bnb.quantize_4bit(
            weight, blocksize=64, quant_type="nf4", compress_statistics=True
        )
        state.absmax = layer.scales.flatten()
        assert torch.equal(layer.dequantized(), bnb.dequantize_4bit(codes, state))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.floats(-20, 20))
def test_no_weight_is_further_off_than_half_a_gap(rows, blocks, seed, power):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 64 * blocks, generator=generator) * 10.0**power
    codes, largest = nf4.in_blocks(weight.flatten(), 64, nf4.LEVELS)
    found = (nf4.LEVELS[codes.long()].view(-1, 64) * largest[:, None]).view_as(weight)
    widest = nf4.LEVELS.diff().max() / 2
    bound = (largest[:, None] * widest).expand(-1, 64).reshape(weight.shape)
    assert ((found - weight).abs() <= bound * 1.0001).all()


def test_zeros_stay_zeros():
    assert not nf4.NF4Linear(torch.zeros(4, 128)).dequantized().any()


def test_gradient_is_that_of_the_decoded_matrix():
    torch.manual_seed(0)
    layer = nf4.NF4Linear(torch.randn(96, 128))
    x = torch.randn(3, 5, 128, requires_grad=True)
    expected = F.linear(x, layer.dequantized())
    torch.testing.assert_close(layer(x), expected)
    towards = torch.randn_like(expected)
    (ours,) = torch.autograd.grad((layer(x) * towards).sum(), x)
    (theirs,) = torch.autograd.grad((expected * towards).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_backward_keeps_the_codes_and_not_the_floats():
    layer = nf4.NF4Linear(torch.randn(96, 128))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (saved.append(t.nbytes), t)[1], lambda t: t
    ):
        layer(torch.randn(2, 128, requires_grad=True))
    assert 0 < sum(saved) < 96 * 128  # bytes; the floats would be 4 * 96 * 128


def test_a_model_keeps_its_embedding_and_shrinks():
    model = Llama(LlamaConfig(256, 128, 256, 2, 4, tie_embeddings=True))
    before = model.model.embed_tokens.weight.clone()
    weights = sum(
        m.weight.numel()
        for m in model.model.layers.modules()
        if isinstance(m, torch.nn.Linear)
    )
    nf4.quantize_nf4(model)
    stored = sum(p.nbytes for p in model.model.layers.parameters() if p.dim() == 2)
    assert stored == weights / 2 + weights / 64
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any(p.requires_grad for p in model.parameters())
    assert model(torch.arange(8)[None]).isfinite().all()


def test_rows_must_be_of_whole_blocks():
    with pytest.raises(Problem, match="multiple of 64, not 100"):
        nf4.NF4Linear(torch.randn(8, 100))
