"""`build --to FOLDER` and `upload OWNER/NAME`: see the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from projects.llama3_qlora.space.upload import hub, upload
from utils.runtime import ROOT, Problem, needs

FOLDER = ROOT / "build" / "space"


def main(arguments: list[str]) -> None:
    """Do what the command line asks. Raises `Problem` when it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m projects.llama3_qlora.space")
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="assemble and measure the folder")
    making.add_argument("--to", type=Path, default=FOLDER)
    sending = commands.add_parser("upload", help="send it; HF_TOKEN is your token")
    sending.add_argument("name", metavar="OWNER/NAME")
    sending.add_argument("--from", dest="folder", type=Path, default=FOLDER)
    chosen = parser.parse_args(arguments)
    if chosen.command == "build":
        needs("deploy", "gradio")
        from projects.llama3_qlora.space.build import build

        build(chosen.to)
        print(f"{chosen.to.name} is complete: python app.py in it serves the page.")
    else:
        print(upload(chosen.folder, chosen.name, hub()))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Problem as problem:
        sys.exit(str(problem))
