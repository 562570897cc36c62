"""What notebook 03.6 writes itself, against the libraries and by its properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import prune

from projects.llama3_qlora import Llama, LlamaConfig
from tests.notebook_code import namespace

NAMES = [
    "adapted",
    "aware_svd",
    "balance",
    "changed",
    "dense_bytes",
    "distillation_loss",
    "grams",
    "is_exact_at_full_rank",
    "largest",
    "linears",
    "load",
    "LoRA",
    "magnitude",
    "masked_bytes",
    "MixtureOfExperts",
    "neuron_scores",
    "plain_svd",
    "rank_for",
    "rebuilt",
    "rebuilt_wrongly",
    "same_as_mixtral",
    "sparse_gpt",
    "table",
    "truncated",
    "along",
    "tucker",
    "two_bits_each",
    "two_of_four",
    "untucker",
    "wanda",
    "with_layers",
    "without_neurons",
]


class Laptop:
    device = "cpu"


@pytest.fixture(scope="module")
def lesson():
    found = namespace("03.6", NAMES)
    found["session"] = Laptop
    return found


@pytest.fixture
def llama():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(50, 32, 48, 3, 4, n_kv_heads=2)).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.2)
    return model


def ids():
    return torch.arange(40).view(2, 20)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 100), st.sampled_from([0.0, 0.1, 0.37, 0.5, 0.9, 1.0]))
def test_magnitude_mask_equals_pytorch(lesson, seed, sparsity):
    torch.manual_seed(seed)
    layer = nn.Linear(12, 7, bias=False)
    ours = lesson["magnitude"](layer.weight.detach(), None, sparsity)
    prune.l1_unstructured(layer, "weight", amount=sparsity)
    assert torch.equal(layer.weight, ours)


def test_two_of_four_equals_pytorchs_sparsifier(lesson):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 24, bias=False))
    weight = model[0].weight.detach().clone()
    sparsifier = WeightNormSparsifier(1.0, (1, 4), 2)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    ours = lesson["two_of_four"](weight, weight.abs())
    assert torch.equal(model[0].weight, ours)
    assert ((ours.view(-1, 4) != 0).sum(1) == 2).all()


def test_wanda_is_magnitude_by_rows_when_inputs_are_alike(lesson):
    weight, eye = torch.randn(5, 20), torch.eye(20)
    ours = lesson["wanda"](weight, 4 * eye, 0.25)
    for row, kept in zip(weight, ours, strict=True):
        assert torch.equal(kept, lesson["magnitude"](row, None, 0.25))


def test_wanda_keeps_what_is_loud(lesson):
    weight, gram = torch.tensor([[1.0, 2.0]]), torch.diag(torch.tensor([100.0, 1.0]))
    assert lesson["wanda"](weight, gram, 0.5).tolist() == [[1.0, 0.0]]


def test_sparse_gpt_repairs_what_it_removes(lesson):
    torch.manual_seed(0)
    x = torch.randn(400, 16) @ torch.randn(16, 16)
    weight, gram = torch.randn(8, 16), x.T @ x / len(x)
    repaired = lesson["sparse_gpt"](weight, gram, 0.5)
    unrepaired = weight * (repaired != 0)
    assert (repaired == 0).float().mean() == 0.5
    by_size = lesson["magnitude"](weight, None, 0.5)
    losses = [
        float(((weight - thin) @ x.T).square().mean())
        for thin in (repaired, unrepaired, by_size)
    ]
    assert losses[0] < 0.7 * min(losses[1:])


def test_sparse_gpt_without_correlation_moves_nothing(lesson):
    weight = torch.randn(6, 10)
    ours = lesson["sparse_gpt"](weight, torch.eye(10), 0.5)
    torch.testing.assert_close(ours, lesson["magnitude"](weight, None, 0.5))


def test_grams_are_the_products_of_inputs(lesson, llama):
    seen = []
    part = llama.model.layers[1].mlp.down_proj
    hook = part.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    found = lesson["grams"](llama, ids())
    hook.remove()
    x = seen[0].flatten(0, -2)
    torch.testing.assert_close(
        found["model.layers.1.mlp.down_proj"], x.T @ x / len(x), check_device=False
    )
    assert set(found) == set(lesson["linears"](llama))


@torch.no_grad()
def test_removed_neurons_equal_masked_ones(lesson, llama):
    scores = lesson["neuron_scores"](llama, lesson["grams"](llama, ids()))
    small = lesson["without_neurons"](llama, scores, 30)
    assert small.model.layers[0].mlp.up_proj.weight.shape == (30, 32)
    for layer, row in zip(llama.model.layers, scores, strict=True):
        gone = row.topk(18, largest=False).indices
        layer.mlp.down_proj.weight[:, gone] = 0
    torch.testing.assert_close(small(ids()), llama(ids()), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_removed_layer_equals_one_that_adds_nothing(lesson, llama):
    small = lesson["with_layers"](llama, (0, 2))
    llama.model.layers[1].self_attn.o_proj.weight.zero_()
    llama.model.layers[1].mlp.down_proj.weight.zero_()
    torch.testing.assert_close(small(ids()), llama(ids()))


def test_files_shrink_only_in_a_sparse_format(lesson):
    full = {"w": torch.randn(64, 128)}
    thin = {"w": lesson["magnitude"](full["w"], None, 0.5)}
    size = {name: len(lesson[name](thin)) for name in ("dense_bytes", "masked_bytes")}
    assert size["dense_bytes"] == len(lesson["dense_bytes"](full))
    numbers = 64 * 128
    assert abs(size["masked_bytes"] - (numbers / 8 + numbers)) < 300


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000))
def test_distillation_loss_equals_pytorch(lesson, seed):
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, 2, 5, 9) * 3
    library = nn.KLDivLoss(reduction="batchmean", log_target=True)
    wanted = library(
        student.log_softmax(-1).flatten(0, 1), teacher.log_softmax(-1).flatten(0, 1)
    )
    torch.testing.assert_close(lesson["distillation_loss"](student, teacher), wanted)
    assert lesson["distillation_loss"](teacher, teacher).abs() < 1e-6


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 1_000))
def test_truncated_svd_is_optimal_and_exact_at_full_rank(lesson, m, n, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(m, n, dtype=torch.float64)
    values = torch.linalg.svdvals(matrix)
    for rank in range(1, min(m, n) + 1):
        error = (matrix - lesson["rebuilt"](*lesson["truncated"](matrix, rank))).norm()
        torch.testing.assert_close(error, values[rank:].norm(), rtol=1e-6, atol=1e-9)


def test_bug_of_listing_3_2(lesson):
    truncated, matrix = lesson["truncated"], lesson["table"]
    wrong = lesson["rebuilt_wrongly"](*truncated(matrix, 1))
    torch.testing.assert_close(wrong, lesson["rebuilt"](*truncated(matrix, 1)))
    assert not lesson["is_exact_at_full_rank"](lesson["rebuilt_wrongly"])
    assert lesson["is_exact_at_full_rank"](lesson["rebuilt"])
    with pytest.raises(RuntimeError):
        lesson["rebuilt_wrongly"](*truncated(matrix, 2))


def test_aware_svd_is_nearer_where_it_counts(lesson):
    torch.manual_seed(0)
    x = torch.randn(500, 12) @ torch.diag(torch.arange(1.0, 13.0)) @ torch.randn(12, 12)
    weight, gram = torch.randn(10, 12), x.T @ x / len(x)
    errors = [
        float(((weight - lesson[name](weight, gram, 4)) @ x.T).square().mean())
        for name in ("aware_svd", "plain_svd")
    ]
    assert errors[0] < errors[1]
    assert torch.linalg.matrix_rank(lesson["aware_svd"](weight, gram, 4)) == 4


def test_rank_for_meets_its_error(lesson):
    matrix = torch.randn(9, 14, dtype=torch.float64)
    rank = lesson["rank_for"](matrix, 0.2)
    errors = [
        float((matrix - lesson["rebuilt"](*lesson["truncated"](matrix, r))).norm())
        for r in (rank - 1, rank)
    ]
    assert errors[1] <= 0.2 * matrix.norm() < errors[0]


@settings(deadline=None, max_examples=20)
@given(st.tuples(*[st.integers(2, 5)] * 3), st.integers(0, 1_000))
def test_tucker(lesson, shape, seed):
    torch.manual_seed(seed)
    tensor = torch.randn(*shape, dtype=torch.float64)
    core, factors = lesson["tucker"](tensor, shape)
    torch.testing.assert_close(lesson["untucker"](core, factors), tensor)
    ranks = tuple(size - 1 for size in shape)
    core, factors = lesson["tucker"](tensor, ranks)
    assert core.shape == ranks
    cut = 0.0  # no worse than all that was cut (De Lathauwer et al. 2000)
    for direction, factor in enumerate(factors):
        gram = factor.T @ factor
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=gram.dtype))
        flat = tensor.movedim(direction, 0).flatten(1)
        values = torch.linalg.svdvals(flat)
        cut += float(values[ranks[direction] :].square().sum())
    error = (lesson["untucker"](core, factors) - tensor).square().sum()
    assert error <= cut + 1e-9


def test_lora_starts_as_nothing_and_trains_only_itself(lesson, llama):
    adapted = lesson["adapted"](llama, 2)
    assert torch.equal(adapted(ids()), llama(ids()))
    adapted(ids()).square().mean().backward()
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert {name.rsplit(".", 1)[1] for name in trained} == {"a", "b"}
    assert all(p.grad is None for p in llama.parameters())


@pytest.mark.parametrize("k", [1, 2, 4])
def test_mixture_equals_mixtral(lesson, k):
    torch.manual_seed(k)
    ours, theirs = lesson["same_as_mixtral"](16, 24, 4, k)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert abs(float(lesson["load"](ours).sum()) - k) < 1e-5


def test_mixture_of_all_is_the_weighted_sum(lesson):
    layer = lesson["MixtureOfExperts"](8, 6, 3, 3)
    for weight in layer.parameters():
        nn.init.normal_(weight)
    x, wanted = torch.randn(1, 4, 8), 0
    odds = (x @ layer.router.T).softmax(-1)
    for expert in range(3):
        gate, up = (x @ layer.gate_up[expert].T).chunk(2, -1)
        answer = (nn.functional.silu(gate) * up) @ layer.down[expert].T
        wanted = wanted + odds[..., expert, None] * answer
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)


def test_balance_is_one_when_even_and_more_when_not(lesson):
    layer = lesson["MixtureOfExperts"](4, 2, 4, 1).requires_grad_(False)
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    layer.router.data = 50 * torch.eye(4)
    layer(torch.eye(4))
    assert abs(float(lesson["balance"](layer)) - 1) < 1e-3
    layer(torch.eye(4)[:1].repeat(4, 1))
    assert abs(float(lesson["balance"](layer)) - 4) < 1e-3


def test_two_bits_are_four_levels_within_half_a_step(lesson):
    weight = torch.randn(6, 5, 40)
    rough = lesson["two_bits_each"](weight)
    step = (weight.amax(-1) - weight.amin(-1)) / 3
    assert all(len(row.unique()) <= 4 for row in rough.flatten(0, 1))
    assert ((rough - weight).abs().amax(-1) <= step / 2 + 1e-5).all()
