"""The page of the Space and its health check, in one server: `python app.py`.

It listens on this machine only, unless it runs in a Space (the Hub sets SPACE_ID) or
GRADIO_SERVER_NAME names another address; GRADIO_SERVER_PORT is the port, 7860 if unset;
AT_ONCE says how many visitors are answered at the same time.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# before the libraries that read them: one thread for each answer, nothing sent home
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from projects.llama3_qlora.space.assistant import Assistant, Limits
from utils.runtime import Problem

MODEL = Path(__file__).parent / "model"
ABOUT = """A Llama of {millions:.1f} million parameters, made for the lessons of the
companion to *LLMs in Production*. It knows the small town of Brinstead, which does not
exist, and nothing of the real world: **what it says about anything else is made up.**
Nothing you write is kept."""
EXAMPLES = [
    "Who are you?",
    "Can you tell a story about a lamb?",
    "Yes or no: does this list contain shell? mill, comb, shell",
    "Where does the Quiet Goose stand?",
]


def page(assistant: Assistant) -> gr.ChatInterface:
    """The chat: a box for the question, a button that stops the answer."""
    limits = assistant.limits

    def chat(
        message: str, history: list[dict[str, Any]], temperature: float
    ) -> Iterator[str]:
        try:
            yield from assistant.answer(message or "", plain(history), temperature)
        except Problem as problem:
            raise gr.Error(str(problem), title="", print_exception=False) from None

    def checked(message: str) -> dict[str, Any]:
        try:
            assistant.prompt(message, [])
        except Problem as problem:
            return gr.validate(False, str(problem))
        return gr.validate(True, "")

    return gr.ChatInterface(
        chat,
        # Asked before the chat, so that a refused question stays in its box. An error
        # in the chat itself would leave the box closed for good (gradio 6.31).
        validator=checked,
        title="A very small Llama",
        description=ABOUT.format(millions=assistant.n_parameters / 1e6),
        # copying only: the usual third button would publish the conversation
        chatbot=gr.Chatbot(
            render_markdown=False, buttons=["copy", "copy_all"], label="Conversation"
        ),
        additional_inputs=gr.Slider(
            0, limits.temperature, 0, step=0.1, label="Temperature (0: always the same)"
        ),
        additional_inputs_accordion="Settings",
        examples=[[example] for example in EXAMPLES],
        cache_examples=False,  # in a Space the default is to answer them at the start
        flagging_mode="never",
        analytics_enabled=False,
        concurrency_limit=limits.at_once,
        api_name="chat",
    )


def plain(history: list[dict[str, Any]]) -> list[Mapping[str, str]]:
    """Gradio's history as roles and texts. The page sends messages in parts, the API
    as text; both come from a visitor, so what is neither is left out."""
    said = [turn for turn in history if turn.get("role") in ("user", "assistant")]
    return [{"role": turn["role"], "content": text(turn["content"])} for turn in said]


def text(content: object) -> str:
    """The text of a message in one of Gradio's two forms."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(p.get("text", "") for p in parts if isinstance(p, dict))


def server(assistant: Assistant) -> FastAPI:
    """The page at `/` and the health check at `/health` (503 when not ready)."""
    # no pages about the API: FastAPI's fetch their scripts from somebody else
    app = FastAPI(openapi_url=None)

    @app.get("/health")
    def health() -> JSONResponse:
        state = assistant.health()
        return JSONResponse(state, 200 if state["ready"] else 503)

    chat = page(assistant).queue(max_size=assistant.limits.waiting, api_open=False)
    return gr.mount_gradio_app(
        app,
        chat,
        path="/",
        theme=gr.themes.Base(font="system-ui", font_mono="monospace"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=1,  # in bytes: Gradio takes uploads, and nobody here needs them
    )


def listen(environ: Mapping[str, str]) -> socket.socket:
    """A socket that already has its port, so that nobody can take it in between.
    Raises `Problem` when the port is no port or belongs to somebody else."""
    here = "0.0.0.0" if "SPACE_ID" in environ else "127.0.0.1"
    host = environ.get("GRADIO_SERVER_NAME", here)
    port = whole_number(environ, "GRADIO_SERVER_PORT", 7860)
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError):
        raise Problem(
            f"Port {port} of {host} cannot be used: end what uses it, or set "
            "GRADIO_SERVER_PORT to another one."
        ) from None


def whole_number(environ: Mapping[str, str], name: str, otherwise: int) -> int:
    """What the environment says under this name. Raises `Problem` for other things."""
    value = environ.get(name, str(otherwise))
    if not value.isdecimal():
        raise Problem(f"{name} must be a whole number, not {value!r}.")
    return int(value)


def main() -> None:
    """Serve until somebody presses Ctrl-C."""
    with listen(os.environ) as taken:
        at_once = whole_number(os.environ, "AT_ONCE", Limits.at_once)
        app = server(Assistant(MODEL, Limits(at_once=at_once)))
        host, port = taken.getsockname()
        print(f"A very small Llama answers at http://{host}:{port}", flush=True)
        # an open page keeps its connection for ever: it gets a second to say goodbye
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[taken])


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(str(problem))
