"""What the code behind a rule imports is pinned in the environment of that rule."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from shielded_recrl.provenance import PACKAGE, import_closure

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(
    r'    conda:\n        "\.\./envs/(\w+)\.yaml"\n.*?-m shielded_recrl\.(\w+) (\w+)', re.DOTALL
)
# Environment and package, and why the rules of that environment work without it.
OPTIONAL = {
    ("audit", "huggingface_hub"): "a scorer beside the embedded one; without it one line says so",
    ("audit", "torch"): "a scorer beside the embedded one; without it one line says so",
    ("audit", "transformers"): "a scorer beside the embedded one; without it one line says so",
    ("dialogue", "wandb"): "of resources.loggers, off by default; without it one line says so",
    ("rl", "huggingface_hub"): "downloads a scorer for `audit score`; transformers brings it along",
    ("rl", "bert_score"): "of evaluation.bertscore, off by default; without it one line says so",
    ("rl", "vllm"): "of rl.engine, with an environment of its own; without it one line says so",
    ("rl", "wandb"): "of resources.loggers, off by default; without it one line says so",
}


def commands():
    """Environment and module of the command of every rule."""
    found = []
    for path in sorted(ROOT.glob("rules/*.smk")):
        text = path.read_text()
        pairs = COMMAND.findall(text)
        assert len(pairs) == len(re.findall("^rule ", text, re.MULTILINE)), path
        found += [(env, f"{PACKAGE}.{stage}.{command}") for env, stage, command in pairs]
    return sorted(set(found))


def normal(name):
    """The name of a distribution as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def pins(env):
    """Version of every distribution of an environment."""
    document = yaml.safe_load((ROOT / f"envs/{env}.yaml").read_text())
    (listed,) = [one["pip"] for one in document["dependencies"] if isinstance(one, dict)]
    return {normal(name): version for name, version in (line.split("==") for line in listed)}


@cache
def installed():
    """Distributions of each package."""
    return packages_distributions()


@cache
def third_party(module):
    """Packages of others that a module imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(Path(find_spec(module).origin).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {PACKAGE}


def missing(env, module):
    """Packages that a command may import and its environment lacks, and who imports each."""
    distributions = installed()
    entry = module.rpartition(".")[0] + ".__main__"
    return {
        package: reached
        for reached in sorted(import_closure(module) | import_closure(entry))
        for package in third_party(reached)
        if not set(map(normal, distributions.get(package, [package]))) & pins(env).keys()
    }


@pytest.mark.parametrize(("env", "module"), commands())
def test_environment_has_what_the_command_imports(env, module):
    lacking = missing(env, module)
    assert {one: by for one, by in lacking.items() if (env, one) not in OPTIONAL} == {}


def test_imports_within_functions_count():
    """Where nothing at the top of a module tells of them."""
    module = f"{PACKAGE}.explainer.fetch"
    lines = Path(find_spec(module).origin).read_text().splitlines()
    assert not [line for line in lines if re.match(r"(from|import) huggingface_hub", line)]
    assert "huggingface_hub" in third_party(module)


def test_what_is_no_stage_has_no_environment():
    assert {module.split(".")[1] for _, module in commands()}.isdisjoint({"cluster", "explain"})


def test_what_is_pinned_fits_together():
    """Of packages that fit together, the few of an environment do too."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "No broken requirements found.")


def test_every_exception_is_one():
    lacking = {(env, package) for env, module in commands() for package in missing(env, module)}
    assert OPTIONAL.keys() <= lacking


@pytest.mark.parametrize("env", sorted(path.stem for path in ROOT.glob("envs/*.yaml")))
class TestEnvironment:
    def test_pins_are_those_of_the_lock(self, env):
        lines = (ROOT / "requirements.lock").read_text().splitlines()
        locked = {
            normal(name): version
            for name, _, version in (line.partition("==") for line in lines if "==" in line)
        }
        assert {name: locked.get(name) for name in pins(env)} == pins(env)

    def test_a_base_in_four_bits_can_be_loaded(self, env):
        """Transformers reads 4-bit weights through accelerate, which PEFT brings along."""
        assert "bitsandbytes" not in pins(env) or {"accelerate", "peft"} & pins(env).keys()
