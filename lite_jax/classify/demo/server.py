"""The page's server: this machine alone, uploads in memory, nothing from elsewhere."""

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
_OWN_PAGE = "x-lite-jax"  # no other site's page can send it without asking first
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def serve(run: str | Path, port: int) -> None:
    """Serve the page of a run until interrupted; say where.

    Args:
        run: A workdir of `lite_jax.main`.
        port: Of this machine; 0 for any that is free.

    Raises:
        UserError: No such run, or a port in use.
    """
    session = Session(load(run))
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind((HOSTS[0], port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port={port} cannot be used ({error}): choose another, or 0 for any"
            ) from error
        threading.Thread(target=session.warm, daemon=True).start()
        print(f"http://{HOSTS[0]}:{own.getsockname()[1]}", flush=True)
        config = uvicorn.Config(make_app(session), log_level="warning")
        uvicorn.Server(config).run(sockets=[own])


def make_app(session: Session) -> Starlette:
    """Return the application of a session."""

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
        found = await run_in_threadpool(session.describe)
        return JSONResponse(found | {"problems": problems})

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
        number = request.path_params["number"]  # in a thread: it may have to wait
        found = await run_in_threadpool(session.thumbnail, number)
        return Response(found, media_type="image/png")

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
        exception_handlers={UserError: _refused, HTTPException: _refused},
    )


async def _files(form: FormData) -> list[tuple[str, bytes]]:
    """Return name and content of the uploaded files."""
    found = [x for x in form.getlist("files") if isinstance(x, UploadFile)]
    return [(x.filename or "a photograph", await x.read()) for x in found]


async def _refused(request: Request, error: Exception) -> Response:
    del request
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    return JSONResponse({"error": str(error)}, 400)


class _Guard:
    """Refuse what is too large, and changes that another site's page asks for."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        problem = _problem(Request(scope))
        inner: Callable[..., Awaitable[Any]] = problem or self.app

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
                message = message | {"headers": [*message["headers"], *added]}
            await send(message)

        await inner(scope, receive, send_with_headers)


def _problem(request: Request) -> Response | None:
    """Return the answer to what is not to be taken, or None."""
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
