"""The memory that this process holds: its peak, measured for each stage, and what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

GIB = 2**30
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start_peak() -> None:
    """Measure ``peak_gib`` from now on."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # some containers forbid it
            _RESET.write_text("5")  # Linux sets the largest size of the process back to its size now


def peak_gib() -> float:
    """The most memory since ``start_peak``: of the GPU's allocator, or of this process.

    Where the operating system can't set the peak back (macOS, some containers), it is that since the process began.
    """
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved() / GIB)
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    largest = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)  # gVisor has none
    if largest is not None:
        return largest / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def free_memory() -> None:
    """Give memory that is no longer used back to the GPU or to the operating system."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Give free pages of the C library's heap back to the operating system. It takes about 20 ms.

    Tensors below 32 MiB are on that heap, where those of another size leave gaps. Without this, a process that trains
    on batches of many lengths holds twice what it uses, and more with every stage.
    """
    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # musl has none
        function(0)
