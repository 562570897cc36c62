"""The rungs of notebook 09.2 are what they claim to be, and its checks can fire."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from transformers import LlamaConfig as TransformersConfig
from transformers import LlamaForCausalLM

from projects.llama3_qlora import Llama
from projects.llama3_qlora.model import RMSNorm, rope_frequencies, rotate, rotation
from tests.notebook_code import namespace
from utils import measure, runtime
from utils.gpt import GPT, GPTConfig

NAMES = (
    "PUBLISHED VOCAB CONTEXT BATCH HIDDEN HEADS HEAD_DIM THETA RootMeanSquareNorm "
    "LearnedPositions RotaryPositions SelfAttention GeluMLP Gate GatedMLP Design Layer "
    "LadderModel climb LADDER FROM_GPT TO_LLAMA renamed from_chapter_2 llama_config "
    "sees_the_future ReadBefore two_layers norm START start SkippingLayer "
    "mlp_hears_attention worse_than_blind DELTA power needed batch_means window_nats "
    "judged over_lengths spreads pooled Peeking"
)
book = namespace("09.2", NAMES.split())
book["session"] = runtime.Session("laptop", 0, "cpu", 1, False)  # of the set-up cell
LADDER, START, HIDDEN = book["LADDER"], book["START"], book["HIDDEN"]
MODELS = START | {
    name: lambda design=design: book["LadderModel"](design)
    for name, design in LADDER.items()
}


@pytest.fixture
def ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(book["VOCAB"], (2, book["CONTEXT"]), generator=generator)


def shaken(model: nn.Module) -> nn.Module:
    """All weights random, norms and biases too, so that none can be forgotten."""
    torch.manual_seed(1)
    for weight in model.parameters():
        nn.init.normal_(weight, 0.5 if weight.dim() == 1 else 0.0, 0.1)
    return model


def test_the_first_rung_is_the_gpt_of_chapter_two(ids: torch.Tensor) -> None:
    sizes = (book["VOCAB"], HIDDEN, 2, book["HEADS"], book["CONTEXT"])
    gpt = shaken(GPT(GPTConfig(*sizes)))
    ours = book["LadderModel"](LADDER["GPT"])
    ours.load_state_dict(book["from_chapter_2"](gpt))
    torch.testing.assert_close(ours(ids), gpt(ids), rtol=0, atol=1e-5)
    assert measure.count_parameters(ours) == measure.count_parameters(gpt)


def test_the_last_rung_is_the_llama_of_the_package_and_of_transformers(
    ids: torch.Tensor,
) -> None:
    ours = shaken(book["LadderModel"](LADDER["untied"]))
    config = book["llama_config"](ours)
    weights = book["renamed"](ours.state_dict(), book["TO_LLAMA"])
    package = Llama(config)
    package.load_state_dict(weights)
    library = LlamaForCausalLM(TransformersConfig(**config.to_hf())).eval()
    library.load_state_dict(weights)
    torch.testing.assert_close(ours(ids), package(ids), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours(ids), library(ids).logits, rtol=0, atol=1e-5)


def test_neighbouring_rungs_differ_in_exactly_one_field() -> None:
    designs = [asdict(design) for design in LADDER.values()]
    changed = [
        {key for key in below if below[key] != above[key]}
        for below, above in pairwise(designs)
    ]
    assert all(len(fields) == 1 for fields in changed), changed
    assert set.union(*changed) == set(designs[0])  # and every field is exchanged once


@pytest.mark.parametrize("name", MODELS)
def test_no_model_sees_the_future(name: str) -> None:
    assert not book["sees_the_future"](shaken(MODELS[name]()))


def test_the_check_of_causality_can_fire() -> None:
    class Averaging(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = super().forward(ids)
            return x + x.mean(1, keepdim=True)

    assert book["sees_the_future"](shaken(Averaging(book["VOCAB"], 4)))


@pytest.mark.parametrize("name", MODELS)
def test_only_what_has_attention_uses_context(name: str, ids: torch.Tensor) -> None:
    model = shaken(MODELS[name]())
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % book["VOCAB"]
    moved = (model(ids)[:, -1] - model(other)[:, -1]).abs().max() > 0
    assert bool(moved) == (name not in ("two layers", "+ norm"))


def test_the_norm_and_the_rotation_are_those_of_the_package() -> None:
    x = torch.randn(2, book["HEADS"], 9, book["HEAD_DIM"])
    ours, theirs = book["RootMeanSquareNorm"](16), RMSNorm(16, 1e-5)
    torch.testing.assert_close(ours(x), theirs(x))
    config = book["llama_config"](book["LadderModel"](LADDER["untied"]))
    turn = rotation(rope_frequencies(config), torch.arange(9), torch.float32)
    torch.testing.assert_close(book["RotaryPositions"]().turn(x), rotate(x, turn))


def test_swiglu_has_as_many_parameters_as_gelu() -> None:
    old, new = (measure.count_parameters(book[k]()) for k in ("GeluMLP", "GatedMLP"))
    assert abs(old - new) / old < 0.01


def test_the_published_sizes_are_those_of_the_described_model() -> None:
    vocabulary, width = 128_256, 288
    model = nn.Sequential(
        nn.Embedding(vocabulary, width, device="meta"),
        nn.Linear(width, width, device="meta"),
        nn.Linear(width, vocabulary, device="meta"),
    )
    millions = measure.count_parameters(model) / 1e6
    assert round(millions, 1) == book["PUBLISHED"][0][1]


def test_models_that_share_a_part_start_with_the_same_weights_there() -> None:
    first, second, other = (
        dict(book["start"](MODELS[name](), seed).named_parameters())
        for name, seed in (("SwiGLU", 5), ("untied", 5), ("SwiGLU", 6))
    )
    shared = [n for n in first if n in second and first[n].shape == second[n].shape]
    assert len(shared) >= 12
    for name in shared:
        assert torch.equal(first[name], second[name])
    q = "layers.0.attention.q_proj.weight"
    assert not torch.equal(first[q], other[q])
    assert not torch.equal(first[q], first[q.replace("0", "1")])


def test_the_fault_is_found_in_the_faulty_layer_only() -> None:
    assert not book["mlp_hears_attention"](book["SkippingLayer"])
    assert book["mlp_hears_attention"](book["Layer"])


@pytest.mark.parametrize("loss", [8.0, 1e9, float("inf"), float("nan")])
def test_the_alarm_fires_on_losses_worse_than_guessing(loss: float) -> None:
    start, calm = [6.9, 9.0] * 5, [5.0, 4.0]
    assert book["worse_than_blind"]([*start, *calm, loss])
    assert not book["worse_than_blind"]([*start, *calm])


@given(st.floats(0.01, 1.0), st.floats(0.01, 0.5))
def test_the_needed_number_has_the_promised_power(sd: float, delta: float) -> None:
    n = book["needed"](sd, delta)
    assert book["power"](sd, n, delta) >= 0.799
    assert n == 1 or book["power"](sd, n - 1, delta) < 0.801


def test_the_formula_agrees_with_scipy_on_many_measurements() -> None:
    sd, n, delta = 0.3, 400, 0.05
    t = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, delta / sd * n**0.5)
    assert abs(book["power"](sd, n, delta) - t) < 0.005


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(0, 9))
def test_batches_have_the_mean_of_their_windows(batches: int, seed: int) -> None:
    rng = book["np"].random.default_rng(seed)
    windows = rng.normal(5, 1, 300)
    means = book["batch_means"](windows, batches, 400, rng)
    assert means.shape == (400, batches)
    error = (1 / book["BATCH"] / means.size) ** 0.5
    assert abs(means.mean() - windows.mean()) < 6 * error


def test_windows_have_the_loss_of_the_whole_text() -> None:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(
        book["VOCAB"], (3 * book["CONTEXT"] + 1,), generator=generator
    )
    book["ids"] = {"test": torch.cat([tokens, tokens[:9]])}  # and a part of a window
    model = shaken(MODELS["untied"]())
    windows = book["window_nats"](model)
    assert windows.shape == (3,)
    total = measure.total_nats(model, tokens, book["CONTEXT"])
    assert windows.sum() * book["CONTEXT"] == pytest.approx(total, rel=1e-4)


def test_a_model_that_peeks_is_caught() -> None:
    assert book["sees_the_future"](shaken(book["Peeking"](LADDER["untied"])))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.2, -0.1, "holds"), (0.1, 0.2, "fails"), (-0.1, 0.1, "undecided")],
)
def test_an_interval_is_judged_by_its_range(
    low: float, high: float, verdict: str
) -> None:
    found = measure.Interval((low + high) / 2, low, high, 3)
    assert book["judged"](found, -float("inf"), 0) == verdict


def test_two_lengths_give_one_verdict() -> None:
    both = book["over_lengths"]
    assert both("fails", "fails") == "fails"
    assert both("fails", "holds") == both("holds", "undecided") == "half true"
    assert both("fails", "undecided") == "undecided"


def test_sharing_what_varies_narrows_the_spread_of_a_difference() -> None:
    rng = book["np"].random.default_rng(1)
    shared, noise = rng.normal(0, 1, 2000), rng.normal(0, 0.1, (3, 2000))
    own, same = book["spreads"](list(shared + noise))
    assert own == pytest.approx(2**0.5, rel=0.1)
    assert same == pytest.approx(0.1 * 2**0.5, rel=0.1)
