"""The page's server: what it answers to, how much it takes, and what it lets a browser load."""

import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

MOST_TALK = 1 << 20  # bytes of a request that is no upload
MULTIPART_BYTES = 1 << 16  # around an uploaded file
OWN_NAMES = ["127.0.0.1", "localhost", "["]  # the last is how Starlette splits [::1]:7860
UPLOAD = "/gradio_api/upload"
FILE = "/gradio_api/file="
# All that the page needs of Gradio's routes. Others fetch addresses for visitors, or keep things for another service.
ROUTES = re.compile(
    r"/(|config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|login|logout|user|login_check"
    r"|(assets|static|svelte)/[\w./@-]+"
    r"|gradio_api/(info|theme\.css|startup-events|app_id|cancel|reset|upload|upload_progress|login_check|user"
    r"|queue/(join|data|status)|run/[\w-]+|api/[\w-]+|heartbeat/[\w-]+))/?"
)
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    b"content-security-policy": CONTENT_POLICY.encode(),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


class TooLarge(Exception):
    """A request has more bytes than it may."""


class Gate:
    """An ASGI application in front of Gradio's.

    Args:
        app: Gradio's.
        folder: the one folder whose files are served.
        max_bytes: of an upload.
    """

    def __init__(self, app: Callable, folder: Path, max_bytes: int) -> None:
        self.app, self.folder, self.max_bytes = app, folder.resolve(), max_bytes

    async def __call__(self, scope: Dict[str, Any], receive: Callable, send: Callable) -> None:
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, started, taken = scope["path"], False, 0
        most = self.max_bytes + MULTIPART_BYTES if path.rstrip("/") == UPLOAD else MOST_TALK

        async def receive_some() -> Dict[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise TooLarge
            return message

        async def send_guarded(message: Dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in HEADERS]
                message = {**message, "headers": [*kept, *HEADERS.items()]}
            await send(message)

        if not self.known(path):
            await PlainTextResponse("There is no such page.", 404)(scope, receive, send_guarded)
            return
        try:
            if _length(scope["headers"]) > most:
                raise TooLarge
            await self.app(scope, receive_some, send_guarded)
        except TooLarge:
            if not started:
                text = f"At most {most / 1e6:.1f} MB can be sent here."
                await PlainTextResponse(text, 413)(scope, receive, send_guarded)

    def known(self, path: str) -> bool:
        """Whether a path is a part of the page, or a file of its folder, links followed."""
        if not path.startswith(FILE):
            return ROUTES.fullmatch(path) is not None and ".." not in path
        return served(path[len(FILE) :], self.folder) is not None


def served(path: str, folder: Path) -> Optional[Path]:
    """The regular file of a folder that a path from outside names, links followed; None if it is no such file."""
    try:
        real = Path(os.path.realpath(path))
        return real if real.is_file() and folder.resolve() in real.parents else None
    except (OSError, ValueError):
        return None


def middleware(folder: Path, max_bytes: int, alone: bool) -> List[Middleware]:
    """What stands before Gradio.

    Args:
        folder, max_bytes: of :class:`Gate`.
        alone: the page is for this machine alone, and answers to its own names only: a page from elsewhere that lets
            another name lead here gets nothing.
    """
    layers = [Middleware(Gate, folder=folder, max_bytes=max_bytes)]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=OWN_NAMES), *layers] if alone else layers


def _length(headers: Any) -> int:
    value = dict(headers).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
