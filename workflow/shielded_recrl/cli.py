"""`python -m shielded_recrl.<stage> <command>`: typed functions as commands, errors as one line."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from types import ModuleType
from typing import NoReturn

from shielded_recrl.errors import UserError, first_line

# Exit status of a process that SIGINT ended, as shells count it.
INTERRUPTED = 130


def run_stage(stage: str, commands: dict[str, str], default: str | None = None) -> NoReturn:
    """Run one command of a stage and exit.

    Args:
        stage: name of the subpackage.
        commands: command name -> one-line summary. The command `x` is the function `main` of the
            module `shielded_recrl.<stage>.x`; only the module asked for is imported.
        default: the command that flags without a command go to.
    """
    program = f"python -m shielded_recrl.{stage}"
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        width = max(map(len, commands))
        print(f"usage: {program} COMMAND [--help] [OPTIONS]\n\ncommands:")
        print("\n".join(f"  {key:<{width}}  {text}" for key, text in commands.items()))
        sys.exit(0)
    if default is not None and name.startswith("-"):
        name, arguments = default, sys.argv[1:]
    if name not in commands:
        sys.exit(f"{program}: unknown command {name!r}; expected one of: {', '.join(commands)}")
    import tyro
    from pydantic import ValidationError

    from shielded_recrl.lifetime import end_with_snakemake
    from shielded_recrl.settings import one_line

    end_with_snakemake(os.environ)
    try:
        main = _imported(f"shielded_recrl.{stage}.{name}").main
        tyro.cli(
            main,
            prog=f"{program} {name}",
            args=arguments,
            config=(tyro.conf.FlagConversionOff,),
        )
    except UserError as error:
        sys.exit(f"{program} {name}: error: {error}")
    except ValidationError as error:
        sys.exit(f"{program} {name}: error: {one_line(error)}")
    except OSError as error:
        sys.exit(f"{program} {name}: error: {system_reason(error)}")
    except KeyboardInterrupt:
        print(f"{program} {name}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        # Python would search all there is for garbage once more, though it ends.
        gc.freeze()
    sys.exit(0)


def _imported(name: str) -> ModuleType:
    """A module, imported without looking for garbage among the objects that modules are made of.

    They live as long as the process, and the search takes a quarter of the time of the imports, and as
    much again at the end.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def system_reason(error: OSError) -> str:
    """What the system refused, and for which file, on one line.

    >>> system_reason(PermissionError(13, "Permission denied", "runs/quick"))
    'runs/quick: Permission denied; give a path that can be read and written'
    """
    if error.filename is None or error.strerror is None:
        return first_line(error)
    return f"{error.filename}: {error.strerror}; give a path that can be read and written"
