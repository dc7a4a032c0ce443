"""Commands of the library as a user gives them, without a process and its imports for each."""

from __future__ import annotations

import gc
import io
import json
import runpy
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

# Ends as the first command that fails.
ONE_BY_ONE = """
import json, runpy, sys

for stage, *words in json.loads(sys.argv[1]):
    sys.argv = [stage, *words]
    try:
        runpy.run_module(f"shielded_recrl.{stage}", run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def here(stage: str, *words: object) -> subprocess.CompletedProcess[str]:
    """`python -m shielded_recrl.<stage> <words>`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = None
    try:
        with (
            patch.object(sys, "argv", [stage, *map(str, words)]),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            runpy.run_module(f"shielded_recrl.{stage}", run_name="__main__")
    except SystemExit as end:
        code = end.code
    finally:
        # A command keeps all there is from the collector, as its process is to end with it.
        gc.unfreeze()
    if isinstance(code, str):
        err.write(f"{code}\n")
    status = 1 if isinstance(code, str) else code or 0
    return subprocess.CompletedProcess([stage, *words], status, out.getvalue(), err.getvalue())


def elsewhere(*commands: Sequence[object]) -> subprocess.CompletedProcess[str]:
    """Commands, each a stage and its words, one after the other in one process of their own."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    return subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE, words], capture_output=True, text=True, check=False
    )
