"""llama.cpp as a contestant: the same weights in a GGUF file at Q8_0."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.model import Llama
from utils.runtime import Problem

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


class LlamaCpp:
    """Decodes only, on one thread; the server lives in this process, so that its CPU
    time is counted like everybody's."""

    name = "llama.cpp, Q8_0"

    def __init__(self, folder: Path) -> None:
        missing = [n for n in ("gguf", "xllamacpp") if find_spec(n) is None]
        if missing:
            raise Problem(f"llama.cpp is left out: {', '.join(missing)} not installed.")
        import xllamacpp

        path = folder / "model-q8_0.gguf"
        if not path.exists():
            write_gguf(Llama.from_pretrained(folder), path)
        options = xllamacpp.CommonParams()
        options.model.path = str(path)
        options.n_ctx, options.n_parallel, options.n_gpu_layers = 2048, 1, 0
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
        options.verbosity, options.warmup = -1, False
        self.server = xllamacpp.Server(options)

    def decode(self, prompt: list[int], steps: int) -> Any:
        """`steps` greedy tokens. From the second call with a prompt on, all but its
        last token come from the cache: that makes `steps` passes of one token."""
        request = {"prompt": prompt, "n_predict": steps, "temperature": 0}
        return self.server.handle_completions(
            request | {"cache_prompt": True, "ignore_eos": True}
        )


def write_gguf(model: Llama, path: Path) -> None:
    """All matrices at Q8_0: blocks of 32 weights, each with a 16-bit scale."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, model.config)
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, parameter in model.named_parameters():
        *layer, part = name.removesuffix(".weight").split(".", 3)
        target = f"blk.{layer[2]}." if len(layer) == 3 else ""
        weight = parameter.detach().float()
        if part.endswith(("q_proj", "k_proj")):
            weight = interleaved(weight, model.config.head_dim)
        values = weight.contiguous().numpy()
        target += NAMES[part] + ".weight"
        if weight.dim() == 1:
            writer.add_tensor(target, values)
        else:
            writer.add_tensor(target, gguf.quants.quantize(values, q8), raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of a query or key projection (heads * head_dim, hidden) in llama.cpp's
    order, which turns neighbours 2i and 2i + 1 where we turn i and i + head_dim / 2."""
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))
    return halves.transpose(1, 2).reshape(weight.shape)


def _describe(writer: Any, config: LlamaConfig) -> None:
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
    # names for the tokens: the prompts are ids, but a file without a vocabulary is none
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([1] * config.vocab_size)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
