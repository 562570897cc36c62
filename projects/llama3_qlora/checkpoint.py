"""Weights on disk: Hugging Face folders of safetensors, in one file or in shards.

Files are mapped into memory, not read: a weight comes from the disk when it is first
used. New files take their names only when all are complete: a stop half-way leaves the
old weights, or a folder that refuses to load, never a mixture.
Pickle is never read: unpickling runs whatever the file's author put in it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.runtime import Problem

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"  # which shard holds which tensor
SUMS = "SHA256SUMS"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def load_weights(
    model: nn.Module,
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> None:
    """Give a Llama, made on the meta device, the weights of a folder.

    Weights that already have `dtype` and stay on the CPU remain mapped: they cost no
    copy, and training them changes memory but not the file. Others are converted one
    by one. A tied head may be in the file, if equal to the embedding, or not.

    Raises `Problem`, before the model is touched, when files or tensors are missing,
    cut off, misshapen or too many; see `verify` for bits that changed.
    """
    paths = weight_files(folder)
    weights = dict(model.named_parameters())  # without a tied head
    _check(folder, paths, weights)
    tensors = {}
    for path in paths:
        with _opened(path) as file:
            for name in _names(file):
                tensors[name] = file.get_tensor(name).to(device, dtype)
    if HEAD not in weights:
        _drop_tied(tensors, folder)
    model.load_state_dict(tensors, strict=False, assign=True)


def save_weights(
    model: nn.Module, folder: Path, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write the weights as transformers does, in files of at most `max_shard_bytes`
    (a larger tensor has its own), and their checksums; replace what was there.

    A tied head is not written. Raises `Problem` when the disk refuses; the old weights
    are then still there.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    shards = _split(weights, max_shard_bytes)
    partial = folder / ".partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a writing that was killed
        partial.mkdir(parents=True)
        for name, shard in shards.items():
            _write(shard, partial / name)
        if len(shards) > 1:
            (partial / INDEX).write_text(_index(shards), "utf-8")
        _replace(folder, partial)
    except (OSError, SafetensorError) as error:
        raise Problem(f"{folder.name} could not be written ({error}).") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    lines = [f"{digest}  {name}\n" for name, digest in checksum(folder).items()]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def checksum(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each file that holds weights, and of the index of shards."""
    paths = weight_files(Path(folder)) + list(Path(folder).glob(INDEX))
    return {path.name: _sha256(path) for path in paths}


def verify(folder: str | Path) -> None:
    """Compare all weights, and what else `SHA256SUMS` lists, with their checksums:
    reads every byte. Raises `Problem` naming the first file that differs."""
    folder = Path(folder)
    found = checksum(folder)
    if not (folder / SUMS).exists():
        raise Problem(f"There is no {SUMS} in {folder.name}.")
    text = (folder / SUMS).read_text("utf-8")
    lines = re.findall(r"^([0-9a-f]{64}) [ *](.+)$", text, re.MULTILINE)
    listed = {name: digest for digest, name in lines}
    others = [name for name in listed if (folder / name).is_file()]
    found |= {name: _sha256(folder / name) for name in others if name not in found}
    for name in found | listed:
        if found.get(name) != listed.get(name):
            raise Problem(f"{name} in {folder.name} does not match {SUMS}.")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or all shards that its index names.

    Raises `Problem` when one is missing, or both are there: one is then left over.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise Problem(f"{folder.name} has {SINGLE} and {INDEX}: remove the older one.")
    if not single.exists() and not index.exists():
        raise Problem(_why_none(folder))
    names = [SINGLE] if single.exists() else _shard_names(index)
    for name in names:
        if not (folder / name).exists():
            raise Problem(f"{folder.name} lacks {name}, which {INDEX} names.")
    return [folder / name for name in names]


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        # a name only: an index must not lead out of its folder
        if names and all(Path(name).name == name for name in names):
            return names
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise Problem(f"{INDEX} in {index.parent.name} is damaged.")


def _why_none(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no folder {folder.name}."
    names = sorted(path.name for path in folder.iterdir())
    pickles = [n for n in names if re.search(r"^pytorch_model.*\.bin$|\.pth?$", n)]
    if pickles:
        return (
            f"{folder.name} holds only pickle ({_some(pickles)}), never read as it can "
            "run code: where you trust it, convert it by transformers' save_pretrained "
            "(Meta's .pth by its convert_llama_weights_to_hf)."
        )
    if any(name.startswith("model-") for name in names):
        return f"{folder.name} has shards but no {INDEX}: was its writing cut short?"
    return f"{folder.name} has no weights: neither {SINGLE} nor {INDEX}."


def _check(folder: Path, paths: Sequence[Path], weights: Mapping[str, Tensor]) -> None:
    """From the headers alone: is every weight there, in shape, and nothing else?"""
    missing, extra = dict.fromkeys(weights), []
    for path in paths:
        with _opened(path) as file:
            for name in _names(file):
                if name in weights:
                    missing.pop(name, None)
                    _check_one(path, name, file.get_slice(name), weights[name])
                elif name != HEAD:
                    extra.append(f"{name} in {path.name}")
    if missing:
        raise Problem(f"{folder.name} lacks the weights {_some(list(missing))}.")
    if extra:
        raise Problem(f"{folder.name} has {_some(extra)}, unknown to config.json.")


def _check_one(path: Path, name: str, stored: Any, weight: Tensor) -> None:
    kind, shape = stored.get_dtype(), tuple(stored.get_shape())
    if shape != weight.shape or kind not in ("F64", "F32", "F16", "BF16"):
        raise Problem(
            f"{name} in {path.parent.name}/{path.name} is {kind} of shape {shape}, "
            f"not floating of shape {tuple(weight.shape)} as config.json asks."
        )


def _drop_tied(tensors: dict[str, Tensor], folder: Path) -> None:
    embedding = tensors[EMBEDDING]
    if not torch.equal(tensors.pop(HEAD, embedding), embedding):
        raise Problem(f"{folder.name} ties {HEAD}, yet it differs from {EMBEDDING}.")


def _names(file: Any) -> list[str]:
    """Without the rotary frequencies, which old checkpoints repeat in every layer."""
    names: list[str] = file.keys()
    return [name for name in names if not name.endswith("rotary_emb.inv_freq")]


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")  # compares the header with the size of the file
    except (SafetensorError, OSError) as error:
        where = f"{path.name} in {path.parent.name}"
        raise Problem(f"{where} is cut off or not safetensors ({error}).") from None


def _split(weights: Mapping[str, Tensor], limit: int) -> dict[str, dict[str, Tensor]]:
    """File names and what goes into them, in order."""
    if limit < 1:
        raise Problem(f"max_shard_bytes must be at least 1, not {limit}.")
    shards: list[dict[str, Tensor]] = [{}]
    for name, weight in weights.items():
        size = sum(other.nbytes for other in shards[-1].values())
        if shards[-1] and size + weight.nbytes > limit:
            shards.append({})
        shards[-1][name] = weight
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    end = f"-of-{len(shards):05}.safetensors"
    return {f"model-{i:05}{end}": shard for i, shard in enumerate(shards, 1)}


def _index(shards: Mapping[str, Mapping[str, Tensor]]) -> str:
    total = sum(weight.nbytes for shard in shards.values() for weight in shard.values())
    places = {name: file for file, shard in shards.items() for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors keeps its files from everybody else


def _replace(folder: Path, partial: Path) -> None:
    """Put complete files in their place. Without its index no set of shards loads: it
    goes first and comes last, lest old and new shards be read together."""
    (folder / SUMS).unlink(missing_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    names = sorted(path.name for path in partial.iterdir())  # the index is the last
    for name in names:
        (partial / name).replace(folder / name)
    for path in [folder / SINGLE, *folder.glob("model-*-of-*.safetensors")]:
        if path.name not in names:
            path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(names: Sequence[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
