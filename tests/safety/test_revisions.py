"""What comes from the hub is named by a commit: a branch or a tag can be moved."""

import importlib
import pkgutil

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

import shielded_recrl
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.fetch import main as fetch
from shielded_recrl.settings import Settings

BRANCHES = ["main", "v1.0", "refs/pr/1", "a" * 39, "A" * 40, "g" * 40, "a" * 40 + "\n", ""]


def revisions() -> dict[tuple[type[Settings], str], FieldInfo]:
    """Every setting that names a revision, wherever in the library it stands."""
    for module in pkgutil.walk_packages(shielded_recrl.__path__, "shielded_recrl."):
        if module.name.endswith("settings") or module.name.endswith(("config", "rlhf")):
            importlib.import_module(module.name)
    classes, waiting = set(), [Settings]
    while waiting:
        found = waiting.pop().__subclasses__()
        classes.update(found)
        waiting += found
    return {
        (cls, name): field
        for cls in classes
        if cls.__module__.startswith("shielded_recrl.")
        for name, field in cls.model_fields.items()
        if "revision" in name
    }


REVISIONS = sorted(revisions(), key=lambda one: (one[0].__qualname__, one[1]))


def test_there_are_such_settings():
    assert {name for _, name in REVISIONS} >= {"revision", "scorer_revision"}


def faults(cls: type[Settings], name: str, value: str) -> list[str]:
    """What is wrong with the value of one setting; others may be missing."""
    try:
        cls.model_validate({name: value})
    except ValidationError as error:
        return [one["type"] for one in error.errors() if one["loc"] == (name,)]
    return []


@pytest.mark.parametrize(("cls", "name"), REVISIONS, ids=lambda one: getattr(one, "__name__", one))
def test_a_setting_takes_a_commit_alone(cls, name):
    assert faults(cls, name, "0123456789abcdef" * 2 + "01234567") == []
    for branch in BRANCHES:
        assert faults(cls, name, branch) == ["string_pattern_mismatch"], branch


@pytest.mark.parametrize("branch", BRANCHES)
def test_the_command_takes_a_commit_alone(tmp_path, branch):
    with pytest.raises(UserError, match=r"^--revision: .* is no commit") as error:
        fetch(repository="somebody/model", revision=branch, out=tmp_path / "model")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
