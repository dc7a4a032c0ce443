"""Licences of the packages that a run installs: docs/licences.md.

In: pyproject.toml, requirements.lock and the packages installed from it. Out: a page with a row for
each package that the project, or one of its optional parts, needs to run; what only tests and lint
need is left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import requires
from typing import NamedTuple

from packaging.requirements import Requirement

from shielded_recrl.errors import UserError
from shielded_recrl.files import write_text
from shielded_recrl.markdown import in_cell, table
from shielded_recrl.provenance import ROOT

PROJECT = ROOT.parents[1]
PAGE = PROJECT / "docs" / "licences.md"
# Tests and lint.
DEVELOPMENT = "dev"
# What the lock file was made for: on another Python the list stays the same.
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux"}
# Licences that ask for no more than a notice.
PERMISSIVE = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "MIT", "ISC"),
        *("Apache-2.0 WITH LLVM-exception", "CNRI-Python", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib"),
        *("BSD", "Public Domain"),
    }
)
# Licences that ask for the source of the package itself where one passes it on: nothing here is
# changed, copied into this project, or passed on with it.
WEAK_COPYLEFT = frozenset({"LGPL-3.0-only", "MPL-2.0"})
# The same licence by the names that packages give it.
NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
INTRODUCTION = """# Licences of dependencies

What a run installs from `requirements.lock`, and under which licence its owners give it; packages that
only tests and lint need are left out. Made by `python -m shielded_recrl.licences`, which reads the
packages' own metadata by pip-licenses, or the first line of their licence where that says nothing.

All but those of the second table are permissive: they ask that their notice is kept. Of several joined
by AND all hold, of several joined by OR or a semicolon one may choose; docutils, which is in the public
domain but for some files, has its one file under the GPL, for Emacs, in no package. A build of torch for
CUDA also installs NVIDIA's libraries, which have a licence of their own. Data sets and models from
elsewhere have their own terms: see [data.md](data.md) and [explainer.md](explainer.md).
"""


class Package(NamedTuple):
    """A package, its version and licence, and what needs it: empty for the project itself."""

    name: str
    version: str
    licence: str
    part: str


def main() -> None:
    """Write docs/licences.md."""
    write_text(PAGE, page(packages()))
    print(f"{PAGE.relative_to(PROJECT)}: written")


def page(found: Iterable[Package]) -> str:
    """The Markdown page."""
    found = list(found)
    rows = [
        [in_cell(one.name), one.version, in_cell(one.licence), one.part and f"`[{one.part}]`"]
        for one in found
    ]
    weak = [row for row, one in zip(rows, found, strict=True) if kind(one.licence) == "copyleft"]
    header = ["package", "version", "licence", "optional part"]
    return "\n".join(
        [
            INTRODUCTION,
            *table(header, rows),
            "",
            "## Weak copyleft",
            "",
            "Where one of these is passed on, its source has to be offered; what imports it keeps its own "
            "licence.",
            "",
            *table(header, weak),
            "",
        ]
    )


def packages() -> list[Package]:
    """What a run needs, by name; what several optional parts need is listed with the first.

    Raises:
        UserError: a package is not installed, or in another version than the lock file's.
    """
    with (PROJECT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    parts = {"": project["dependencies"], **project["optional-dependencies"]}
    needed: dict[str, str] = {}
    for part, requirements in parts.items():
        if part != DEVELOPMENT:
            for name in closure(requirements):
                needed.setdefault(name, part)
    known, pinned = _installed(), locked()
    # What the lock file lacks comes with a build of torch for a GPU.
    names = sorted(needed.keys() & pinned.keys())
    for name in names:
        # A build tells its kind behind a plus sign.
        if name not in known or known[name]["Version"].partition("+")[0] != pinned[name]:
            raise UserError(
                f"{name}: not installed as requirements.lock pins it, {pinned[name]}; run make dev"
            )
    return [
        Package(known[name]["Name"], pinned[name], licence(known[name]), needed[name])
        for name in names
    ]


def closure(requirements: Iterable[str]) -> set[str]:
    """Names of the packages that requirements need, and of those that these need in turn."""
    found: dict[str, frozenset[str]] = {}
    queue = [Requirement(one) for one in requirements]
    while queue:
        one = queue.pop()
        name, extras = normal(one.name), frozenset(one.extras)
        if name in found and extras <= found[name]:
            continue
        found[name] = extras = extras | found.get(name, frozenset())
        for text in requires(one.name) or ():
            inner = Requirement(text)
            if inner.marker is None or any(
                inner.marker.evaluate({**PYTHON, "extra": extra}) for extra in ("", *extras)
            ):
                queue.append(inner)
    return set(found)


def locked() -> dict[str, str]:
    """Version of each package in requirements.lock."""
    lines = (PROJECT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines)}


def licence(about: Mapping[str, str]) -> str:
    """The licence that pip-licenses found, by the name of SPDX where it is one of `NAMES`.

    >>> licence({"License": "BSD License; MIT License", "LicenseText": ""})
    'BSD; MIT'
    >>> licence({"License": "UNKNOWN", "LicenseText": "MIT License\\n\\nCopyright"})
    'MIT'
    """
    found = about["License"]
    if found == "UNKNOWN":
        found = about["LicenseText"].strip().splitlines()[0].strip()
    return "; ".join(NAMES.get(one, one) for one in found.split("; "))


def kind(licence: str) -> str:
    """permissive, copyleft where weak copyleft holds, or other.

    >>> kind("MPL-2.0 AND MIT"), kind("BSD; GPL-3.0"), kind("GPL-3.0 AND MIT")
    ('copyleft', 'permissive', 'other')
    """
    order = ("permissive", "copyleft", "other")
    choices = [
        max((_kind(one) for one in choice.split(" AND ")), key=order.index)
        for choice in re.split(r"; | OR ", licence)
    ]
    return min(choices, key=order.index)


def normal(name: str) -> str:
    """A package's name as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _kind(name: str) -> str:
    return "permissive" if name in PERMISSIVE else "copyleft" if name in WEAK_COPYLEFT else "other"


def _installed() -> dict[str, dict[str, str]]:
    """What pip-licenses says of each installed package."""
    options = ("--format=json", "--from=mixed", "--with-system", "--with-license-file")
    done = subprocess.run(
        [sys.executable, "-m", "piplicenses", *options], capture_output=True, text=True, check=True
    )
    return {normal(one["Name"]): one for one in json.loads(done.stdout)}


if __name__ == "__main__":
    main()
