"""Resident memory of this process, in MiB. Needs the standard library only."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def status_mb(key: str) -> float | None:
    """A size in /proc/self/status, `VmRSS` (now) or `VmHWM` (peak); None where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except FileNotFoundError:
        return None
    return next(
        (int(line.split()[1]) / 2**10 for line in lines if line.startswith(f"{key}:")), None
    )


def peak_rss_mb() -> float:
    """Peak so far.

    From /proc where it has it: the ru_maxrss of a process begins at what its parent held when it
    was started.
    """
    if (peak := status_mb("VmHWM")) is not None:
        return peak
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
