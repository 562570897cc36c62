"""The small GPT: causal, and equal to the trusted library with copied weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from utils.gpt import GPT, GPTConfig
from utils.runtime import Problem


def copy_to_gpt2(model: GPT) -> GPT2LMHeadModel:
    """A transformers GPT-2 with the weights of `model` (its Conv1D is transposed)."""
    c = model.config
    other = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size,
            n_embd=c.hidden_size,
            n_layer=c.n_layers,
            n_head=c.n_heads,
            n_positions=c.context,
            activation_function="gelu",
        )
    ).eval()
    body = other.transformer
    with torch.no_grad():
        body.wte.weight.copy_(model.tokens.weight)
        body.wpe.weight.copy_(model.positions.weight)
        body.ln_f.load_state_dict(model.norm.state_dict())
        for theirs, ours in zip(body.h, model.blocks, strict=True):
            theirs.ln_1.load_state_dict(ours.norm_1.state_dict())
            theirs.ln_2.load_state_dict(ours.norm_2.state_dict())
            theirs.attn.c_attn.weight.copy_(ours.attention.qkv.weight.T)
            theirs.attn.c_proj.weight.copy_(ours.attention.out.weight.T)
            theirs.mlp.c_fc.weight.copy_(ours.up.weight.T)
            theirs.mlp.c_fc.bias.copy_(ours.up.bias)
            theirs.mlp.c_proj.weight.copy_(ours.down.weight.T)
            theirs.mlp.c_proj.bias.copy_(ours.down.bias)
            theirs.attn.c_attn.bias.zero_()
            theirs.attn.c_proj.bias.zero_()
    return other


@settings(max_examples=10, deadline=None)
@given(
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    time=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_equal_to_gpt2_of_transformers(layers, heads, time, seed):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(50, 16, layers, heads, 12))
    ids = torch.randint(50, (3, time))
    with torch.no_grad():
        torch.testing.assert_close(
            model(ids), copy_to_gpt2(model)(ids).logits, atol=1e-5, rtol=1e-5
        )


def test_the_future_does_not_leak():
    torch.manual_seed(0)
    model = GPT(GPTConfig(50, 16, 2, 2, 10))
    ids = torch.randint(50, (1, 10))
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 50
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_wrong_sizes_are_one_sentence():
    with pytest.raises(Problem, match="divide"):
        GPTConfig(50, hidden_size=10, n_heads=4)
    with pytest.raises(Problem, match="at least 1"):
        GPTConfig(0)
    with pytest.raises(Problem, match="do not fit"):
        GPT(GPTConfig(50, context=4))(torch.zeros(1, 5, dtype=torch.long))
