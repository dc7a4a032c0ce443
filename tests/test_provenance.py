"""The code digest changes with the code behind a command, and with nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

import shielded_recrl
from shielded_recrl import provenance
from shielded_recrl.provenance import code_digest, import_closure

COMMANDS = ["data.prepare", "rl.evaluate"]
CACHED = ("_parse", "_tree", "_imports")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of four modules; call it to write one, then ask for the digest."""

    class Package:
        def write(self, name, text):
            (tmp_path / f"{name}.py").write_text(text)

        def digest(self):
            for name in CACHED:
                getattr(provenance, name).cache_clear()
            return code_digest("shielded_recrl.top")

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    made = Package()
    made.write("__init__", "")
    made.write("top", "from shielded_recrl.middle import f\n\n\ndef main(x):\n    return f(x)\n")
    made.write("middle", "def f(x):\n    import shielded_recrl.deep as d\n    return d.N * x\n")
    made.write("deep", "N = 1\n")
    made.write("unrelated", "N = 1\n")
    yield made
    for name in CACHED:
        getattr(provenance, name).cache_clear()


def test_same_code_same_digest(package):
    digest = package.digest()
    assert digest == package.digest()
    assert len(digest) == 16


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep", "# Why.\nN = 1  # the unit\n"),
        ("deep", '"""What N is."""\n\nN = (\n    1\n)\n'),
        (
            "top",
            "from shielded_recrl.middle import f\n\ndef main(x):\n"
            '    """Docstring."""\n\n    return f( x )\n',
        ),
        ("unrelated", "N = 2\n"),
        ("added", "N = 2\n"),
    ],
)
def test_comments_docstrings_layout_and_other_modules_do_not_count(package, name, text):
    digest = package.digest()
    package.write(name, text)
    assert package.digest() == digest


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("deep", "N = 2\n"),
        ("deep", "N = 1\nM = 'a text that is no docstring'\n"),
        ("deep", "N = 1.0\n"),
        ("middle", "def f(x, y=0):\n    import shielded_recrl.deep as d\n    return d.N * x\n"),
        ("top", "from shielded_recrl.middle import f\n\n\ndef main(y):\n    return f(y)\n"),
        ("__init__", "import os\n"),
    ],
)
def test_code_counts_at_any_depth(package, name, text):
    digest = package.digest()
    package.write(name, text)
    assert package.digest() != digest


def test_a_name_that_is_both_imported_and_new_module_counts(package):
    package.write("top", "from shielded_recrl import deep\n")
    digest = package.digest()
    package.write("deep", "N = 3\n")
    assert package.digest() != digest


def test_unknown_module_is_refused():
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        code_digest("shielded_recrl.nowhere")


@pytest.mark.parametrize("command", COMMANDS)
def test_closure_is_what_the_command_really_imports(command):
    """Every module Python loads for a command, lazy ones aside, is behind its digest."""
    code = f"import sys, shielded_recrl.{command}; print(*sys.modules)"
    library = str(Path(shielded_recrl.__file__).parents[1])
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=library
    ).stdout.split()
    ours = {name for name in loaded if name.split(".")[0] == "shielded_recrl"}
    assert len(ours) > 3
    assert ours <= import_closure(f"shielded_recrl.{command}")


def test_stages_do_not_depend_on_later_ones():
    assert not any(name.startswith("shielded_recrl.rl") for name in closure("ranker.train"))
    assert not any(name.startswith("shielded_recrl.report") for name in closure("rl.train"))
    assert "shielded_recrl.rl.ppo" in closure("rl.train")
    assert "shielded_recrl.config" not in closure("rl.train")


def closure(command):
    return import_closure(f"shielded_recrl.{command}")
