"""Snakemake without its start: imports are half of a call that starts no job.

Jobs are processes of their own, as ever.

In: a line of JSON for each call: folder, environment, arguments and the two files of what is said.
Out: a line with its exit status.
"""

import gc
import json
import os
import sys
from pathlib import Path


def become(folder: str, environment: dict[str, str], arguments: list[str], said: list[str]) -> None:
    """Be `snakemake` in a process of its own, from here to its exit.

    Raises:
        SystemExit: always; Snakemake has ended.
    """
    from snakemake.cli import main

    # Calls come by the other one.
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, start=1):
        with Path(path).open("w") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["snakemake", *arguments]
    main()


def serve() -> None:
    """Fork for each call until there are no more."""
    from snakemake.cli import get_argument_parser

    # Imports the plugins too.
    get_argument_parser()
    # No child searches these for garbage, or has them copied by that.
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
