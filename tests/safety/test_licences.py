"""Licences of what a run installs are listed, and none asks for more than is given."""

import re
import tomllib

import pytest

from shielded_recrl.licences import (
    DEVELOPMENT,
    PAGE,
    PROJECT,
    closure,
    kind,
    locked,
    normal,
    packages,
    page,
)


@pytest.fixture(scope="module")
def found():
    return packages()


def test_the_page_is_that_of_the_lock_file(found):
    assert PAGE.read_text(encoding="utf-8") == page(found), "run make licences"


def test_no_licence_is_outside_of_those_that_were_read(found):
    """GPL, AGPL, a licence of a company or none at all would stop here, to be looked at by a person."""
    assert {one.name: one.licence for one in found if kind(one.licence) == "other"} == {}
    weak = {one.name for one in found if kind(one.licence) == "copyleft"}
    assert weak == {"certifi", "fpdf2", "tqdm"}


def test_everything_locked_is_listed_or_needed_by_tests_alone(found):
    with (PROJECT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    tests = closure(project["optional-dependencies"][DEVELOPMENT])
    # The tool that installs, and what Windows alone needs.
    assert locked().keys() - {normal(one.name) for one in found} - tests <= {"pip", "tzdata"}
    direct = {normal(re.split(r"[\[<>=]", one)[0]) for one in project["dependencies"]}
    assert direct <= {normal(one.name) for one in found if not one.part}


@pytest.mark.parametrize(
    "licence", ["GPL-3.0", "AGPL-3.0-only AND MIT", "Proprietary", "", "UNKNOWN"]
)
def test_what_was_never_read_is_found(licence):
    assert kind(licence) == "other"
