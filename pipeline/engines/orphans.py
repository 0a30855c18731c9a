"""Ends the processes of vLLM when the process that started them is gone, even by ``kill -9``.

vLLM's own processes don't notice, and would keep the memory that a resumed run needs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """vLLM calls this in each of its processes: it is a plugin of vLLM (see pyproject.toml)."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return  # the process that starts the others

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
