"""Processes that help another one: they leave Ctrl-C to it, and end when it does."""

import os
import signal
import threading
from multiprocessing import parent_process


def follow_parent() -> None:
    """Called first in a process that ``multiprocessing`` started: it ends as soon as its parent has, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
