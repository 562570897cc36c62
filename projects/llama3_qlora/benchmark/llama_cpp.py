"""llama.cpp as a contestant: the same weights in a GGUF file at Q8_0."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from projects.llama3_qlora.gguf_file import write_gguf
from projects.llama3_qlora.model import Llama
from utils.runtime import Problem


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
            write_gguf(Llama.from_pretrained(folder), path, "Q8_0")
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
