"""Send a built folder to the Hub: the only part of the book that needs an account."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from httpx import HTTPError

from projects.llama3_qlora.space.check import SECRET, complaints
from utils.runtime import Problem


def hub(environ: Mapping[str, str] = os.environ) -> Any:
    """The Hub's client with the token of the environment, which nobody prints. Raises
    `Problem` when there is none."""
    from huggingface_hub import HfApi

    token = environ.get("HF_TOKEN", "")
    if not token:
        raise Problem(
            "Put a token with write access into the environment as HF_TOKEN; "
            "huggingface.co/settings/tokens makes one."
        )
    return HfApi(token=token)


def upload(folder: Path, name: str, api: Any) -> str:
    """Make the Space `name` ("owner/name") what the folder is; returns its address.

    `api` is a `huggingface_hub.HfApi`. Raises `Problem` when the folder is not complete
    or holds what looks like a secret, and when the Hub refuses or cannot be reached.
    """
    if name.count("/") != 1 or not all(name.split("/")) or SECRET.search(name.encode()):
        raise Problem("Name the Space as OWNER/NAME.")
    if wrong := complaints(folder):
        raise Problem(f"Not uploaded. {wrong[0]}")
    try:
        api.create_repo(name, repo_type="space", space_sdk="gradio", exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            repo_type="space",
            ignore_patterns=["**/__pycache__/**"],
            delete_patterns=["*"],  # what an older version had and this has not
            commit_message="Built from the companion",
        )
    except (HTTPError, OSError, ValueError) as error:
        raise Problem(f"The Hub did not take it: {reason(error)}.") from None
    return f"https://huggingface.co/spaces/{name}"


def reason(error: Exception) -> str:
    """In a few words: a library's own could repeat what was sent, token and all."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"it answered {response.status_code}"
    return f"it could not be asked ({type(error).__name__})"
