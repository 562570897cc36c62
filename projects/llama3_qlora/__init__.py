"""Llama 3 reimplemented: short, exact and fast.

model = Llama.from_pretrained("data/models/chat")
tokenizer = Tokenizer.load("data/models/chat")
generate(model, [tokenizer.chat(messages)], 100, stop_ids=tokenizer.stop_ids)
"""

from projects.llama3_qlora.cache import KVCache
from projects.llama3_qlora.config import LlamaConfig, RopeScaling
from projects.llama3_qlora.generate import Sampling, generate, stream
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.tokenizer import Tokenizer

__all__ = [
    "KVCache",
    "Llama",
    "LlamaConfig",
    "RopeScaling",
    "Sampling",
    "Tokenizer",
    "generate",
    "stream",
]
