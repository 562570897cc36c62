"""Assemble the folder of the Space: program, modules, weights, pins and card."""

from __future__ import annotations

import shutil
from pathlib import Path

from projects.llama3_qlora.checkpoint import weight_files
from projects.llama3_qlora.space import card
from projects.llama3_qlora.space.check import complaints, write_sums
from projects.llama3_qlora.space.measured import Numbers, numbers
from projects.llama3_qlora.space.modules import pins, reached
from utils.runtime import ROOT, Problem

APP = Path(__file__).with_name("app.py")
MODEL = ROOT / "data" / "models" / "chat"
BESIDE_WEIGHTS = ("config.json", "tokenizer.json", "README.md")
TORCH_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"  # no CUDA
# The gradio Space does not read it: it is for a docker Space, or any other host.
DOCKERFILE = """FROM python:{python}-slim
RUN useradd --create-home --uid 1000 user
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
USER user
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", \\
    "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
CMD ["python", "app.py"]
"""


def build(folder: Path, questions: int = 20, model: Path = MODEL) -> Numbers:
    """Write the Space into `folder`, which must be new, empty, or an older build; then
    run it, measure it, with so many questions of each kind, and write the card.
    Returns what was measured.

    Raises `Problem` when the folder is something else, when weights are missing or no
    safetensors, or when the folder that came out is not complete.
    """
    weights = weight_files(model)
    emptied(folder)
    modules, libraries = reached(APP, ROOT)
    shutil.copy(APP, folder / "app.py")
    for path in modules:
        copied(path, folder / path.relative_to(ROOT))
    for path in [*weights, *(model / name for name in BESIDE_WEIGHTS)]:
        copied(path, folder / "model" / path.name)
    lines = [TORCH_INDEX, *pins(libraries, ROOT / "constraints.txt")]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "Dockerfile").write_text(DOCKERFILE.format(python=card.PYTHON), "utf-8")
    measured = numbers(folder, questions)
    (folder / "README.md").write_text(card.text(measured, model), "utf-8")
    write_sums(folder)
    if wrong := complaints(folder):
        raise Problem(f"The folder is not complete. {wrong[0]}")
    return measured


def emptied(folder: Path) -> None:
    """Make the folder, or clear an older build. Raises `Problem` for any other."""
    if folder.exists():
        if not folder.is_dir() or (any(folder.iterdir()) and not is_build(folder)):
            raise Problem(f"{folder.name} is not an older build: name another folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def is_build(folder: Path) -> bool:
    """Whether a folder looks like one of ours."""
    return (folder / "app.py").is_file() and (folder / "model").is_dir()


def copied(source: Path, target: Path) -> None:
    """Copy a file, making the folders above it. Raises `Problem` when it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copy(source, target)
    except FileNotFoundError:
        raise Problem(f"There is no {source.name} in {source.parent.name}.") from None
