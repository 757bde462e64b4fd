"""Being told to stop: SIGTERM, as schedulers send it before they take a machine."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

EXIT_CODE = 75  # EX_TEMPFAIL: the same command goes on
"""What the command line exits with after it was told to stop, and saved."""


class Preempted(Exception):
    """A run was told to stop; its last checkpoint is of the step it had come to."""


@contextlib.contextmanager
def noticed() -> Iterator[Callable[[], bool]]:
    """Yield `() -> whether SIGTERM has come`, in place of being ended by it.

    Outside the main thread, where signals cannot be caught, it never has.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
