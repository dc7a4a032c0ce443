"""Jobs end with the Snakemake that started them.

A Snakemake that is killed (SIGKILL, out of memory) cannot end its jobs. They would go on beside those
of the next run: write the same files, perhaps by a config since edited, and delete the checkpoint
that run goes on from. So each job looks at that one process, and ends when it has ended.

In: a process id in the environment. Out: nothing. Linux alone tells of the end of a process that is
no child; elsewhere jobs outlive their Snakemake.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import NoReturn

SNAKEMAKE = "RECRL_SNAKEMAKE"


def announce(environment: MutableMapping[str, str]) -> None:
    """Tell jobs that they are this process's."""
    environment[SNAKEMAKE] = str(os.getpid())


def end_with_snakemake(environment: Mapping[str, str]) -> None:
    """End this process as soon as the one that was announced has ended; none was: do nothing."""
    if SNAKEMAKE not in environment or not hasattr(os, "pidfd_open"):
        return
    try:
        snakemake = os.pidfd_open(int(environment[SNAKEMAKE]))
    except ProcessLookupError:
        _end()
    except OSError:
        # An old kernel, or a sandbox that forbids the call: the job outlives its Snakemake there.
        return
    threading.Thread(target=_end_after, args=(snakemake,), daemon=True).start()


def _end_after(process: int) -> None:
    ended = select.poll()
    ended.register(process, select.POLLIN)
    ended.poll()
    _end()


def _end() -> NoReturn:
    # There may be nobody left to read it.
    with suppress(OSError):
        os.write(2, b"error: the Snakemake that started this job was killed, so it ends as well\n")
    os._exit(1)
