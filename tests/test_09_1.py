"""What notebook 09.1 writes equals transformers and the package, for any sizes."""

import dataclasses
import math

import pytest
import torch
import transformers
import transformers.models.llama.modeling_llama as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.llama3_qlora import KVCache, Llama, LlamaConfig, RopeScaling
from projects.llama3_qlora import model as package
from tests.notebook_code import namespace
from utils import measure

NB = namespace(
    "09.1",
    [
        "SEED",
        "randomize",
        "parameter_count",
        "cache_bytes",
        "RMSNorm",
        "SquareNorm",
        "norm_faults",
        "frequencies",
        "turn",
        "stretch",
        "turn_neighbours",
        "to_halves",
        "rope_faults",
        "MatrixRope",
        "angle_rope",
        "GroupedQueryAttention",
        "WideHeads",
        "attention_faults",
        "SwiGLU",
        "LlamaBlock",
        "DeafBlock",
        "WholeLlama",
        "NAMES",
        "meta_name",
        "from_meta",
    ],
)
seeds = st.integers(0, 2**16)


@st.composite
def configs(draw):
    """Small Llamas of every kind: grouped or not, odd head sizes, stretched or not."""
    kv_heads, group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    heads = kv_heads * group
    factor = draw(st.sampled_from([0, 8, 32]))
    return LlamaConfig(
        vocab_size=draw(st.integers(5, 40)),
        hidden_size=heads * draw(st.sampled_from([2, 5, 8])),
        intermediate_size=draw(st.integers(3, 40)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([4, 8, 16])),
        max_positions=131_072,
        norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        rope_theta=draw(st.sampled_from([1e4, 5e5])),
        rope_scaling=RopeScaling(factor=factor) if factor else None,
        tie_embeddings=draw(st.booleans()),
    )


def as_hf(config: LlamaConfig) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**config.to_hf(), attn_implementation="eager")


def inputs(config: LlamaConfig, seed: int, time: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, time, config.hidden_size, generator=generator)


def theta(config: LlamaConfig) -> torch.Tensor:
    plain = NB["frequencies"](config.head_dim, config.rope_theta)
    return NB["stretch"](plain, config.rope_scaling) if config.rope_scaling else plain


def close(ours, theirs):
    scale = max(1.0, theirs.abs().max().item())
    torch.testing.assert_close(ours, theirs, atol=2e-5 * scale, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(config=configs(), seed=seeds)
def test_norm_and_mlp_equal_transformers_and_the_package(config, seed):
    x = inputs(config, seed)
    norm = NB["randomize"](hf.LlamaRMSNorm(config.hidden_size, config.norm_eps), seed)
    mlp = NB["randomize"](hf.LlamaMLP(as_hf(config)), seed)
    size = config.hidden_size, config.norm_eps
    for theirs, ours, packaged in (
        (norm, NB["RMSNorm"](*size), package.RMSNorm(*size)),
        (mlp, NB["SwiGLU"](config), package.MLP(config)),
    ):
        for module in (ours, packaged):
            module.load_state_dict(theirs.state_dict())
            close(module(x), theirs(x))


def test_the_norm_sums_in_float32():
    x = torch.randn(3, 4096, dtype=torch.bfloat16) * 30
    theirs = NB["randomize"](hf.LlamaRMSNorm(4096, 1e-5)).to(torch.bfloat16)
    ours = NB["RMSNorm"](4096, 1e-5).to(torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x), theirs(x))


@settings(max_examples=20, deadline=None)
@given(config=configs(), start=st.integers(0, 130_000), seed=seeds)
def test_rotation_equals_transformers_and_the_package(config, start, seed):
    rotary = hf.LlamaRotaryEmbedding(as_hf(config))
    ours = theta(config)
    torch.testing.assert_close(ours, rotary.inv_freq, atol=0, rtol=1e-6)
    torch.testing.assert_close(
        ours, package.rope_frequencies(config), atol=0, rtol=1e-6
    )
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 1, config.n_heads, 6, config.head_dim)
    q, k = torch.randn(shape, generator=generator)
    where = torch.arange(start, start + 6)
    cos, sin = rotary(q, where[None])
    expected = hf.apply_rotary_pos_emb(q, k, cos, sin)
    angles = torch.outer(where.float(), rotary.inv_freq)
    turn = package.rotation(rotary.inv_freq, where, q.dtype)
    for x, wanted in zip((q, k), expected, strict=True):
        close(NB["turn"](x, angles), wanted)
        close(package.rotate(x, turn), wanted)


@settings(max_examples=30, deadline=None)
@given(
    head_dim=st.sampled_from([2, 8, 64]),
    first=st.integers(0, 1000),
    second=st.integers(0, 1000),
    shift=st.integers(0, 1000),
    seed=seeds,
)
def test_rotation_keeps_lengths_and_sees_only_distance(
    head_dim, first, second, shift, seed
):
    q, k = torch.randn(2, head_dim, generator=torch.Generator().manual_seed(seed))
    plain = NB["frequencies"](head_dim, 500_000.0).double()
    for turn in (NB["turn"], NB["turn_neighbours"]):

        def at(x, position, turn=turn):
            return turn(x[None].double(), position * plain[None])[0]

        close(at(q, first).norm(), q.double().norm())
        moved = at(q, first + shift) @ at(k, second + shift)
        close(at(q, first) @ at(k, second), moved)


def test_the_faulty_rotation_has_both_properties_too():
    q, k = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = map(
        NB["MatrixRope"](32, 64), (q.repeat(32, 1), k.repeat(32, 1))
    )
    close(turned_q.norm(dim=-1), q.norm().expand(32))
    scores = turned_q @ turned_k.T
    close(scores[1:, 1:], scores[:-1, :-1])


@settings(max_examples=15, deadline=None)
@given(config=configs(), seed=seeds)
def test_attention_and_block_equal_transformers(config, seed):
    x, time = inputs(config, seed), torch.arange(7)
    mask = torch.full((7, 7), -math.inf).triu(1)[None, None]
    positions = hf.LlamaRotaryEmbedding(as_hf(config))(x, time[None])
    angles = torch.outer(time.float(), theta(config))
    theirs = NB["randomize"](hf.LlamaDecoderLayer(as_hf(config), 0), seed)
    for parameter in theirs.parameters():
        parameter.data *= 0.4
    ours = NB["LlamaBlock"](config)
    ours.load_state_dict(theirs.state_dict())
    expected = theirs.self_attn(x, positions, mask)[0]
    close(ours.self_attn(x, angles), expected)
    weights = ours.self_attn.weights
    assert not weights.triu(1).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    expected = theirs(x, attention_mask=mask, position_embeddings=positions)
    close(ours(x, angles), expected)


@settings(max_examples=12, deadline=None)
@given(config=configs(), gap=st.integers(0, 100_000), seed=seeds)
def test_the_model_equals_transformers_and_the_package(config, gap, seed):
    torch.manual_seed(seed)
    theirs = transformers.LlamaForCausalLM(as_hf(config)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, float(parameter.dim() == 1), 0.2)
    ours, packaged = NB["WholeLlama"](config), Llama(config)
    for model in (ours, packaged):
        model.load_state_dict(theirs.state_dict())
    ids = torch.randint(config.vocab_size, (2, 9))
    positions = torch.cat([torch.arange(5), torch.arange(5 + gap, 9 + gap)])
    everything, rows = torch.ones_like(ids), positions[None].expand(2, -1)
    with torch.no_grad():
        close(ours(ids, positions), theirs(ids, everything, rows).logits)
        close(ours(ids), packaged(ids))
        close(packaged(ids), theirs(ids).logits)


@settings(max_examples=20, deadline=None)
@given(config=configs())
def test_formulas_count_what_is_there(config):
    with torch.device("meta"):
        model = Llama(config)
    formula = sum(NB["parameter_count"](config).values())
    assert measure.count_parameters(model) == formula
    cache = KVCache(config, 1, 33, torch.bfloat16, "meta")
    assert cache.n_bytes == NB["cache_bytes"](config, 33)


@settings(max_examples=15, deadline=None)
@given(config=configs(), seed=seeds)
def test_a_checkpoint_of_meta_loads(config, seed):
    config = dataclasses.replace(config, tie_embeddings=False)
    model = NB["randomize"](NB["WholeLlama"](config), seed)
    state = model.state_dict()
    metas = {NB["meta_name"](name): tensor for name, tensor in state.items()}
    assert len(metas) == len(state)
    loaded = NB["from_meta"](metas, list(state), config.head_dim)
    assert loaded.keys() == state.keys()
    q = loaded["model.layers.0.self_attn.q_proj.weight"]
    raw = metas["layers.0.attention.wq.weight"]
    x, angles = inputs(config, seed)[0], torch.outer(torch.arange(7.0), theta(config))

    def heads(matrix, turn):
        y = (x @ matrix.T).unflatten(-1, (-1, config.head_dim)).transpose(0, 1)
        return turn(y, angles)

    ours, meta = heads(q, NB["turn"]), heads(raw, NB["turn_neighbours"])
    close(ours @ ours.mT, meta @ meta.mT)
    v = "self_attn.v_proj.weight"
    assert torch.equal(loaded[f"model.layers.0.{v}"], state[f"model.layers.0.{v}"])


def test_the_checks_find_the_faults_and_nothing_else():
    assert len(NB["norm_faults"](NB["SquareNorm"](24), 24)) == 3
    assert not NB["norm_faults"](NB["RMSNorm"](24, 1e-5), 24)
    assert len(NB["rope_faults"](NB["MatrixRope"](32, 64))) == 4
    assert not NB["rope_faults"](NB["angle_rope"])
    torch.manual_seed(0)
    x, config = torch.randn(2, 16, 48), LlamaConfig(8, 48, 64, 1, 6)
    assert len(NB["attention_faults"](NB["WideHeads"](48, 6), x)) == 3
    assert not NB["attention_faults"](NB["GroupedQueryAttention"](config), x)


@pytest.mark.parametrize("kind", ["LlamaBlock", "DeafBlock"])
def test_the_mlp_hears_attention_only_in_the_right_block(kind):
    config = LlamaConfig(8, 24, 32, 1, 2)
    block = NB["randomize"](NB[kind](config))
    seen = []
    block.mlp.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    x = inputs(config, 0)
    for text in (x, x.roll(1, 0)):  # another text with the same last token
        text = text.clone()
        text[:, -1] = x[:, -1]
        block(text, torch.zeros(7, 6))
    assert torch.equal(seen[0][:, -1], seen[1][:, -1]) == (kind == "DeafBlock")
