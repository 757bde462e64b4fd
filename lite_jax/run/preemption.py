"""SIGTERM, which schedulers send before they stop a machine."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

EXIT_CODE = 75  # EX_TEMPFAIL
"""Exit code after SIGTERM and a saved checkpoint; the same command resumes the run."""


class Preempted(Exception):
    """A run stopped on SIGTERM, after it saved a checkpoint of its last step."""


@contextlib.contextmanager
def watched_sigterm() -> Iterator[Callable[[], bool]]:
    """Catch SIGTERM, and yield a function that returns whether it was received.

    Signals can be caught in the main thread only; in others the function returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received = threading.Event()
    old_handler = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGTERM, old_handler)
