"""The quantizers that notebook 03.5 teaches are those of the libraries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.notebook_code import namespace
from utils.props import lowbit

REASON = "the extra 'compression' is not installed"
ao = pytest.importorskip("torchao.quantization", reason=REASON)
bitsandbytes = pytest.importorskip("bitsandbytes", reason=REASON)

CODES = ["Coded", "grid", "snap", "round_to_nearest"]
LAYERS = ["gptq", "gptq_ordered", "output_error", "alphas", "awq"]
INT8 = ["by_row", "int8_product", "llm_int8", "by_bitsandbytes"]
TRAINING = ["straight_through", "fake_quantize", "Rounded"]
NAMES = [*CODES, *LAYERS, *INT8, *TRAINING, "by_torchao"]


@pytest.fixture(scope="module")
def taught():
    return namespace("03.5", NAMES)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int, inputs: int = 128, rank: int = 24) -> torch.Tensor:
    """Inputs (tokens, inputs) that mix a few sources, as those of real layers do."""
    return normal(seed, 400, rank) @ normal(seed + 1, rank, inputs)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("group", [32, 128])
def test_round_to_nearest_equals_torchao(taught, bits, group):
    weight = normal(bits, 48, 128) * torch.logspace(-2, 1, 48)[:, None]
    weight[3] = weight[3].abs()  # rows on one side of zero: the grid still has zero
    weight[4] = 0
    ours = taught["round_to_nearest"](weight, bits, group)
    theirs = taught["by_torchao"](weight, bits, group)
    torch.testing.assert_close(ours.decoded(), theirs)
    assert torch.equal(ours.decoded()[4], torch.zeros(128))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8))
def test_no_weight_moves_by_more_than_half_a_mark(taught, seed, bits):
    weight = normal(seed, 8, 64)
    coded = taught["round_to_nearest"](weight, bits, 32)
    assert coded.codes.min() >= 0 and coded.codes.max() <= 2**bits - 1
    steps = (coded.decoded() - weight).abs().unflatten(1, (-1, 32))
    assert torch.all(steps <= coded.scale[..., None] * (0.5 + 1e-4))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_with_independent_inputs_is_rounding_to_nearest(taught, bits):
    weight = normal(bits, 32, 128)
    ours = taught["gptq"](weight, bits, 3.0 * torch.eye(128), group=32)
    nearest = taught["round_to_nearest"](weight, bits, 32)
    assert torch.equal(ours.codes, nearest.codes)
    assert torch.equal(ours.scale, nearest.scale)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4]))
def test_gptq_beats_nearest_on_correlated_inputs(taught, seed, bits):
    weight, x = normal(seed + 2, 32, 128), correlated(seed)
    hessian = x.T @ x
    errors = [
        taught["output_error"](weight, coded.decoded(), hessian)
        for coded in (
            taught["gptq"](weight, bits, hessian, group=32),
            taught["round_to_nearest"](weight, bits, 32),
        )
    ]
    assert errors[0] < errors[1]


def test_gptq_follows_the_definition_column_by_column(taught):
    """Against the textbook form: remove a column from the inverse at each step."""
    weight, x = normal(5, 16, 24), correlated(7, 24, 10)
    hessian = (x.T @ x).double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24)
    rest, inverse = weight.double().clone(), torch.linalg.inv(damped)
    scale, zero = taught["grid"](rest, 3)
    for i in range(24):
        code = taught["snap"](rest[:, i : i + 1], scale, zero, 3)
        error = rest[:, i : i + 1] - (code - zero) * scale
        rest -= error / inverse[i, i] * inverse[i]
        rest[:, i : i + 1] = (code - zero) * scale
        row = inverse[i] / inverse[i, i]
        inverse = inverse - torch.outer(inverse[:, i], row)
    ours = taught["gptq"](weight.double(), 3, hessian, group=24)
    torch.testing.assert_close(ours.decoded(), rest)


def test_output_error_is_that_of_the_outputs(taught):
    weight, x = normal(1, 8, 16), normal(2, 50, 16)
    changed = weight + 0.1 * normal(3, 8, 16)
    expected = (x @ (changed - weight).T).square().sum() / (x @ weight.T).square().sum()
    found = taught["output_error"](weight, changed, x.T @ x)
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_awq_is_never_worse_than_nearest_on_calibration(taught, seed):
    weight, x = normal(seed, 16, 128), normal(seed + 9, 200, 128)
    x[:, 5] *= 30  # a salient channel
    hessian = x.T @ x
    best, tried = taught["awq"](weight, 3, hessian)
    nearest = taught["round_to_nearest"](weight, 3).decoded()
    assert tried[0] == pytest.approx(
        taught["output_error"](weight, nearest, hessian), rel=1e-3
    )
    assert taught["output_error"](weight, best, hessian) <= 0.9 * tried[0]


@pytest.mark.parametrize("outliers", [[], [7], [7, 100, 101]])
def test_llm_int8_equals_bitsandbytes(taught, outliers):
    weight, x = 0.1 * normal(1, 64, 128), normal(2, 40, 128).clamp(-5, 5)
    x[:, outliers] *= 20
    ours, theirs = taught["llm_int8"](x, weight), taught["by_bitsandbytes"](x, weight)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
    exact = x @ weight.T
    error = (ours - exact).norm() / exact.norm()
    assert error < 0.02
    if outliers:  # without the split the outliers take the range of their rows
        blunt = (taught["int8_product"](x, weight) - exact).norm() / exact.norm()
        assert blunt > error


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 8]),
    narrow=st.sampled_from([0.4, 1.0]),
)
def test_straight_through_gradient_equals_pytorch(taught, seed, bits, narrow):
    weight, above = normal(seed, 16, 12), normal(seed + 1, 16, 12)
    scale, zero = taught["grid"](narrow * weight, bits)
    one, two = (weight.clone().requires_grad_() for _ in range(2))
    ours = taught["straight_through"](one, scale, zero, bits)
    theirs = torch.fake_quantize_per_channel_affine(
        two, scale[:, 0], zero[:, 0].int(), 0, 0, 2**bits - 1
    )
    ours.backward(above)
    theirs.backward(above)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(one.grad, two.grad)
    clipped = (one.grad == 0).float().mean()
    assert clipped > 0.05 if narrow < 1 else clipped < 0.01


def centred(taught, weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Rounded on torchao's symmetric grid: its asymmetric one loses zero in 0.18."""
    groups = weight.unflatten(1, (-1, 64))
    largest = groups.detach().abs().amax(-1, keepdim=True)
    scale = largest / ((2**bits - 1) / 2)
    middle = torch.full_like(scale, 2 ** (bits - 1))
    return taught["straight_through"](groups, scale, middle, bits).flatten(1)


def test_qat_of_torchao_rounds_and_learns_as_ours(taught):
    from torchao.quantization import qat

    layer = nn.Linear(128, 16, bias=False)
    weight = layer.weight.detach().clone().requires_grad_()
    config = qat.IntxFakeQuantizeConfig(torch.int4, group_size=64)
    model = nn.Sequential(layer)
    ao.quantize_(model, qat.QATConfig(weight_config=config, step="prepare"))
    x = normal(3, 5, 128)
    ours, theirs = F.linear(x, centred(taught, weight, 4)), model(x)
    torch.testing.assert_close(ours, theirs)
    assert (ours - F.linear(x, weight)).abs().max() > 1e-3
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(weight.grad, model[0].weight.grad)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), bits=st.integers(1, 8))
def test_packed_codes_come_back(data, bits):
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 33))
    seed = data.draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (rows, columns), generator=generator).float()
    stream = lowbit.packed(codes, bits)
    assert len(stream) == -(-rows * columns * bits // 8)
    assert torch.equal(lowbit.unpacked(stream, bits, codes.shape), codes)


def test_watching_sees_inputs_and_leaves_nothing_behind():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    seen = {}
    rows = torch.tensor([[1, 2, 3]])
    lowbit.watch_inputs(model, ["1"], rows, seen.__setitem__)
    torch.testing.assert_close(seen["1"], model[0].weight[rows[0]])
    with pytest.raises(IndexError):
        lowbit.watch_inputs(model, ["1"], [torch.tensor([99])], seen.__setitem__)
    assert not model[1]._forward_pre_hooks


def test_swapped_and_plain_leave_the_original_alone():
    class Special(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model = nn.Sequential(nn.Sequential(Special(4, 4)), nn.ReLU())
    x = normal(0, 2, 4)
    before = model(x)
    other = lowbit.swapped(model, ["0.0"], lambda name, layer: nn.Identity())
    assert torch.equal(other(x), x.relu())
    assert type(lowbit.plain(model)[0][0]) is nn.Linear
    assert torch.equal(model(x), before)


def test_rescaling_a_norm_and_its_readers_changes_nothing():
    from projects.llama3_qlora import Llama
    from utils import runtime

    model = Llama.from_pretrained(runtime.ROOT / "data" / "models" / "base").eval()
    rows, norm = torch.tensor([[5, 6, 7, 8]]), "model.layers.1.input_layernorm"
    before, maxima = model(rows), lowbit.channel_maxima(model, norm, rows)
    factors = torch.ones(model.config.hidden_size)
    factors[3] = 64
    lowbit.rescale(model, norm, factors)
    torch.testing.assert_close(model(rows), before, rtol=1e-3, atol=1e-3)
    grown = lowbit.channel_maxima(model, norm, rows)
    torch.testing.assert_close(grown, maxima * factors)


def test_layers_multiply_by_the_given_function():
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    twice = lowbit.multiplied_by(model, ["0"], lambda x, weight: 2 * x @ weight.T)
    x = normal(0, 2, 5, 4)
    torch.testing.assert_close(twice(x), 2 * model(x))
