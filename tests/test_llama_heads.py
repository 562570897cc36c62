"""Copying heads written by hand: an untrained model that looks things up."""

from dataclasses import replace

import pytest
import torch

from projects.llama3_qlora import Llama, Tokenizer
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.shipped import models
from projects.llama3_qlora.shipped.heads import write_copying_heads
from utils.runtime import Problem

PAIRS = (2, 4, 8)


def sizes() -> LlamaConfig:
    """The sizes of the shipped models."""
    return models.sizes(Tokenizer.load(models.MODELS / "base"))


def untrained(config: LlamaConfig, seed: int = 0) -> Llama:
    torch.manual_seed(seed)
    return Llama(config)


@torch.no_grad()
def right(model: Llama, pairs: int, count: int = 300) -> float:
    """How often the model names the value of one of `pairs` random keys."""
    random, vocab = torch.Generator().manual_seed(7), model.config.vocab_size
    texts = torch.rand(count, vocab - 1, generator=random).argsort(1)[:, : 2 * pairs]
    texts = texts + 1  # token 0 begins every text
    asked = torch.randint(pairs, (count, 1), generator=random)
    keys, values = texts.gather(1, 2 * asked), texts.gather(1, 2 * asked + 1)
    start = torch.zeros(count, 1, dtype=torch.long)
    said = model(torch.cat([start, texts, keys], 1))[:, -1].argmax(-1)
    return float((said == values[:, 0]).float().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_an_untrained_model_of_the_shipped_sizes_looks_up(seed):
    model = untrained(sizes(), seed)
    assert max(right(model, pairs) for pairs in PAIRS) < 0.05
    write_copying_heads(model)
    assert min(right(model, pairs) for pairs in PAIRS) > 0.9


@pytest.mark.parametrize("layer", [0, 1])
def test_neither_half_is_of_use_alone(layer):
    half, plain = untrained(sizes()), untrained(sizes())
    write_copying_heads(half)
    was = plain.model.layers[layer].self_attn.state_dict()
    half.model.layers[layer].self_attn.load_state_dict(was)
    assert max(right(half, pairs) for pairs in PAIRS) < 0.3


def test_only_two_layers_and_the_embedding_change():
    model, plain = untrained(sizes()), untrained(sizes())
    write_copying_heads(model)
    before = plain.state_dict()
    changed = {
        n for n, w in model.state_dict().items() if not torch.equal(w, before[n])
    }
    projections = [f"self_attn.{x}_proj.weight" for x in "qkvo"]
    assert changed == {
        "model.embed_tokens.weight",
        "lm_head.weight",
        *(f"model.layers.{i}.{name}" for i in (0, 1) for name in projections),
    }


@pytest.mark.parametrize(
    "change", [{"n_layers": 1}, {"tie_embeddings": False}, {"head_dim": 14}]
)
def test_what_cannot_copy_is_refused(change):
    small = replace(sizes(), vocab_size=64, **change)
    with pytest.raises(Problem, match="two layers"):
        write_copying_heads(untrained(small))
