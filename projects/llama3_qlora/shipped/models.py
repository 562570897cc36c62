"""Trains the two models that the book ships: `make models`, resumable at any moment.

Tokenizer, tokens, base model, chat model: what is already in `build/models` is not made
again. The results go to `data/models`, each with its examination on its card.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.data import Mixture, write_tokens
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.recipe import TrainConfig
from projects.llama3_qlora.shipped import corpus
from projects.llama3_qlora.shipped.card import write_card
from projects.llama3_qlora.shipped.exam import examine
from projects.llama3_qlora.shipped.heads import write_copying_heads
from projects.llama3_qlora.tokenizer import Tokenizer
from projects.llama3_qlora.train import train
from projects.llama3_qlora.training_log import Line
from utils import measure, runtime

WORK, MODELS = runtime.ROOT / "build" / "models", runtime.ROOT / "data" / "models"
CONTEXT, BATCH = 512, 4  # tokens of a row, rows of a batch
BASE = TrainConfig(
    steps=5_000,
    optimizer="muon",
    learning_rate=5e-3,
    embedding_rate=0.2,
    min_rate=0.02,
    warmup=50,
    precision="bf16",
    save_every=200,
)
STAGES = {
    "reading": replace(BASE, steps=2_000, min_rate=0.4),
    "base": BASE,
    "chat": replace(BASE, steps=6_000, learning_rate=2.5e-3),
}


def sizes(tokenizer: Tokenizer) -> LlamaConfig:
    """The sizes of both models: 4.2 million weights, 8.4 MB in bfloat16."""
    return LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=768,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        max_positions=2048,
        tie_embeddings=True,
        bos_id=tokenizer.bos_id,
        eos_ids=(tokenizer.eos_id, tokenizer.eot_id),
    )


def made_tokenizer() -> Tokenizer:
    """The tokenizer of both models, trained at the first call."""
    folder = WORK / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        corpus.train_tokenizer().save(folder)
    return Tokenizer.load(folder)


def token_file(tokenizer: Tokenizer, source: str) -> Path:
    """The tokens of a source, written at the first call."""
    path = WORK / "tokens" / f"{source}.npy"
    if not path.exists():
        documents, masks = corpus.tokens(tokenizer, source)
        print(f"{source}: {write_tokens(documents, path, masks):,} tokens", flush=True)
    return path


def fit(name: str, model: Llama, tokenizer: Tokenizer, how: TrainConfig) -> list[Line]:
    """Train the model on the mixture of a stage, as far as it is not yet."""
    files: dict[str | Path, float] = {
        token_file(tokenizer, source): weight
        for source, weight in corpus.WEIGHTS[name].items()
    }
    mixture = Mixture(files, CONTEXT, BATCH)
    return train(model, mixture, how, WORK / name, label=f"stage {name}")


def publish(name: str, model: Llama, tokenizer: Tokenizer, log: list[Line]) -> None:
    """Put a model into `data/models` in bfloat16, examine what lies there, and write
    its card."""
    folder = MODELS / name
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(folder)
    write_log(log, folder / "log.jsonl")
    count = measure.count_parameters(model)
    write_card(folder, count, corpus.WEIGHTS, STAGES, examine(folder))


def write_log(log: list[Line], path: Path) -> None:
    """The log without its clock: the same on every machine that rounds alike."""
    lines = [{k: v for k, v in x.items() if k != "tokens_per_second"} for x in log]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def main() -> None:
    """All stages: reading with copying heads, the base model, and from it the chat
    model."""
    session = runtime.start(sys.argv[1] if sys.argv[1:] else "laptop", seed=0)
    tokenizer = made_tokenizer()
    model = Llama(sizes(tokenizer)).to(session.device)
    write_copying_heads(model)
    for name, how in STAGES.items():  # each goes on from the weights before
        log = fit(name, model, tokenizer, how)
        if name in ("base", "chat"):
            publish(name, model, tokenizer, log)


if __name__ == "__main__":
    try:
        main()
    except runtime.Problem as problem:
        sys.exit(str(problem))
