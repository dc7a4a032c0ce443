"""The embedded default study on the toy Slurm, two jobs at once, with a cancelled job and a lost node
on the way, against a finished local run.

    sudo env PYTHONPATH=tests .venv/bin/python -m slurm.default_run --local ../a/finished/run

In: the folder of that run, made by `make results` from the same code. Out: a line for each thing that
differs, and exit status 1 if there is any; the run itself stays where the first line says.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from slurm.toy import PROFILE, Toy, Unavailable, different_cells, different_files, disturb
from workflow.conftest import clean_copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--local", type=Path, required=True, help="folder of the finished local run"
    )
    local = parser.parse_args().local / "results"
    if not (local / "manifest.json").exists():
        sys.exit(f"{local}/manifest.json: no such file; run make results there first")

    copy = clean_copy(Path(tempfile.mkdtemp(prefix="default-on-slurm-")) / "copy")
    toy = Toy(Path(tempfile.mkdtemp(prefix="toy-slurm-")))
    print(f"run {copy.folder}\nSlurm {toy.folder}", flush=True)
    start = time.monotonic()
    try:
        toy.up()
        run = copy.start(*PROFILE, "--jobs", "2", config=None, log=copy.folder / "said.log")
        try:
            faults = disturb(toy, run, copy.folder)
            print(f"cancelled {faults.cancelled}\nlost {faults.lost}", flush=True)
            status = run.wait()
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
        states = Counter(job.state for job in toy.jobs())
    except Unavailable as reason:
        sys.exit(str(reason))
    finally:
        toy.down()
        shutil.rmtree(toy.folder)

    print(f"status {status} after {time.monotonic() - start:.0f} s; jobs {dict(states)}")
    if status:
        sys.exit(f"the run failed; see {copy.folder}/said.log")
    ours = copy.folder / "results"
    differences = [
        *different_cells(ours, local),
        *sorted({*different_files(ours, local), *different_files(local, ours)}),
    ]
    print("\n".join(differences) or "table and results are those of the local run")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
