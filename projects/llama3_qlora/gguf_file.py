"""GGUF, the file of llama.cpp: our Llama with its vocabulary, and LoRA adapters.

write_gguf(model, "chat.gguf", "F16", tokenizer)
write_gguf_adapter("adapter", model.config, "adapter.gguf")

See `llama_cpp.complete` for running them: the greedy text is the same.
The format: docs/gguf.md in github.com/ggml-org/ggml; what is in an adapter:
convert_lora_to_gguf.py in github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.model import Llama, rope_frequencies
from projects.llama3_qlora.tokenizer import CHAT_TEMPLATE, Tokenizer
from projects.llama3_qlora.vocabulary import ALPHABET, EOM, SPLIT_PATTERN
from utils.runtime import Problem, needs

NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
KINDS = {"F32": "ALL_F32", "F16": "MOSTLY_F16"} | {
    kind: f"MOSTLY_{kind}" for kind in ("Q8_0", "Q4_0")
}
BLOCK = 32  # weights that share a 16-bit scale in Q8_0 and Q4_0
NORMAL, CONTROL = 1, 3  # types of tokens: text, or a mark that is not shown
LORA = re.compile(r"base_model\.model\.(model\.layers\..+_proj)\.lora_([AB])\.weight")
# what peft's LoraConfig can ask for beyond B A, and llama.cpp's adapters cannot say
EXTRAS = {
    "use_dora": "DoRA's magnitudes",
    "lora_bias": "a bias",
    "modules_to_save": "whole modules (modules_to_save)",
    "trainable_token_indices": "trained tokens",
    "rank_pattern": "ranks of single layers (rank_pattern)",
    "alpha_pattern": "scales of single layers (alpha_pattern)",
}


def write_gguf(
    model: Llama,
    path: str | Path,
    kind: str = "F16",
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model for llama.cpp, which then needs no other file.

    `kind` is the type of every matrix, the embedding's too: F32, F16, or blocks of 32
    weights with a 16-bit scale, Q8_0 (34 bytes) and Q4_0 (18 bytes); vectors stay F32.
    A tied head is left out. Without a tokenizer the tokens have no text, and prompts
    must be ids. The converted weights are in memory until they are written.

    Raises `Problem` for another kind, rows that are not whole blocks, or a tokenizer
    that is not this model's or does not split text as Llama 3.
    """
    config = model.config
    _check_kind(config, kind)
    if tokenizer and len(tokenizer) != config.vocab_size:
        raise Problem(
            f"The model has {config.vocab_size} tokens, the tokenizer {len(tokenizer)}."
        )
    with _writing(path) as writer:
        _describe(writer, config, kind)
        if tokenizer:
            _add_vocabulary(writer, tokenizer)
        else:
            _add_nameless_tokens(writer, config)
        if config.rope_scaling:
            writer.add_tensor("rope_freqs.weight", _rope_factors(config).numpy())
        for name, parameter in model.named_parameters():
            _add_weight(writer, name, parameter.detach().float().cpu(), config, kind)


def write_gguf_adapter(
    folder: str | Path, config: LlamaConfig, path: str | Path
) -> None:
    """Write an adapter that peft saved (`adapter_config.json` and
    `adapter_model.safetensors` in `folder`) as a GGUF file that llama.cpp lays over a
    base model of the sizes in `config`, whatever the kind of its matrices.

    Raises `Problem` when files are missing or damaged, or the adapter is not plain LoRA
    of the seven projections, of this model's sizes and of the rank it says.
    """
    rank, alpha = _settings(Path(folder))
    pairs = _pairs(Path(folder), config, rank)
    with _writing(path) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        # llama.cpp multiplies B A by this / rank
        writer.add_float32("adapter.lora.alpha", alpha)
        for name, (a, b) in pairs.items():
            b = _in_order(name, b, config)
            for end, matrix in (("lora_a", a), ("lora_b", b)):
                values = matrix.contiguous().numpy()
                writer.add_tensor(f"{_named(name)}.weight.{end}", values)


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key projection (heads * head_dim, inputs) in llama.cpp's
    order, which turns neighbours 2i and 2i + 1 where we turn i and i + head_dim / 2."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).reshape(weight.shape)


@contextmanager
def _writing(path: str | Path) -> Iterator[Any]:
    """A `GGUFWriter` whose file takes its name when it is complete."""
    needs("deploy", "gguf")
    import gguf

    partial = Path(f"{path}.partial")
    writer = gguf.GGUFWriter(partial, "llama")
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _check_kind(config: LlamaConfig, kind: str) -> None:
    if kind not in KINDS:
        raise Problem(f"A kind is one of {', '.join(KINDS)}, not {kind!r}.")
    sizes = (config.hidden_size, config.intermediate_size)
    rows = (*sizes, config.n_heads * config.head_dim)
    if kind.startswith("Q") and any(row % BLOCK for row in rows):
        raise Problem(
            f"{kind} needs rows of whole blocks of {BLOCK} weights; they are {rows}."
        )


def _describe(writer: Any, config: LlamaConfig, kind: str) -> None:
    import gguf

    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType[KINDS[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_vocabulary(writer: Any, tokenizer: Tokenizer) -> None:
    backend = json.loads(tokenizer.backend.to_str())
    model, split = backend["model"], backend["pre_tokenizer"]["pretokenizers"][0]
    if split.get("pattern", {}).get("Regex") != SPLIT_PATTERN:
        raise Problem("This tokenizer does not split text as Llama 3 does.")
    ids, special = range(len(tokenizer)), set(tokenizer.special.values())
    writer.add_tokenizer_model("gpt2")
    # one pattern, two names: with Llama 3's own a piece of text that is a token is
    # taken whole, as its vocabulary wants it (see `vocabulary.from_tiktoken`)
    writer.add_tokenizer_pre("llama-bpe" if model["ignore_merges"] else "smaug-bpe")
    writer.add_token_list([_written(tokenizer, i) for i in ids])
    writer.add_token_types([CONTROL if i in special else NORMAL for i in ids])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_eot_token_id(tokenizer.eot_id)
    if EOM in tokenizer.special:
        writer.add_eom_token_id(tokenizer.special[EOM])
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def _written(tokenizer: Tokenizer, token: int) -> str:
    """A token as a vocabulary file has it: a character for each byte, or a name."""
    content = tokenizer.token_bytes(token)
    if token in tokenizer.special.values():
        return content.decode()
    return "".join(ALPHABET[byte] for byte in content)


def _add_nameless_tokens(writer: Any, config: LlamaConfig) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([NORMAL] * config.vocab_size)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def _rope_factors(config: LlamaConfig) -> Tensor:
    """What llama.cpp divides the frequency of each pair by: (head_dim / 2,)."""
    plain = rope_frequencies(replace(config, rope_scaling=None))
    return plain / rope_frequencies(config)


def _add_weight(
    writer: Any, name: str, weight: Tensor, config: LlamaConfig, kind: str
) -> None:
    import gguf

    name = name.removesuffix(".weight")
    number = gguf.GGMLQuantizationType[kind if weight.dim() == 2 else "F32"]
    values = _in_order(name, weight, config).contiguous().numpy()
    values = gguf.quants.quantize(values, number)
    writer.add_tensor(f"{_named(name)}.weight", values, raw_dtype=number)


def _in_order(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    turned = name.endswith(("q_proj", "k_proj"))
    return interleaved(weight, config.head_dim) if turned else weight


def _named(name: str) -> str:
    """GGUF's name for one of our modules, such as model.layers.0.mlp.up_proj."""
    *layer, part = name.split(".", 3)
    return (f"blk.{layer[2]}." if len(layer) == 3 else "") + NAMES[part]


def _settings(folder: Path) -> tuple[int, float]:
    """Rank of an adapter, and the alpha with which alpha / rank is its scale."""
    try:
        values = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        kind, rank = values["peft_type"], int(values["r"])
        alpha = float(values["lora_alpha"])
    except OSError:
        raise Problem(f"There is no adapter_config.json in {folder.name}.") from None
    except (ValueError, KeyError, TypeError):
        raise Problem(f"adapter_config.json in {folder.name} is damaged.") from None
    found = [what for field, what in EXTRAS.items() if values.get(field)]
    if values.get("bias", "none") != "none":
        found.append("trained biases")
    if kind != "LORA" or found or not alpha:  # llama.cpp reads 0 as "do not scale"
        reason = ", ".join(found) or f"{kind} with lora_alpha {alpha:g}"
        raise Problem(f"llama.cpp takes plain LoRA only; {folder.name} has {reason}.")
    # rank-stabilized LoRA (Kalajdzievski 2023) scales by alpha / sqrt(rank)
    return rank, alpha * math.sqrt(rank) if values.get("use_rslora") else alpha


def _pairs(
    folder: Path, config: LlamaConfig, rank: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """A (rank, inputs) and B (outputs, rank) for the name of each module."""
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError:
        raise Problem(f"{folder.name} has no adapter_model.safetensors.") from None
    except (OSError, SafetensorError):
        raise Problem(f"The safetensors in {folder.name} are damaged.") from None
    with torch.device("meta"):
        sizes = {name: w.shape for name, w in Llama(config).named_parameters()}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = LORA.fullmatch(name)
        if not match or f"{match[1]}.weight" not in sizes:
            raise Problem(f"{name} is not LoRA of a projection of this model.")
        outputs, inputs = sizes[f"{match[1]}.weight"]
        expected = {"A": (rank, inputs), "B": (outputs, rank)}[match[2]]
        if tensor.shape != expected:
            raise Problem(f"{name} is {(*tensor.shape,)}, not {expected}.")
        found.setdefault(match[1], {})[match[2]] = tensor.float()
    if not found or any(len(pair) < 2 for pair in found.values()):
        raise Problem(f"{folder.name} has no LoRA, or half of it.")
    return {name: (pair["A"], pair["B"]) for name, pair in found.items()}
