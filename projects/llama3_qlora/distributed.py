"""What training needs so that one process or many run the same code: FSDP2 to share the
model out, and checkpoints in which nothing shows how many processes wrote them.

FSDP2 gives each process a part of every parameter, gradient and optimizer state, and
gathers a block's parameters only while that block computes (Zhao et al. 2023, arXiv
2304.11277; Rajbhandari et al. 2020).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from projects.llama3_qlora.model import Llama
from projects.llama3_qlora.nf4 import NF4Linear
from utils.runtime import Problem

# frozen weights are those of the base model, which is there already
WHOLE = StateDictOptions(
    full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
)


def start() -> torch.device:
    """Join the other processes when torchrun started this one; gives the device that
    this process computes on."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are; (0, 1) when alone."""
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def meet() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def total(value: float, device: torch.device) -> float:
    """A number summed over all processes, in double precision."""
    if rank_and_world()[1] == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.item()


def whole(value: Tensor) -> Tensor:
    """A tensor of which each process may have a part."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def shard(model: Llama, precision: str) -> None:
    """Share the model out over all processes with FSDP2, in place, unless it is so
    already. Parameters stay in the type they have; with "bf16" blocks compute in bf16
    and gradients are summed in fp32."""
    if isinstance(model, FSDPModule):
        return
    share = sharder(next(model.parameters()).device, precision)
    for block in model.model.layers:
        share(block)
    share(model)


def sharder(device: torch.device, precision: str) -> Callable[[nn.Module], None]:
    """What shares a module out, as `shard` says: each block, and then the model."""
    mesh = init_device_mesh(device.type, (rank_and_world()[1],))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)

    def share(module: nn.Module) -> None:
        # FSDP2 would round them to bf16, and with each of them 16,384 weights
        layers = [m for m in module.modules() if isinstance(m, NF4Linear)]
        exact = {p for m in layers for p in (m.scales_scale, m.offset)}
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=exact)

    return share


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer, notes: dict[str, Any]
) -> None:
    """All that the next step depends on, in one safetensors file: whole tensors without
    the frozen ones, and `notes` as JSON. All processes call it, the first one writes.
    The file is replaced as a whole, so that a kill while writing leaves the old one."""
    tensors: dict[str, Any] = get_model_state_dict(model, options=WHOLE)
    tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    states: Any = get_optimizer_state_dict(model, optimizer, options=WHOLE)
    for name, state in states.get("state", {}).items():
        tensors |= {f"optimizer.{key}.{name}": tensor for key, tensor in state.items()}
    if rank_and_world()[0] == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        # clone: a tied head shares memory with the embedding, which the format forbids
        whole = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial, metadata={"notes": json.dumps(notes)})
        partial.replace(path)
    if dist.is_initialized():
        dist.barrier()  # nobody trains on while the checkpoint is not yet there


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a checkpoint; empty when there is none. Raises `Problem` when the
    file is damaged."""
    if not path.exists():
        return {}
    with _opened(path) as file:
        return json.loads(file.metadata()["notes"])


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: Optimizer | None = None
) -> None:
    """Put back what `save_checkpoint` wrote, or only the model when there is no
    optimizer. Raises `Problem` when the file is damaged or of another model."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    learnt: Any = get_model_state_dict(
        model, options=StateDictOptions(ignore_frozen_params=True)
    )
    ours = {name: tuple(value.shape) for name, value in learnt.items()}
    if ours != {name: tuple(value.shape) for name, value in weights.items()}:
        raise Problem(f"{path.name} holds another model: use an empty folder.")
    if optimizer is not None:
        _load_optimizer(tensors, model, optimizer)
    set_model_state_dict(
        model, weights, options=StateDictOptions(full_state_dict=True, strict=False)
    )


def _load_optimizer(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: Optimizer
) -> None:
    state: Any = get_optimizer_state_dict(model, optimizer)  # its names and groups
    state["state"] = {
        name: {key: tensors[f"optimizer.{key}.{name}"] for key in values}
        for name, values in state["state"].items()
    }
    set_optimizer_state_dict(
        model,
        optimizer,
        state,
        options=StateDictOptions(full_state_dict=True),
    )


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError):
        raise Problem(
            f"The checkpoint {path.name} is damaged: delete it to start anew."
        ) from None
