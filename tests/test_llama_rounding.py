"""4-bit codes: those of notebook 03.5, and no worse than the methods promise."""

import copy

import pytest
import torch

from projects.llama3_qlora.rounding import (
    awq_factors,
    fold_awq,
    gptq,
    hessians,
    nearest,
)
from tests.notebook_code import namespace
from tests.test_llama_quantize import normal, small
from utils.runtime import Problem


def correlated(seed, inputs, rank=24):
    """Inputs (tokens, inputs) that mix a few sources, as those of real layers do."""
    return normal(seed, 400, rank) @ normal(seed + 1, rank, inputs)


@pytest.fixture(scope="module")
def taught():
    names = ["Coded", "grid", "snap", "round_to_nearest", "gptq", "gptq_ordered"]
    return namespace("03.5", [*names, "output_error", "alphas", "awq"])


def same(ours, theirs):
    assert torch.equal(ours.codes.float(), theirs.codes)
    assert torch.equal(ours.scale, theirs.scale)
    assert torch.equal(ours.zero, theirs.zero)


@pytest.mark.parametrize("group", [32, 64, 256])
def test_methods_give_the_codes_of_notebook_03_5(taught, group):
    weight, x = normal(group, 48, 256) * 0.02, correlated(1, 256)
    weight[3] = weight[3].abs() + 0.01  # one side of zero, which stays on the grid
    weight[4] = 0
    hessian = x.T @ x
    same(nearest(weight, group), taught["round_to_nearest"](weight, 4, group))
    same(gptq(weight, hessian, group), taught["gptq"](weight, 4, hessian, group))
    ordered = gptq(weight, hessian, 256, ordered=True)  # one group: one grid
    expected = taught["gptq_ordered"](weight, 4, hessian, 256)
    torch.testing.assert_close(ordered.decoded(), expected)


def test_awq_is_that_of_notebook_03_5(taught):
    weight, x = normal(3, 48, 128) * 0.02, correlated(2, 128)
    x[:, [3, 90]] *= 20  # outliers, for which it was made
    factors = awq_factors([weight], x.T @ x)
    assert factors.max() > 1.5 * factors.min()
    expected, _ = taught["awq"](weight, 4, x.T @ x)
    torch.testing.assert_close(nearest(weight * factors).decoded() / factors, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq_has_the_smaller_output_error(taught, seed, ordered):
    weight, x = normal(seed, 64, 256), correlated(seed + 9, 256)
    hessian = x.T @ x
    coded = gptq(weight, hessian, ordered=ordered), nearest(weight)
    by_gptq, by_nearest = (
        taught["output_error"](weight, one.decoded(), hessian) for one in coded
    )
    assert by_gptq < 0.8 * by_nearest


def test_gptq_of_independent_inputs_is_rounding_to_nearest():
    weight = normal(0, 32, 128)
    for ordered in (False, True):
        coded = gptq(weight, 3.0 * torch.eye(128), ordered=ordered)
        assert torch.equal(coded.codes, nearest(weight).codes)


def test_gptq_says_when_it_cannot_invert():
    with pytest.raises(Problem, match="more calibration text or more damping"):
        gptq(normal(0, 8, 64), torch.zeros(64, 64))


def test_hessians_sum_the_inputs_and_leave_no_hooks():
    model, rows = small(), torch.arange(40).view(2, 20)
    found = hessians(model, rows)
    assert len(found) == 2 * 7
    layer = model.model.layers[0]
    x = layer.input_layernorm(model.model.embed_tokens(rows)).flatten(0, 1)
    for name in ("q_proj", "k_proj", "v_proj"):
        hessian = found[f"model.layers.0.self_attn.{name}"]
        torch.testing.assert_close(hessian, x.T @ x)
    assert not any(module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_folding_awq_leaves_the_function_unchanged():
    model = small()
    for weight in model.parameters():
        weight.data *= 4 if weight.dim() == 2 else 1
    ids = torch.randint(300, (4, 30), generator=torch.manual_seed(3))
    model.model.layers[0].input_layernorm.weight[7] = 30  # an outlier to scale
    before, old = model(ids), copy.deepcopy(model)
    # groups of 32: the rows of this model's down_proj have 160
    assert fold_awq(model, hessians(model, ids), 32) is model
    torch.testing.assert_close(model(ids), before, rtol=1e-4, atol=1e-4)
    changed = [
        name
        for name, weight in model.named_parameters()
        if not torch.allclose(weight, old.get_parameter(name))
    ]
    assert "model.layers.0.input_layernorm.weight" in changed
    assert not [name for name in changed if "o_proj" in name or "embed" in name]
