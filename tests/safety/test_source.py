"""What no line of the library does: unpickle, run text as code, ask a shell, fetch what is not pinned."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "workflow").rglob("*.py"))
# Modules that unpickle, and names that run code or read pickles, by the end of their dotted name.
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.unsafe_load",
    "yaml.full_load",
}
# Keyword arguments that have one safe value.
KEYWORDS = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}


def faults(text: str) -> list[str]:
    """What is forbidden in a source, as `line: what`."""
    tree = ast.parse(text)
    named = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [f"{node.lineno}: {fault}" for node in ast.walk(tree) for fault in _faults(node, named)]


def _faults(node: ast.AST, named: dict[str, ast.Dict]) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{name}" for name in modules)]
        for module in modules:
            if module.split(".")[0] in MODULES or module in CALLS:
                yield f"import of {module}"
    if not isinstance(node, ast.Call):
        return
    called, given = ast.unparse(node.func), arguments(node, named)
    if called in CALLS:
        yield f"call of {called}"
    for name, safe in KEYWORDS.items():
        if name in given and given[name] != str(safe):
            yield f"{name}={given[name]}"
    if called == "yaml.load" and not given.get("Loader"):
        yield "yaml.load without a loader"
    if called.startswith("Auto") and called.endswith(".from_pretrained"):
        wanted = {"local_files_only": "True", "trust_remote_code": "False"}
        if "Model" in called:
            wanted["use_safetensors"] = "True"
        for name, value in wanted.items():
            if given.get(name) != value:
                yield f"{called} without {name}={value}"
    if called.split(".")[-1] in ("snapshot_download", "hf_hub_download"):
        for name in ("revision", "allow_patterns"):
            if given.get(name, "None") == "None":
                yield f"{called} without {name}"


def arguments(call: ast.Call, named: dict[str, ast.Dict]) -> dict[str, str]:
    """Source of each keyword argument, those of a named dictionary included."""
    found = {}
    for keyword in call.keywords:
        if keyword.arg is not None:
            found[keyword.arg] = ast.unparse(keyword.value)
        elif isinstance(keyword.value, ast.Name) and keyword.value.id in named:
            pairs = named[keyword.value.id]
            for key, value in zip(pairs.keys, pairs.values, strict=True):
                if isinstance(key, ast.Constant):
                    found[key.value] = ast.unparse(value)
    return found


def test_there_are_sources():
    assert len(SOURCES) > 100


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "workflow")))
def test_no_source_does_what_is_forbidden(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "from torch import load",
        "torch.load(path)",
        "np.load(path)",
        "np.savez(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=flag)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "AutoTokenizer.from_pretrained(folder, local_files_only=True)",
        "AutoTokenizer.from_pretrained(folder, trust_remote_code=False)",
        "AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)",
        "AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=True)",
        "options = {'trust_remote_code': True}\nAutoConfig.from_pretrained(folder, **options)",
        "snapshot_download(name, allow_patterns=PATTERNS)",
        "snapshot_download(name, revision=revision)",
    ],
)
def test_what_is_forbidden_is_found(line):
    assert faults(line)


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "json.loads(text)",
        "yaml.safe_load(text)",
        "ast.literal_eval(text)",
        "re.compile(text)",
        "subprocess.run(['git', 'status'], check=True)",
        "LOCAL = {'local_files_only': True, 'trust_remote_code': False}\n"
        "AutoTokenizer.from_pretrained(folder, **LOCAL)",
    ],
)
def test_what_is_allowed_is_not(line):
    assert faults(line) == []


def test_the_loader_of_the_policy_makes_nothing_but_plain_values():
    """The one use of `yaml.load`: a safe loader that also refuses a key given twice."""
    import yaml

    from shielded_recrl.audit.policy import _UniqueKeys

    assert issubclass(_UniqueKeys, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", Loader=_UniqueKeys)


def test_what_is_fetched_from_the_hub_holds_no_pickle_and_no_code():
    from shielded_recrl.explainer.fetch import PATTERNS

    assert {Path(pattern).suffix for pattern in PATTERNS} == {
        ".json",
        ".model",
        ".safetensors",
        ".txt",
    }
