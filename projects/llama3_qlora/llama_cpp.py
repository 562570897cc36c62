"""Run a GGUF file through llama.cpp, in this process and on one thread.

complete("chat.gguf", tokenizer.chat(messages), 100, adapter="adapter.gguf")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.runtime import Problem, needs


def complete(
    path: str | Path,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    adapter: str | Path | None = None,
) -> str:
    """Greedy text after a prompt, up to the end of a turn or of the text. llama.cpp is
    started for it and gone from memory afterwards.

    Text gets <|begin_of_text|> before it and, unlike in `Tokenizer.encode`, the names
    of special tokens in it are special tokens; ids are taken as they are. Raises
    `Problem` as `started` does, or when the prompt is empty or too long.
    """
    prompt = prompt if isinstance(prompt, str) else list(prompt)
    request = {"prompt": prompt, "n_predict": max_new_tokens, "temperature": 0}
    answer = started(path, adapter).handle_completions(request)
    if error := answer.get("error"):
        raise Problem(f"llama.cpp refuses the prompt: {error['message']}.")
    return answer["choices"][0]["text"]


def started(path: str | Path, adapter: str | Path | None = None) -> Any:
    """An `xllamacpp.Server` for a GGUF file and an adapter, quiet, for texts of at most
    2,048 tokens. Keys, values and attention stay in 32 bits: flash attention, which
    llama.cpp would choose, moves a logit by 1/200.

    It ends, with the HTTP server that it opens on 127.0.0.1, when nobody holds it any
    more. Raises `Problem` when a file is missing or llama.cpp does not take it.
    """
    needs("deploy", "xllamacpp")
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx, options.n_parallel, options.n_gpu_layers = 2048, 1, 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    flash = xllamacpp.llama_flash_attn_type
    options.flash_attn_type = flash.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.verbosity, options.warmup = -1, False
    files = [Path(path)]
    if adapter:
        files.append(Path(adapter))
        options.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise Problem(f"There is no file {missing[0]}.")
    try:
        server = xllamacpp.Server(options)
    except RuntimeError:  # it gives no reason; `verbosity` 3 would print one
        names = " with ".join(file.name for file in files)
        raise Problem(f"llama.cpp cannot load {names}.") from None
    # a server told to end before its loop runs waits for ever: see the loop at work
    server.handle_completions({"prompt": [0], "n_predict": 1})
    return server
