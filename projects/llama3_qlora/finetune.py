"""LoRA on a frozen Llama, in 4 bits where asked, on one process or many.

(QLoRA: Dettmers et al. 2023, arXiv 2305.14314; shared out by FSDP2.)

    python -m projects.llama3_qlora.finetune --model DIR --tokens FILE --out DIR \\
        --steps N --four-bit
    torchrun --standalone --nproc-per-node 2 -m projects.llama3_qlora.finetune ...
    torchrun ... --shape 8b --steps 10 --four-bit --precision bf16 \\
        --checkpoint-activations --cuda    (random weights: nothing to download)

The folder gets log.jsonl, checkpoint.safetensors, the adapter in PEFT's format, and
report.json: bytes on each rank, measured and computed, and tokens per second. Started
again, the same command goes on from the checkpoint.

No process ever holds the float model. The files are mapped into memory; a matrix at a
time goes to the device, is quantized there, and when its block is complete each rank
keeps its part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from projects.llama3_qlora import distributed
from projects.llama3_qlora.config import LlamaConfig
from projects.llama3_qlora.data import Mixture, write_tokens
from projects.llama3_qlora.lora import (
    LINEARS,
    LoRAConfig,
    LoRALinear,
    add_lora,
    lora_layers,
    put,
    save_adapter,
)
from projects.llama3_qlora.memory import Setting, kept, measured, passing, quantizing
from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.nf4 import NF4Linear
from projects.llama3_qlora.recipe import TrainConfig
from projects.llama3_qlora.train import recipe_arguments, train
from projects.llama3_qlora.training_log import Line
from utils.runtime import Problem

LLAMA = LlamaConfig(128_256, 4096, 14_336, 32, 32, 8, max_positions=131_072)
SHAPES = {
    "tiny": LlamaConfig(512, 64, 192, 2, 4, 2),
    "8b": LLAMA,
    "70b": replace(
        LLAMA, hidden_size=8192, intermediate_size=28_672, n_layers=80, n_heads=64
    ),
}


def load(
    model: Llama, lora: LoRAConfig, device: torch.device, four_bit: bool, precision: str
) -> Llama:
    """Bring a model to the device block by block, in place: frozen, in NF4 where asked,
    with adapters, and of several processes each with its part. What is not quantized
    becomes bfloat16 for "bf16"; a model on the meta device gets random weights.

    Peak on the device: what stays, one whole block and `memory.quantizing` for the
    largest matrix, or one whole end. On a CPU mapped floats cost no copy.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    several = distributed.rank_and_world()[1] > 1
    share = distributed.sharder(device, precision) if several else lambda _: None
    for block in model.model.layers:
        if four_bit:
            quantize(block, device)
        bring(block, device, dtype)
        adapt(block, lora)
        share(block)
    embedding, head = model.model.embed_tokens, model.lm_head
    bring(embedding, device, dtype)
    if model.config.tie_embeddings:
        head.weight = embedding.weight
    else:  # frozen, the two need not be together at any time
        share(embedding)
        bring(head, device, dtype)
        share(head)
    bring(model.model.norm, device, dtype)
    share(model)
    return model


def quantize(block: nn.Module, device: torch.device) -> None:
    """Put an `NF4Linear`, made on the device, in place of each linear layer."""
    for name, layer in list(block.named_modules()):
        if isinstance(layer, nn.Linear):
            put(block, name, NF4Linear(arrived(layer.weight, device)))


def adapt(block: nn.Module, lora: LoRAConfig) -> None:
    """Give the target layers of a block their adapters."""
    for name, layer in list(block.named_modules()):
        if name.rpartition(".")[2] in lora.targets:
            put(block, name, LoRALinear(layer, lora))


def bring(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Bring what is not quantized to device and type, frozen, in place."""
    for part in module.modules():
        if isinstance(part, NF4Linear):
            continue
        for name, weight in list(part.named_parameters(recurse=False)):
            there = arrived(weight, device).to(dtype)
            setattr(part, name, nn.Parameter(there, requires_grad=False))


def arrived(weight: Tensor, device: torch.device) -> Tensor:
    """A weight on the device; where it has none, random, the same in every process."""
    if not weight.is_meta:
        return weight.detach().to(device)
    there = torch.ones(weight.shape, device=device)
    return there.normal_(std=0.02) if there.dim() == 2 else there


@contextmanager
def gauge(model: Llama) -> Iterator[dict[str, int]]:
    """Bytes by part on this rank after an optimizer's last step while inside."""
    found: dict[str, int] = {}
    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: found.update(measured(model, optimizer))
    )
    try:
        yield found
    finally:
        hook.remove()


def highest(device: torch.device) -> dict[str, int]:
    """The most that PyTorch had allocated on a GPU since this was last asked; on a CPU
    what the process holds now, libraries included."""
    if device.type != "cuda":
        return {"resident": psutil.Process().memory_info().rss}
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"peak": peak}


def gathered(value: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process has, by rank."""
    world = distributed.rank_and_world()[1]
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    dist.all_gather_object(values, value)
    return values


def report(
    setting: Setting, ranks: list[dict[str, Any]], lines: list[Line]
) -> dict[str, Any]:
    """What report.json says, in bytes and seconds; the first line of the log is left
    out of the speed, for what the first step has to set up."""
    speeds = [line["tokens_per_second"] for line in lines if "loss" in line]
    return {
        "world": setting.world,
        "tokens_per_second": median(speeds[1:] or speeds),
        "ranks": ranks,
        "computed": {
            "kept": [kept(setting, rank) for rank in range(setting.world)],
            "passing": passing(setting),
            "quantizing": quantizing(setting.config) if setting.four_bit else 0,
        },
    }


def save_trained(
    checkpoint: Path, config: LlamaConfig, lora: LoRAConfig, folder: Path
) -> None:
    """Write the adapters of a checkpoint in PEFT's format; needs no base weights."""
    tensors = load_file(checkpoint)
    with torch.device("meta"):
        model = add_lora(Llama(config), lora)
    for name, layer in lora_layers(model).items():
        for part in ("lora_A", "lora_B"):
            setattr(layer, part, nn.Parameter(tensors[f"model.{name}.{part}"]))
    save_adapter(model, lora, folder)


def base_model(folder: Path | None, shape: str) -> Llama:
    """The model of a folder, its weights as stored and mapped into memory, or one of
    `SHAPES` on the meta device."""
    if folder:
        return Llama.from_pretrained(folder, dtype=None)
    with torch.device("meta"):
        return Llama(SHAPES[shape])


def token_file(path: Path | None, out: Path, vocab_size: int) -> Path:
    """The file of tokens or, where there is none, one of random tokens."""
    if path:
        return path
    path, rng = out / "random.npy", np.random.default_rng(0)
    if distributed.rank_and_world()[0] == 0:
        write_tokens([rng.integers(vocab_size, size=100_000).tolist()], path)
    distributed.meet()
    return path


def check_devices(cuda: bool) -> None:
    """Raises `Problem` when GPUs were asked for, or found, and are too few."""
    count, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if (cuda or count) and local >= count:
        raise Problem(
            f"Process {local} needs a GPU of its own, and PyTorch sees {count} here: "
            "start fewer processes, or leave --cuda out where there is none."
        )


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser("projects.llama3_qlora.finetune")
    add = parser.add_argument
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--model", type=Path, help="folder of the base model")
    base.add_argument("--shape", choices=SHAPES, default="", help="random weights")
    add("--tokens", type=Path, help="without one: random tokens")
    add("--out", type=Path, required=True, help="where log and adapter go")
    add("--rank", type=int, default=LoRAConfig.rank)
    add("--alpha", type=float, default=LoRAConfig.alpha)
    add("--targets", nargs="+", default=LINEARS, metavar="LAYER")
    add("--four-bit", action="store_true", help="keep the blocks' weights as NF4")
    add("--cuda", action="store_true", help="end with a sentence where no GPU is")
    recipe_arguments(parser)
    parser.set_defaults(learning_rate=1e-3, warmup=10)
    return parser.parse_args()


def main() -> None:
    """The script."""
    values = vars(arguments())
    check_devices(values.pop("cuda"))
    out, four_bit = values.pop("out"), values.pop("four_bit")
    targets = tuple(values.pop("targets"))
    lora = LoRAConfig(values.pop("rank"), values.pop("alpha"), targets)
    model = base_model(values.pop("model"), values.pop("shape"))
    tokens, size = values.pop("tokens"), values.pop("batch_size")
    context = values.pop("context")
    recipe = TrainConfig(weight_decay=0.0, **values)

    device = distributed.start()
    rank, world = distributed.rank_and_world()
    path = token_file(tokens, out, model.config.vocab_size)
    mixture = Mixture({path: 1.0}, context, size)
    mixture.batch(0, recipe.seed, rank, world)  # a batch that cannot be shared: now
    torch.manual_seed(recipe.seed)  # the same random numbers in every process
    load(model, lora, device, four_bit, recipe.precision)
    loading = highest(device)
    with gauge(model) as parts:
        lines = train(model, mixture, recipe, out)
    ranks = gathered({"kept": parts, "loading": loading, "training": highest(device)})
    if rank == 0:
        setting = Setting(
            model.config,
            lora,
            world,
            four_bit,
            recipe.precision == "bf16",
            size // world,
            context,
            recipe.checkpoint_activations,
        )
        found = json.dumps(report(setting, ranks, lines), indent=1)
        (out / "report.json").write_text(found + "\n", "utf-8")
        save_trained(out / "checkpoint.safetensors", model.config, lora, out)
    distributed.meet()


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(str(problem))
    finally:
        distributed.stop()
