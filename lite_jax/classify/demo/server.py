"""The server of the demo page, on this machine only; uploads stay in memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from lite_jax.classify import load
from lite_jax.classify.demo.session import Session
from lite_jax.errors import UserError

HOSTS = ["127.0.0.1", "localhost"]
MOST_BYTES = 64 * 2**20  # of a request
MOST_FILES = 100  # of a request
_STATIC = Path(__file__).with_name("static")
_OWN_PAGE = "x-lite-jax"  # pages of other sites cannot send this without permission
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def serve(run: str | Path, port: int) -> None:
    """Print the address of the demo page of a run, and serve it until interrupted.

    Args:
        run: A workdir of `lite_jax.main`.
        port: A port of this machine; 0 for any free one.

    Raises:
        UserError: The folder holds no run, or the port cannot be used.
    """
    session = Session(load(run))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOSTS[0], port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port={port} cannot be used ({error}): choose another, or 0 for any"
            ) from error
        threading.Thread(target=session.warm, daemon=True).start()
        print(f"http://{HOSTS[0]}:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(make_app(session), log_level="warning")
        uvicorn.Server(config).run(sockets=[listener])


def make_app(session: Session) -> Starlette:
    """Return the web application of a session."""

    async def state(request: Request) -> Response:
        del request
        return JSONResponse(await run_in_threadpool(session.describe))

    async def add(request: Request) -> Response:
        async with request.form(max_files=MOST_FILES, max_fields=1) as form:
            class_name, problems = str(form.get("class_name", "")), []
            for name, content in await _files(form):
                try:
                    await run_in_threadpool(session.add, class_name, name, content)
                except UserError as error:
                    problems.append(str(error))
        description = await run_in_threadpool(session.describe)
        return JSONResponse(description | {"problems": problems})

    async def remove(request: Request) -> Response:
        await run_in_threadpool(session.remove, request.path_params["number"])
        return await state(request)

    async def clear(request: Request) -> Response:
        await run_in_threadpool(session.clear)
        return await state(request)

    async def predict(request: Request) -> Response:
        async with request.form(max_files=1, max_fields=0) as form:
            files = await _files(form)
        if len(files) != 1:
            raise UserError("expected one photograph")
        return JSONResponse(await run_in_threadpool(session.predict, *files[0]))

    async def thumbnail(request: Request) -> Response:
        number = request.path_params["number"]
        picture = await run_in_threadpool(session.thumbnail, number)  # may wait
        return Response(picture, media_type="image/png")

    async def page(request: Request) -> Response:
        del request
        return FileResponse(_STATIC / "index.html")

    photographs = "/api/photographs"
    return Starlette(
        routes=[
            Route("/", page),
            Mount("/static", StaticFiles(directory=_STATIC)),
            Route("/api/state", state),
            Route(photographs, add, methods=["POST"]),
            Route(photographs, clear, methods=["DELETE"]),
            Route(f"{photographs}/{{number:int}}", remove, methods=["DELETE"]),
            Route(f"{photographs}/{{number:int}}.png", thumbnail),
            Route("/api/predict", predict, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS),
            Middleware(_Guard),
        ],
        exception_handlers={UserError: _error_response, HTTPException: _error_response},
    )


async def _files(form: FormData) -> list[tuple[str, bytes]]:
    """Return the names and contents of uploaded files."""
    uploads = [x for x in form.getlist("files") if isinstance(x, UploadFile)]
    return [(x.filename or "a photograph", await x.read()) for x in uploads]


async def _error_response(request: Request, error: Exception) -> Response:
    del request
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": str(error)}, 400)


class _Guard:
    """Refuse large uploads, and changes requested by pages of other sites."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = _refusal(Request(scope))
        inner: Callable[..., Awaitable[Any]] = refusal or self.app

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
                message = message | {"headers": [*message["headers"], *added]}
            await send(message)

        await inner(scope, receive, send_with_headers)


def _refusal(request: Request) -> Response | None:
    """Return the response to a request that is refused; None if it is accepted."""
    if request.method in ("GET", "HEAD"):
        return None
    if _OWN_PAGE not in request.headers:
        return JSONResponse({"error": "only the page itself may change it"}, 403)
    length = request.headers.get("content-length", "")
    if request.method == "POST" and not length.isdigit():
        return JSONResponse({"error": "the length of the upload is missing"}, 411)
    if length and int(length) > MOST_BYTES:
        most = MOST_BYTES // 2**20
        return JSONResponse({"error": f"more than {most} MiB at once"}, 413)
    return None
