"""The start of every notebook: one seed, one thread, one device, no surprises."""

from __future__ import annotations

import logging
import os
import random
import shutil
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
SCALES = ("laptop", "gpu")
ROOT = Path(__file__).resolve().parent.parent


class Problem(Exception):  # noqa: N818 - readers meet this name, not a stack of frames
    """A mistake or a missing thing that we foresaw: one sentence that says what to do.

    In a notebook only the sentence is shown, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """Called by IPython in place of its own traceback."""
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Session:
    """What this run may use. `device` is a torch device string, `hub` says whether
    a model hub answers."""

    scale: str
    seed: int
    device: str
    threads: int
    hub: bool

    def pick(self, *, laptop: T, gpu: T) -> T:
        """The value for this scale: `steps = session.pick(laptop=200, gpu=20_000)`."""
        return laptop if self.scale == "laptop" else gpu


def start(scale: str = "laptop", seed: int = 0) -> Session:
    """Fix seed, threads and plot style, and say in one line what this run will use.

    At laptop scale computation has one thread on every machine: sums are then added in
    one order, so that the same seed gives the same numbers on 2 cores and on 16.

    Raises `Problem` when scale or seed is not usable, or a GPU was asked for and
    there is none.
    """
    session = Session(scale, _checked(scale, seed), *_hardware(scale))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - scikit-learn and nltk draw from this one
    torch.manual_seed(seed)
    torch.set_num_threads(session.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for chatty in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # on GPU kernels
        logging.getLogger(chatty).setLevel(logging.ERROR)
    from utils import plotting

    plotting.style()
    hub = "a model hub" if session.hub else "no model hub (cells that need one say so)"
    print(f"{scale} scale, seed {seed}: runs on {session.device}, with {hub}.")
    return session


def _checked(scale: str, seed: int) -> int:
    if scale not in SCALES:
        raise Problem(f'SCALE must be "laptop" or "gpu", not {scale!r}.')
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise Problem(f"SEED must be a whole number from 0 to 2**32 - 1, not {seed!r}.")
    return seed


def _hardware(scale: str) -> tuple[str, int, bool]:
    """Device, threads and hub for a scale."""
    if scale == "laptop":
        os.environ["HF_HUB_OFFLINE"] = "1"
        return "cpu", 1, False
    if torch.cuda.is_available():
        device = "cuda"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        raise Problem('SCALE="gpu" needs a GPU that PyTorch can see; use "laptop".')
    return device, os.cpu_count() or 1, hub_answers()


def hub_answers(host: str = "huggingface.co", timeout: float = 3.0) -> bool:
    """Whether a model hub can be reached: one attempt of `timeout` seconds."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return False
    try:
        socket.create_connection((host, 443), timeout=timeout).close()
    except OSError:
        return False
    return True


def needs(extra: str, *modules: str) -> None:
    """Raises `Problem` when one of the modules is missing that the extra installs."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise Problem(
            f"This notebook needs {', '.join(missing)}: install the extra {extra!r} "
            f"(make setup EXTRAS=dev,{extra}, or %pip install -e '.[{extra}]')."
        )


def scratch(name: str) -> Path:
    """An empty folder for files that a lesson writes: `build/scratch/<name>`."""
    folder = ROOT / "build" / "scratch" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def seeds(first: int, count: int) -> Sequence[int]:
    """`count` seeds for repeated runs; another `first` shares none of them."""
    return [1_000 * first + i for i in range(count)]
