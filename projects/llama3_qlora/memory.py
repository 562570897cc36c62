"""How many bytes finetuning needs on each rank, from the sizes alone.

FSDP2 cuts every tensor along its first dimension into equal parts of
ceil(rows / world) rows, the last ones filled up: what each rank keeps. Only the states
of the optimizer have no filling (unless they come from a checkpoint). `kept` is exact
and tested against what training allocates; `passing` estimates what comes and goes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.lora import LoRAConfig
from projects.llama3_qlora.nf4 import BLOCK, SCALES

Shape = tuple[int, ...]
# what a parameter is, by a part of its name; what is left is a norm
PARTS = {
    "codes": "codes",
    "scales_scale": "constants",
    "offset": "constants",
    "scales": "scales",
    "lora_": "adapters",
    "embed_tokens": "embedding and head",
    "lm_head": "embedding and head",
    "_proj": "weights",
    "norm": "norms",
}


@dataclass(frozen=True)
class Setting:
    """A run: sizes of model and adapters, processes, `rows` of `context` tokens that
    each of them reads at once, and whether the blocks' weights are NF4, computing is in
    bfloat16 (frozen floats are then kept in it), and activations are recomputed."""

    config: LlamaConfig
    lora: LoRAConfig
    world: int = 1
    four_bit: bool = True
    bf16: bool = True
    rows: int = 1
    context: int = 2048
    recomputing: bool = True

    @property
    def float_bytes(self) -> int:
        return 2 if self.bf16 else 4


def block_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """The (outputs, inputs) of the linear layers of a block."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = (n * config.head_dim for n in (config.n_heads, config.n_kv_heads))
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def part(shape: Shape, world: int) -> int:
    """Numbers that each of `world` ranks keeps of a tensor, filling included."""
    return math.ceil(shape[0] / world) * math.prod(shape[1:])


def own(shape: Shape, world: int, rank: int) -> int:
    """Numbers of a tensor that are a rank's own, without filling."""
    rows = math.ceil(shape[0] / world)
    return max(0, min(rows, shape[0] - rank * rows)) * math.prod(shape[1:])


def adapter_shapes(setting: Setting) -> list[Shape]:
    """A and B of each adapted layer of a block."""
    shapes = [block_shapes(setting.config)[name] for name in setting.lora.targets]
    rank = setting.lora.rank
    return [s for outputs, inputs in shapes for s in ((rank, inputs), (outputs, rank))]


def base(setting: Setting, world: int) -> dict[str, int]:
    """Bytes of a block's frozen weights on each of `world` ranks. The constants of NF4,
    5 bytes for 16,384 weights, are whole on every rank."""
    shapes = block_shapes(setting.config).values()
    if not setting.four_bit:
        return {"weights": sum(part(s, world) for s in shapes) * setting.float_bytes}
    second = (math.ceil(o * i / BLOCK / SCALES) + 1 for o, i in shapes)
    return {
        "codes": sum(part((o, i // 2), world) for o, i in shapes),
        "scales": sum(part((o, i // BLOCK), world) for o, i in shapes),
        "constants": 4 * sum(second),
    }


def kept(setting: Setting, rank: int = 0) -> dict[str, int]:
    """Bytes by part that a rank keeps after a step: weights, and what AdamW needs."""
    c, world, size = setting.config, setting.world, setting.float_bytes
    adapters = adapter_shapes(setting)
    learnt = 4 * sum(part(shape, world) for shape in adapters)
    # two moments of each number, and a count of steps for each tensor
    states = 4 * sum(2 * own(shape, world, rank) + 1 for shape in adapters)
    ends = 1 if c.tie_embeddings else 2
    norm = part((c.hidden_size,), world) * size
    return {name: n * c.n_layers for name, n in base(setting, world).items()} | {
        "embedding and head": ends * part((c.vocab_size, c.hidden_size), world) * size,
        "norms": (2 * c.n_layers + 1) * norm,
        "adapters": c.n_layers * learnt,
        "gradients": c.n_layers * learnt,
        "optimizer": c.n_layers * states,
    }


def passing(setting: Setting) -> dict[str, int]:
    """Bytes by part that are there besides at the peak of a step: an estimate, to which
    a device adds what its libraries and its allocator take.

    The peak is at the loss or, where that is more, in a block's backward pass.
    """
    c, size = setting.config, setting.float_bytes
    tokens = setting.rows * setting.context
    # the stream and its norm twice, q, k, v, and what attention gives twice; gate, up,
    # the activated gate, their product
    inside = 9 * c.hidden_size + 4 * c.intermediate_size
    remembered = c.hidden_size if setting.recomputing else inside
    largest = max(o * i for o, i in block_shapes(c).values())
    # a matrix is decoded to float32, from codes in 32 bits (or to a copy in bfloat16)
    decoded = 6 * largest if setting.four_bit else 0
    # with the gradients that its MLP computes from all that
    backward = inside + c.hidden_size + 2 * c.intermediate_size
    again = tokens * backward * size if setting.recomputing else 0
    # float32 logits, their softmax, its gradient
    loss = 12 * tokens * c.vocab_size
    return _gathered(setting) | {
        "activations": tokens * c.n_layers * remembered * size,
        "loss or block": max(loss, again + decoded),
    }


def _gathered(setting: Setting) -> dict[str, int]:
    """The block that computes and the next one; embedding or head, one at a time."""
    c, several = setting.config, setting.world > 1
    return {
        "gathered blocks": several * 2 * gathered_bytes(setting),
        "gathered end": several * c.vocab_size * c.hidden_size * setting.float_bytes,
    }


def gathered_bytes(setting: Setting) -> int:
    """Bytes of a block when all its parts are together: what one all-gather makes."""
    world, size = setting.world, setting.float_bytes
    parts = base(setting, world)
    parts.pop("constants", 0)
    adapters = sum(part(shape, world) for shape in adapter_shapes(setting))
    norms = 2 * part((setting.config.hidden_size,), world)
    return world * (sum(parts.values()) + (adapters + norms) * size)


def sent(setting: Setting) -> dict[str, int]:
    """Bytes by part that a rank sends in a step, to a neighbour in a ring: all weights
    are gathered for the forward and again for the backward pass, except for a tied
    embedding, which stays; gradients are summed as float32 (gloo sends those twice)."""
    c, world = setting.config, setting.world
    ends = 1 if c.tie_embeddings else 4
    end = world * part((c.vocab_size, c.hidden_size), world) * setting.float_bytes
    learnt = world * 4 * sum(part(shape, world) for shape in adapter_shapes(setting))
    whole = {
        "blocks": 2 * c.n_layers * gathered_bytes(setting),
        "embedding and head": ends * end,
        "gradients": c.n_layers * learnt,
    }
    return {name: n_bytes * (world - 1) // world for name, n_bytes in whole.items()}


def quantizing(config: LlamaConfig) -> int:
    """Bytes, at most, that quantizing the largest matrix takes for a moment: 24 for a
    weight (as stored, three float32 copies, an index of 64 bits and the code)."""
    return 24 * max(o * i for o, i in block_shapes(config).values())


def measured(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Bytes by part that this rank holds: the memory behind its parameters, gradients
    and states, each piece of memory counted once."""
    named: dict[str, list[Tensor]] = {}
    for name, weight in model.named_parameters():
        kind = next(kind for key, kind in PARTS.items() if key in name)
        named.setdefault(kind, []).append(weight)
    learnt = [w for group in optimizer.param_groups for w in group["params"]]
    gradients = [w.grad for w in learnt if w.grad is not None]
    states = [s for w in learnt for s in optimizer.state[w].values()]
    named |= {"gradients": gradients, "optimizer": states}
    return {kind: memory(tensors) for kind, tensors in named.items()}


def memory(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors, or behind this rank's parts of them."""
    local = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
    pieces = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in local)}
    return sum(pieces.values())
