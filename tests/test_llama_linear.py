"""The linear layer through oneDNN against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from projects.llama3_qlora import linear as module
from projects.llama3_qlora.linear import Linear, linear, suits_onednn

needs_avx512 = pytest.mark.skipif(not module.AVX512, reason="needs AVX-512")


def case(*rows, inputs=96, outputs=160):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    return x, weight


@pytest.mark.parametrize("rows", [(1,), (3, 50), (2, 100), (400,), (2, 3, 60)])
@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True)])
def test_result_and_gradients(rows, grads):
    x, weight = case(*rows)
    arguments = [t.requires_grad_(g) for t, g in zip((x, weight), grads, strict=True)]
    needed = [t for t in arguments if t.requires_grad]
    upstream = torch.randn_like(F.linear(x, weight))
    result, expected = linear(*arguments), F.linear(*arguments)
    assert_close(result, expected, atol=1e-5, rtol=0)
    pairs = zip(
        torch.autograd.grad(result, needed, upstream),
        torch.autograd.grad(expected, needed, upstream),
        strict=True,
    )
    for gradient, wanted in pairs:
        assert (gradient - wanted).norm() < 1e-5 * wanted.norm()


def test_result_is_no_view_and_can_be_checkpointed():
    x, weight = case(4, 100)
    weight.requires_grad_()
    result = linear(x, weight)
    assert not result._is_view()  # FSDP warns of modules that return one
    again = checkpoint(linear, x, weight, use_reentrant=False)
    gradients = [torch.autograd.grad(y.square().sum(), weight) for y in (result, again)]
    assert torch.equal(*(gradient for (gradient,) in gradients))


def test_views_and_broadcast_rows():
    x, weight = case(40, 60)
    for rows in (x.transpose(0, 1), x[:, ::2], x[:1].expand(40, -1, -1)):
        assert_close(linear(rows, weight), F.linear(rows, weight), atol=1e-5, rtol=0)
    apart = weight.t().contiguous().t()
    assert_close(linear(x, apart), F.linear(x, weight), atol=1e-5, rtol=0)


@needs_avx512
def test_only_large_float32_products_on_a_cpu_go_there(monkeypatch):
    calls = []
    product = module._product
    monkeypatch.setattr(module, "_product", lambda *a: calls.append(1) or product(*a))
    x, weight = case(400)
    linear(x, weight)
    assert len(calls) == 1
    linear(x[:4], weight)
    linear(x.bfloat16(), weight.bfloat16())
    linear(x.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert len(calls) == 1
    assert not suits_onednn(x.to("meta"), weight.to("meta"))


def test_without_avx512_it_is_pytorchs(monkeypatch):
    monkeypatch.setattr(module, "AVX512", False)
    x, weight = case(400)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_the_module_is_a_linear_layer_without_bias():
    layer = Linear(96, 160)
    assert isinstance(layer, torch.nn.Linear) and layer.bias is None
    assert layer.weight.shape == (160, 96)
    x, _ = case(400)
    assert_close(layer(x), F.linear(x, layer.weight), atol=1e-5, rtol=0)
