"""The formats, quantizers and packings of notebook 03.4 are those of the libraries."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebook_code import namespace

REASON = "needs the extra 'compression' (pip install -e '.[compression]')"
bnb = pytest.importorskip("bitsandbytes", reason=REASON).functional
ao = pytest.importorskip("torchao.quantization", reason=REASON).quant_primitives
faiss = pytest.importorskip("faiss", reason="needs the extra 'operations' (faiss-cpu)")

FORMATS = ["Format", "FP32", "TF32", "FP16", "BF16", "E4M3", "E5M2"]
FLOATS = [*FORMATS, "decode", "nearest", "encode"]
GRIDS = ["Grid", "symmetric", "affine", "in_rows", "torchao_codes"]
BYTES = ["pack", "unpack", "ternary"]
LEVELS = ["normal_levels", "NF4", "to_levels", "from_levels"]
VECTORS = ["kmeans", "lookup", "rebuild"]
NAMES = [*FLOATS, *GRIDS, *BYTES, *LEVELS, *VECTORS]
KINDS = {"symmetric": "SYMMETRIC", "affine": "ASYMMETRIC"}
# torchao cannot reshape rows of a single number
shapes = st.tuples(st.integers(1, 6), st.integers(2, 40))


@pytest.fixture(scope="module")
def taught():
    return namespace("03.4", NAMES)


def numbers(seed: int, shape, shift: float = 0.0, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator) + shift


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("FP32", torch.float32),
        ("FP16", torch.float16),
        ("BF16", torch.bfloat16),
        ("E4M3", torch.float8_e4m3fn),
        ("E5M2", torch.float8_e5m2),
    ],
)
def test_a_format_has_the_limits_of_torch(taught, name, dtype):
    kind, info = taught[name], torch.finfo(dtype)
    assert kind.largest == info.max
    assert kind.epsilon == info.eps
    assert kind.smallest_normal == info.smallest_normal


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounding_is_that_of_torch(taught, x):
    for name, dtype in (("FP16", torch.float16), ("BF16", torch.bfloat16)):
        theirs = torch.tensor(x, dtype=torch.float32).to(dtype).item()
        assert float(taught["nearest"](x, taught[name])) == theirs


@given(st.sampled_from(FORMATS[1:]), st.floats(-5, 5))
def test_what_is_encoded_decodes_to_the_nearest(taught, name, x):
    kind = taught[name]
    bits = taught["encode"](x, kind)
    assert len(bits) == kind.bits
    assert taught["decode"](bits, kind) == float(taught["nearest"](x, kind))


@settings(deadline=None)
@given(
    st.integers(0, 999),
    shapes,
    st.integers(2, 8),
    st.sampled_from(sorted(KINDS)),
    st.floats(-5, 5),
)
def test_codes_equal_torchao(taught, seed, shape, bits, fit, shift):
    x = numbers(seed, shape, shift)
    theirs = taught["torchao_codes"](x, bits, ao.MappingType[KINDS[fit]])
    assert torch.equal(taught[fit](x, bits).codes(x), theirs.float())


@settings(deadline=None)
@given(st.integers(0, 999), shapes, st.integers(2, 8), st.sampled_from(sorted(KINDS)))
def test_no_error_exceeds_half_a_step(taught, seed, shape, bits, fit):
    x = numbers(seed, shape, shift=seed % 3, scale=10.0 ** (seed % 5 - 2))
    grid = taught[fit](x, bits)
    error = (grid.values(grid.codes(x)) - x).abs()
    # an affine zero point is rounded, which can push the last level half a step out
    room = 0.5 if fit == "symmetric" else 1.0
    assert bool((error <= grid.step * (room + 1e-4)).all())
    inside = (grid.codes(x) > grid.low) & (grid.codes(x) < grid.high)
    assert bool((error <= grid.step * 0.5001)[inside].all())


@settings(deadline=None)
@given(st.integers(0, 999), st.sampled_from(sorted(KINDS)), st.integers(2, 8))
def test_zero_stays_zero(taught, seed, fit, bits):
    x = numbers(seed, (3, 9), shift=4.0)
    grid = taught[fit](x, bits)
    zeros = torch.zeros_like(x)
    assert torch.equal(grid.values(grid.codes(zeros)), zeros)


def test_codes_equal_pytorchs_own_quantized_tensors(taught):
    x = numbers(3, (50, 20), shift=0.4)
    grid = taught["affine"](x.reshape(1, -1), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao
        theirs = torch.quantize_per_tensor(
            x, float(grid.step), int(grid.zero), torch.qint8
        )
    assert torch.equal(grid.codes(x), theirs.int_repr().float())


@given(st.integers(1, 8), st.data())
def test_packing_round_trip(taught, bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=70))
    packed = taught["pack"](torch.tensor(codes), bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(len(codes) * bits / 8)
    assert taught["unpack"](packed, bits, len(codes)).tolist() == codes


def test_ternary_levels(taught):
    rows = torch.tensor([[-3.0, 0.1, 0.0, 2.0], [0.0, 1.0, 1.0, 0.0]])
    expected = [[-2.5, 0.0, 0.0, 2.5], [0.0, 1.0, 1.0, 0.0]]
    assert taught["ternary"](rows).tolist() == expected


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 999),
    st.sampled_from([64, 128, 256]),
    st.sampled_from(["nf4", "fp4"]),
    st.floats(1e-3, 1e3),
)
def test_codes_equal_bitsandbytes(taught, seed, block, kind, scale):
    x = numbers(seed, (4, block), scale=scale)
    order = bnb.get_4bit_type(kind, device="cpu").unique()
    levels = taught["NF4"] if kind == "nf4" else order
    codes, largest = taught["to_levels"](x, levels)
    packed, state = bnb.quantize_4bit(x, blocksize=block, quant_type=kind)
    assert torch.equal(largest[:, 0], state.absmax)
    theirs = bnb.dequantize_4bit(packed, state)
    ours = taught["from_levels"](codes, largest, levels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * scale * 5)
    if kind == "nf4":
        pairs = codes.flatten().view(-1, 2)
        assert torch.equal(pairs[:, 0] * 16 + pairs[:, 1], packed.flatten().long())


def test_the_levels_of_nf4_are_the_printed_ones(taught):
    printed = bnb.get_4bit_type("nf4", device="cpu")
    torch.testing.assert_close(taught["NF4"], printed, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def codebooks(taught):
    x = numbers(5, (900, 12))
    books = [taught["kmeans"](p, 256, 3) for p in x.chunk(4, 1)]
    return torch.stack(books)


def filled(index, books):
    faiss.copy_array_to_vector(books.numpy().ravel(), index.centroids)
    return index


def test_product_codes_and_vectors_equal_faiss(taught, codebooks):
    x = numbers(6, (300, 12))
    quantizer = filled(faiss.ProductQuantizer(12, 4, 8), codebooks)
    theirs = quantizer.compute_codes(x.numpy())
    ours = taught["lookup"](x, codebooks)
    np.testing.assert_array_equal(ours.numpy(), theirs)
    decoded = taught["rebuild"](ours, codebooks).numpy()
    np.testing.assert_array_equal(decoded, quantizer.decode(theirs))


def test_distances_to_rebuilt_vectors_are_those_of_faiss(taught, codebooks):
    x, queries = numbers(7, (80, 12)), numbers(8, (5, 12))
    index = faiss.IndexPQ(12, 4, 8)
    filled(index.pq, codebooks)
    index.is_trained = True
    index.add(x.numpy())
    theirs, which = index.search(queries.numpy(), 80)
    rebuilt = taught["rebuild"](taught["lookup"](x, codebooks), codebooks)
    ours = torch.cdist(queries.double(), rebuilt.double()).square().numpy()
    np.testing.assert_allclose(np.take_along_axis(ours, which, 1), theirs, rtol=1e-4)


def test_kmeans_never_gets_worse(taught):
    x = numbers(9, (500, 2))

    def error(steps):
        centres = taught["kmeans"](x, 12, steps)
        return float(torch.cdist(x, centres).amin(1).square().mean())

    errors = [error(steps) for steps in range(6)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]
