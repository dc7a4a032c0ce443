"""1,000 damaged checkpoints, adapters and other weights: told in a line, or the content is the same.

Each file is written by the project and read by the project's own loader. Half of the damage is done to
its bytes: cut, flipped bits, lost blocks, lengths out of this world, edited headers, files that are
something else. The other half is whole and has no checksum, as if another program had written it: other
shapes, integers, infinities, weights missing.
"""

import json
import pickle
import random
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base, load_tokenizer
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.lm import adapter_parameters, load_adapter
from shielded_recrl.files import sealed
from shielded_recrl.ranker import sasrec
from shielded_recrl.ranker.settings import RankerSettings
from shielded_recrl.resume import Progress, load_progress, save_progress
from shielded_recrl.rl.evaluation.snapshots import check_snapshots, load_snapshots
from shielded_recrl.shield.bases import Bases
from shielded_recrl.shield.basis import random_basis
from shielded_recrl.shield.serving import load_readout, load_states
from tiny_world import make_world, tiny_llama, with_adapter

CPU = torch.device("cpu")
CASES = {
    "checkpoint": 190,
    "ranker": 150,
    "states": 160,
    "readout": 150,
    "bases": 150,
    "snapshots": 100,
    "adapter": 60,
    "base": 40,
}
# MiB that reading damaged files of some KiB may take beyond those of whole ones.
MEMORY = 300
WIDTH, RANKER_WIDTH = 32, 8


def tensor_bytes(tensors) -> dict[str, tuple]:
    """What makes tensors equal: names, types, shapes and bytes."""
    return {
        name: (str(tensor.dtype), tuple(tensor.shape), np.asarray(tensor.detach()).tobytes())
        for name, tensor in tensors.items()
    }


def as_tensors(arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


@dataclass(frozen=True)
class Subject:
    """A file or folder of the project, and what its loader makes of it."""

    path: Path
    load: Callable[[Path], Any]

    def files(self) -> list[Path]:
        """What may be damaged; weights half of the time."""
        if self.path.is_file():
            return [self.path]
        weights = next(self.path.glob("*.safetensors"))
        others = sorted(self.path.glob("*.json"))
        return [weights] * len(others) + others


def read_checkpoint(path: Path) -> Any:
    progress = load_progress(path, "owner")
    return progress.step, progress.log, tensor_bytes(progress.tensors)


def read_ranker(path: Path) -> Any:
    model, about = sasrec.load(path)
    return about, tensor_bytes(model.state_dict())


def read_states(path: Path) -> Any:
    return tensor_bytes(as_tensors(vars(load_states(path))))


def read_readout(path: Path) -> Any:
    return tensor_bytes(as_tensors(vars(load_readout(path))))


def read_bases(path: Path) -> Any:
    bases = Bases.load(path)
    return bases.groups, bases.about, tensor_bytes({k: b.matrix for k, b in bases.bases.items()})


def read_snapshots(path: Path, model: torch.nn.Module) -> Any:
    snapshots = load_snapshots(path)
    check_snapshots(snapshots, model, path)
    return {step: tensor_bytes(as_tensors(weights)) for step, weights in snapshots.items()}


def read_adapter(path: Path) -> Any:
    model = load_adapter(tiny_llama(), path)
    scaling = {n: m.scaling for n, m in model.named_modules() if hasattr(m, "scaling")}
    return str(scaling), tensor_bytes(adapter_parameters(model))


def read_base(path: Path) -> Any:
    tokenizer = load_tokenizer(path)
    model = load_base(path, "fp32", CPU)
    texts = [tokenizer.encode(text) for text in ("Liked: Harbor Road 3", "Why: a try.")]
    return texts, model.config.to_dict(), tensor_bytes(model.state_dict())


@pytest.fixture(scope="module")
def subjects(tmp_path_factory) -> dict[str, Subject]:
    """One of each kind, as the project writes it."""
    folder = tmp_path_factory.mktemp("whole")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def write(name: str, tensors) -> Path:
        with sealed(folder / f"{name}.safetensors") as file:
            save_file(tensors, file)
        return folder / f"{name}.safetensors"

    with torch.random.fork_rng():
        world = make_world(folder / "world")
        adapted = with_adapter(tiny_llama())
        ranker = sasrec.SASRec(20, RankerSettings(dim=RANKER_WIDTH, max_length=6))
    with sealed(folder / "base") as base:
        shutil.copytree(world.base, base)
    with sealed(folder / "adapter") as adapter:
        save_adapter(adapted, adapter)
    checkpoint = folder / "checkpoint.safetensors"
    tensors = {"weight/a": normal(3, 4), "adam/a": normal(3, 4).double(), "rng": torch.arange(9)}
    save_progress(checkpoint, Progress(7, [{"step": 1, "reward": 0.3}], tensors), "owner")
    about = sasrec.Checkpoint(RankerSettings(dim=RANKER_WIDTH, max_length=6), 20, "0" * 64, 3, 5)
    sasrec.save(folder / "ranker.safetensors", ranker.state_dict(), about)
    states = {"items": 21, "valid_users": 25, "test_users": 25}
    bases = {"a": random_basis(WIDTH, 5, generator), "b": random_basis(WIDTH, 30, generator)}
    Bases({"q": "a", "k": "a", "up": "b"}, bases, {"energy": 0.99}).save(
        folder / "bases.safetensors"
    )
    weights = {
        f"step-{step:06d}/{name}": weight.detach() + step
        for step in (4, 8)
        for name, weight in adapter_parameters(adapted).items()
    }
    return {
        "checkpoint": Subject(checkpoint, read_checkpoint),
        "ranker": Subject(folder / "ranker.safetensors", read_ranker),
        "states": Subject(
            write("states", {name: normal(rows, RANKER_WIDTH) for name, rows in states.items()}),
            read_states,
        ),
        "readout": Subject(
            write("readout", {"weight": normal(RANKER_WIDTH, WIDTH), "gamma": torch.tensor(0.5)}),
            read_readout,
        ),
        "bases": Subject(folder / "bases.safetensors", read_bases),
        "snapshots": Subject(write("snapshots", weights), partial(read_snapshots, model=adapted)),
        "adapter": Subject(folder / "adapter", read_adapter),
        "base": Subject(folder / "base", read_base),
    }


class Trap:
    """Leaves a trace if it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (self.trace.touch, ())


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    # The header is small beside the tensors, and as worth a visit.
    end = len(data) if rng.random() < 0.5 else min(len(data), 600)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def lost_block(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    size = min(rng.choice([1, 64, 512, 4096]), len(data) - start)
    block = bytes(size) if rng.random() < 0.5 else rng.randbytes(size)
    return data[:start] + block + data[start + size :]


def moved(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return rng.choice([data + data, data[start:], data[:start] + b"\n" + data[start:]])


def claimed_length(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice([0, 1, len(data), 99_999_999, 2**31, 2**40, 2**63 - 1, 2**64 - 1])
    return length.to_bytes(8, "little") + data[8:]


def edited_header(data: bytes, rng: random.Random) -> bytes:
    """Another number or name in the header, its length made to fit."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size] if size < len(data) else data[:600]
    places = list(re.finditer(rb"\d+|\"[A-Za-z_.0-9]+\"", header))
    if not places:
        return b"{}" + data
    place = rng.choice(places)
    new = rng.choice([b"0", b"-1", b"1e400", b"4294967296", b"9" * 30, b'"F16"', b'"x"', b"null"])
    header = header[: place.start()] + new + header[place.end() :]
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


DAMAGE = [cut, empty, flipped, flipped, flipped, lost_block, moved, claimed_length, edited_header]


def infinite(tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].clone().double()
    tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = rng.choice(
        [float("nan"), float("inf"), float("-inf")]
    )


def whole_numbers(tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].to(rng.choice([torch.int8, torch.int64, torch.uint8, torch.bool]))


def reshaped(tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name][None].clone()


def narrower(tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].reshape(-1)[:-1].clone()


def missing(tensors, name: str, rng: random.Random) -> None:
    del tensors[name]


def renamed(tensors, name: str, rng: random.Random) -> None:
    tensors[f"{name}x"] = tensors.pop(name)


REWRITES = [infinite, whole_numbers, reshaped, narrower, missing, renamed]


def rewrite(path: Path, rng: random.Random) -> str:
    """Write other tensors by safetensors itself: whole, and without a checksum."""
    with safe_open(path, "pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != "seal"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # A base may be stored in integers: quantised.
    changes = [one for one in REWRITES if path.name != "model.safetensors" or one != whole_numbers]
    change, name = rng.choice(changes), rng.choice(sorted(tensors))
    change(tensors, name, rng)
    save_file(tensors, path, metadata)
    return f"{change.__name__} {name}"


def replace(path: Path, others: list[Path], trace: Path, rng: random.Random) -> str:
    """Put something else into the place of a file."""
    kind = rng.choice(["other", "pickle", "torch", "json", "folder"])
    if kind == "other":
        shutil.copyfile(rng.choice(others), path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": Trap(trace)}))
    elif kind == "torch":
        torch.save({"weight": Trap(trace)}, path)
    elif kind == "json":
        path.write_text(json.dumps(rng.choice([{}, [], None, {"a": [1, 2]}, "text", 3])))
    else:
        path.unlink()
        path.mkdir()
    return kind


def damage(subject: Subject, others: list[Path], trace: Path, rng: random.Random) -> str:
    """Damage one file of a subject; says how."""
    path = rng.choice(subject.files())
    if path.suffix == ".safetensors" and rng.random() < 0.45:
        return f"{path.name}: {rewrite(path, rng)}"
    if rng.random() < 0.15:
        return f"{path.name}: {replace(path, others, trace, rng)}"
    how = rng.choice(DAMAGE)
    path.write_bytes(how(path.read_bytes(), rng))
    return f"{path.name}: {how.__name__}"


def copied(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("kind", CASES)
def test_damage_is_told_or_harmless(subjects, kind, tmp_path):
    whole = subjects[kind]
    expected = whole.load(whole.path)
    others = [file for name, some in subjects.items() if name != kind for file in some.files()]
    subject = Subject(tmp_path / whole.path.name, whole.load)
    trace, told = tmp_path / "trace", 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(CASES[kind]):
        rng = random.Random(f"{kind} {case}")
        copied(whole.path, subject.path)
        how = f"{kind}, case {case}: {damage(subject, others, trace, rng)}"
        try:
            found = subject.load(subject.path)
        except UserError as error:
            line, found = str(error), None
        except BaseException as error:
            error.add_note(how)
            raise
        if found is None:
            assert str(subject.path) in line, how
            assert "\n" not in line, how
            told += 1
        else:
            assert found == expected, how
        removed(subject.path)
    assert not trace.exists()
    assert told > 0.9 * CASES[kind]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY * 1024


def test_there_are_a_thousand():
    assert sum(CASES.values()) >= 1000
