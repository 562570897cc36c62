"""The implementations that the benchmark compares, all with the same few methods.

Each is loaded from the same folder. `filled` gives a cache that pretends to have read
`length` tokens (its numbers are random: speed does not depend on them), `read` reads
more and gives the logits behind the last one, `rewind` forgets what was read since.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.llama3_qlora.cache import KVCache
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.generate import generate
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.quantize import quantize_int8
from utils.runtime import Problem


class Contestant:
    """What all have in common; `model` maps ids (batch, time) to logits."""

    name = ""
    model: Any  # a module of one of three libraries

    def filled(self, batch: int, length: int, room: int) -> Any:
        raise NotImplementedError

    def read(self, ids: Tensor, cache: Any) -> Tensor:
        raise NotImplementedError

    def rewind(self, cache: Any, count: int) -> None:
        raise NotImplementedError

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids)

    def decode(self, token: Tensor, cache: Any, steps: int) -> Tensor:
        """Greedy tokens (batch, steps) after `token` (batch, 1)."""
        chosen = []
        for _ in range(steps):
            token = self.read(token, cache).argmax(-1)[:, None]
            chosen.append(token)
        return torch.cat(chosen, 1)

    def generate(self, ids: Tensor, count: int) -> list[int]:
        """Greedy text for one prompt (1, time)."""
        cache = self.filled(1, 0, ids.shape[1] + count)
        first = self.read(ids, cache).argmax(-1)[:, None]
        rest = self.decode(first, cache, count - 1)
        return torch.cat([first, rest], 1)[0].tolist()

    def train_step(self, ids: Tensor) -> None:
        """Forward, backward and the first step of AdamW. The optimizer goes away after
        it: the states of all contestants together would not fit into memory."""
        optimizer = torch.optim.AdamW(self.model.parameters(), 1e-6, fused=True)
        logits = self.logits(ids[:, :-1]).flatten(0, 1)
        F.cross_entropy(logits.float(), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


class Ours(Contestant):
    name = "this model"

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.model: Llama = Llama.from_pretrained(folder, dtype, device)
        self.dtype, self.device = dtype, device

    def filled(self, batch: int, length: int, room: int) -> KVCache:
        cache = KVCache(self.model.config, batch, room, self.dtype, self.device)
        cache.keys[:, :, :, :length].normal_()
        cache.values[:, :, :, :length].normal_()
        cache.length = length
        return cache

    def read(self, ids: Tensor, cache: KVCache) -> Tensor:
        return self.model.lm_head(self.model.model(ids, cache)[:, -1])

    def rewind(self, cache: KVCache, count: int) -> None:
        cache.length -= count

    def generate(self, ids: Tensor, count: int) -> list[int]:
        return generate(self.model, ids.tolist(), count)[0]


class Int8(Ours):
    name = "this model, int8"

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        super().__init__(folder, dtype, device)
        quantize_int8(self.model)


class Transformers(Contestant):
    """With a cache that grows. The loop of `decode` around its forward is faster than
    its `generate`, so that is what it is measured by."""

    name = "transformers"

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self.kinds = transformers.DynamicCache, transformers.StaticCache
        model: Any = transformers.LlamaForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
        self.model = model.to(device)
        self.dtype, self.device = dtype, device

    def new(self, room: int) -> Any:
        return self.kinds[0](config=self.model.config)

    def filled(self, batch: int, length: int, room: int) -> Any:
        cache, config = self.new(room), self.model.config
        shape = batch, config.num_key_value_heads, length, config.head_dim
        for layer in range(config.num_hidden_layers if length else 0):
            k, v = torch.randn(2, *shape, dtype=self.dtype, device=self.device)
            cache.update(k, v, layer)
        return cache

    def read(self, ids: Tensor, cache: Any) -> Tensor:
        output = self.model(ids, past_key_values=cache, logits_to_keep=1)
        return output.logits[:, -1]

    def rewind(self, cache: Any, count: int) -> None:
        cache.crop(-count)

    def logits(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=False).logits


class TransformersStatic(Transformers):
    """The same model with a cache of fixed size."""

    name = "transformers, static cache"

    def __init__(self, other: Transformers) -> None:
        self.__dict__.update(other.__dict__)

    def new(self, room: int) -> Any:
        return self.kinds[1](config=self.model.config, max_cache_len=room)

    def rewind(self, cache: Any, count: int) -> None:
        for layer in cache.layers:
            layer.cumulative_length.sub_(count)


class Uncached(Contestant):
    """A model that reads everything again for every token."""

    def __init__(self, other: Contestant) -> None:
        self.name, self.other = f"{other.name}, no cache", other

    def generate(self, ids: Tensor, count: int) -> list[int]:
        with torch.inference_mode():
            for _ in range(count):
                token = self.other.logits(ids)[:, -1].argmax(-1)[:, None]
                ids = torch.cat([ids, token], 1)
        return ids[0, -count:].tolist()


class LitGPT(Contestant):
    """Its cache belongs to the model: a cache here is the number of tokens read."""

    name = "litgpt"

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        if find_spec("litgpt") is None or find_spec("lightning") is None:
            raise Problem(
                "LitGPT is left out: it is not installed (`make benchmark` does that)."
            )
        from litgpt.model import GPT
        from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
        from safetensors.torch import load_file

        config = litgpt_config(LlamaConfig.load(folder))
        weights: dict[str, Tensor] = {}
        theirs = load_file(folder / "model.safetensors")
        copy_weights_hf_llama(config, {}, weights, theirs, dtype=dtype)
        with torch.device("meta"):
            self.model = GPT(config)
        self.model.load_state_dict(weights, assign=True)
        if LlamaConfig.load(folder).tie_embeddings:
            self.model.lm_head.weight = self.model.transformer.wte.weight
        self.model.cos, self.model.sin = self.model.rope_cache("cpu")
        self.model.to(device).requires_grad_()

        self.cached: tuple[int, int] | None = None

    def filled(self, batch: int, length: int, room: int) -> list[int]:
        if self.cached != (batch, room):
            self.model.clear_kv_cache()
            self.model.max_seq_length = room
            self.model.set_kv_cache(batch, device=self.model.cos.device)
            self.cached = batch, room
        for block in self.model.transformer.h if length else ():
            block.attn.kv_cache.k.normal_()
            block.attn.kv_cache.v.normal_()
        return [length]

    def read(self, ids: Tensor, cache: list[int]) -> Tensor:
        begin, end = cache[0], cache[0] + ids.shape[1]
        cache[0] = end
        positions = torch.arange(begin, end, device=ids.device)
        return self.model(ids, positions, input_pos_maxp1=end)[:, -1]

    def logits(self, ids: Tensor) -> Tensor:
        # a new length makes it compute its rotation anew, now with gradients allowed
        self.model.max_seq_length = ids.shape[1]
        return self.model(ids)

    def rewind(self, cache: list[int], count: int) -> None:
        cache[0] -= count


def litgpt_config(config: LlamaConfig) -> Any:
    """LitGPT's configuration of the same model."""
    from litgpt.config import Config

    return Config(
        name="benchmark",
        block_size=config.max_positions,
        vocab_size=config.vocab_size,
        padded_vocab_size=config.vocab_size,
        n_layer=config.n_layers,
        n_head=config.n_heads,
        n_query_groups=config.n_kv_heads,
        n_embd=config.hidden_size,
        head_size=config.head_dim,
        intermediate_size=config.intermediate_size,
        rotary_percentage=1.0,
        rope_base=int(config.rope_theta),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=config.norm_eps,
        mlp_class_name="LLaMAMLP",
    )
