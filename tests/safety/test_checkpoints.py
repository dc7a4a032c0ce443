"""Hostile checkpoints: a pickle in the place of any file the project loads is never executed."""

import io
import json
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from shielded_recrl.audit.settings import AuditSettings
from shielded_recrl.audit.toxicity import load_scorer
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base, load_tokenizer
from shielded_recrl.explainer.lm import load_adapter
from shielded_recrl.parquet import read_parquet
from shielded_recrl.ranker import sasrec
from shielded_recrl.resume import load_progress
from shielded_recrl.rl.evaluation import bertscore
from shielded_recrl.rl.evaluation.bertscore import BERTScoreModel, check_bertscore
from shielded_recrl.rl.evaluation.snapshots import load_snapshots
from shielded_recrl.rl.rewards.critic import LearnedCritic
from shielded_recrl.shield.bases import Bases
from shielded_recrl.shield.serving import load_readout, load_states
from tiny_world import make_world, tiny_llama

CPU = torch.device("cpu")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "book"]


class Trap:
    """What runs code as it is unpickled, and leaves a trace of it."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (self.trace.touch, ())


def plain(trap: Trap) -> bytes:
    return pickle.dumps({"weight": trap})


def of_torch(trap: Trap) -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": trap}, stream)
    return stream.getvalue()


def of_numpy(trap: Trap) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([trap], dtype=object), allow_pickle=True)
    return stream.getvalue()


# How a pickle is written, and what would run it.
KINDS = {
    plain: pickle.loads,
    of_torch: lambda data: torch.load(io.BytesIO(data), weights_only=False),
    of_numpy: lambda data: np.load(io.BytesIO(data), allow_pickle=True),
}
# What reads a single file, and the name that file has.
FILES: dict[str, Callable[[Path], object]] = {
    "model.safetensors": sasrec.load,
    "states.safetensors": load_states,
    "readout.safetensors": load_readout,
    "bases.safetensors": Bases.load,
    "snapshots.safetensors": load_snapshots,
    "checkpoint.safetensors": lambda path: load_progress(path, "owner"),
    "train.parquet": lambda path: read_parquet(path, {}),
}
# What reads a folder of a model, which of its files hold the weights, and in which folder it is.
FOLDERS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "base": ("lm", "model", lambda folder: load_base(folder, "fp32", CPU)),
    "adapter": ("adapter", "adapter_model", lambda folder: load_adapter(tiny_llama(), folder)),
    "scorer": ("classifier", "model", lambda path: load_scorer(AuditSettings(scorer=str(path)))),
    "critic": ("classifier", "model", LearnedCritic.load),
    "bertscore": (
        "classifier",
        "model",
        lambda folder: check_bertscore(BERTScoreModel(folder, 1)),
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Folders of an LM, an adapter of it, and a classifier, all of random weights."""
    folder = tmp_path_factory.mktemp("models")
    world = make_world(folder)
    world.base.rename(folder / "lm")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(
        vocab_size=len(WORDS),
        num_hidden_layers=1,
        id2label={0: "toxic"},
        label2id={"toxic": 0},
        problem_type="multi_label_classification",
        **sizes,
    )
    BertForSequenceClassification(config).save_pretrained(folder / "classifier")
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    BertTokenizer(vocab=vocabulary, model_max_length=64).save_pretrained(folder / "classifier")
    return folder


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Trap:
    # The check of a BERTScore model comes before its package is needed.
    monkeypatch.setattr(bertscore, "find_spec", lambda name: name)
    return Trap(tmp_path / "trace")


def refused(load: Callable[[Path], object], path: Path, trap: Trap) -> str:
    """The one line by which a path is refused; nothing was executed meanwhile."""
    with pytest.raises(UserError) as error:
        load(path)
    assert not trap.trace.exists(), "what was planted has been executed"
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_trap_works(trap, kind):
    KINDS[kind](kind(trap))
    assert trap.trace.exists()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_the_place_of_a_file(tmp_path, trap, name, kind):
    path = tmp_path / name
    path.write_bytes(kind(trap))
    refused(FILES[name], path, trap)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_model_that_is_whole_is_read(models, trap, name):
    """The folders below differ from these by what is planted alone."""
    source, _, load = FOLDERS[name]
    load(models / source)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_pickle_called_safetensors(models, tmp_path, trap, name, kind):
    source, weights, load = FOLDERS[name]
    folder = shutil.copytree(models / source, tmp_path / name)
    (folder / f"{weights}.safetensors").write_bytes(kind(trap))
    refused(load, folder, trap)


PICKLED = {"model": "pytorch_model.bin", "adapter_model": "adapter_model.bin"}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_pickle_in_the_place_of_safetensors(models, tmp_path, trap, name, monkeypatch):
    """Not even the restricted unpickler of torch is asked."""
    source, weights, load = FOLDERS[name]
    folder = shutil.copytree(models / source, tmp_path / name)
    (folder / f"{weights}.safetensors").unlink()
    (folder / PICKLED[weights]).write_bytes(of_torch(trap))
    (folder / f"{weights}.pt").write_bytes(of_torch(trap))
    asked = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: asked.append(args))
    refused(load, folder, trap)
    assert asked == []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_pickle_beside_safetensors_is_left_alone(models, tmp_path, trap, name, monkeypatch):
    source, weights, load = FOLDERS[name]
    folder = shutil.copytree(models / source, tmp_path / name)
    (folder / PICKLED[weights]).write_bytes(of_torch(trap))
    asked = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: asked.append(args))
    load(folder)
    assert asked == []
    assert not trap.trace.exists()


CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Own: pass\n"


@pytest.mark.parametrize(
    ("file", "key", "load"),
    [
        ("config.json", "AutoModelForCausalLM", lambda folder: load_base(folder, "fp32", CPU)),
        ("config.json", "AutoConfig", lambda folder: load_base(folder, "fp32", CPU)),
        ("tokenizer_config.json", "AutoTokenizer", load_tokenizer),
        ("config.json", "AutoConfig", lambda path: check_bertscore(BERTScoreModel(path, 1))),
        ("config.json", "AutoModelForSequenceClassification", LearnedCritic.load),
        (
            "config.json",
            "AutoModelForSequenceClassification",
            lambda path: load_scorer(AuditSettings(scorer=str(path))),
        ),
    ],
    ids=["model", "config", "tokenizer", "bertscore", "critic", "scorer"],
)
def test_code_that_a_folder_brings_along(models, tmp_path, trap, monkeypatch, file, key, load):
    """Custom code is refused, also of a kind of model nobody knows, and nobody is asked about it."""
    folder = shutil.copytree(models / "lm", tmp_path / "lm")
    (folder / "own.py").write_text(CODE.format(str(trap.trace)))
    about = json.loads((folder / file).read_text())
    named = "own.Own" if key != "AutoTokenizer" else ["own.Own", None]
    about |= {"auto_map": {key: named}, "model_type": "own", "tokenizer_class": "Own"}
    (folder / file).write_text(json.dumps(about))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question, where nobody is"))
    refused(load, folder, trap)


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_config": {"hidden_size": 8}, "megatron_core": "own"},
        {
            "peft_type": "MULTITASK_PROMPT_TUNING",
            "prompt_tuning_init": "AVERAGE_SOURCE_TASKS",
            "prompt_tuning_init_state_dict_path": "trap.bin",
            "num_virtual_tokens": 2,
        },
    ],
    ids=["module", "pickle"],
)
def test_what_an_adapter_names_is_not_loaded(models, tmp_path, trap, monkeypatch, change):
    """PEFT would import the module, and unpickle the file, that an adapter's config asks for."""
    folder = shutil.copytree(models / "adapter", tmp_path / "adapter")
    (folder / "own.py").write_text(CODE.format(str(trap.trace)))
    (folder / "trap.bin").write_bytes(of_torch(trap))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.chdir(folder)
    # As `python -m` has it.
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    asked = []
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: asked.append(args))
    refused(lambda path: load_adapter(tiny_llama(), path), folder, trap)
    assert asked == []


# That of the scorer is told from a repository by how it begins, and config wants a commit of those.
@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "scorer"])
def test_a_folder_that_is_missing_is_looked_for_nowhere_else(trap, monkeypatch, tmp_path, name):
    """Its name could be that of a repository on the hub, of which nobody named a commit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked")
    )
    refused(FOLDERS[name][2], Path("somebody/some-model"), trap)
