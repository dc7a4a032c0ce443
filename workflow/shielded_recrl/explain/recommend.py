"""Recommend items to a user of a finished study, and say why.

In: the config and the results of the study. Out: text on a terminal, a JSON document, or pages in
a browser. One run is served, or two side by side.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from shielded_recrl.errors import UserError
from shielded_recrl.explain.render import as_json, comparison, terminal
from shielded_recrl.explain.runs import CONFIG, RESULTS, Runs, read_config


def _truth(words: list[str]) -> bool:
    if words not in ([], ["True"], ["False"]):
        raise ValueError(f"expected True, False or nothing, got {' '.join(words)}")
    return words != ["False"]


# A flag that may stand alone, or with the value that flags have everywhere else.
Flag = Annotated[
    bool,
    PrimitiveConstructorSpec[Any](
        nargs="*",
        metavar="[True|False]",
        instance_from_str=_truth,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]


def main(
    *,
    dataset: str | None = None,
    variant: str = "shielded",
    user: str | None = None,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 5,
    seed: int | None = None,
    compare: str | None = None,
    json: Flag = False,
    serve: Flag = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    config: tuple[Path, ...] = (CONFIG,),
    results: Path = RESULTS,
) -> None:
    """Recommend items to a user of a finished study, and say why.

    Args:
        dataset: a dataset of the study.
        variant: a variant of the study.
        user: the dense id of a user, else their id in the source; source:ID means the latter.
        k: items to recommend.
        seed: of the run; the first of the study by default.
        compare: a second variant, shown beside the first.
        json: print a JSON document.
        serve: open pages in which to browse all datasets, users and runs.
        host: address of the pages.
        port: port of the pages; 0 takes a free one.
        config: what the study was given as --configfile, laid over config/config.yaml.
        results: folder of its results.
    """
    runs = Runs(read_config(config), results, config)
    if serve:
        quieten()
        from shielded_recrl.explain.page import open_pages

        open_pages(runs, host, port)
        return
    if dataset is None or user is None:
        raise UserError(
            "--dataset and --user: expected both, or --serve; datasets: "
            + ", ".join(runs.study.datasets)
        )
    asked = [variant, *([compare] if compare is not None else [])]
    for name in asked:
        runs.run(dataset, name, seed)

    # Torch takes seconds to load, which a mistyped name should not wait for.
    quieten()
    from shielded_recrl.explain.service import Library

    library = Library(runs)
    person = library.dataset(dataset).find(user)
    answers = [library.recommend(dataset, name, seed, person, k) for name in asked]
    if json:
        print(as_json(answers))
        return
    show = comparison if compare is not None else terminal
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    print(show(*answers, width=width, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))


def quieten() -> None:
    """Keep progress bars and notes to developers of the libraries out of the terminal."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
