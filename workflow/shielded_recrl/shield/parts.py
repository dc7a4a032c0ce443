"""What the job of a shard leaves behind for the job that gathers: tensors, and whose they are.

A folder: safetensors files, and index.json with the label of the part, facts to hand on, and which
file holds which tensor. In: tensors, some at a time. Out: the same, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shielded_recrl.errors import UserError
from shielded_recrl.files import intact, sealed
from shielded_recrl.json_parts import JsonPart, read_part, write_part
from shielded_recrl.shards import Label, in_order

INDEX = "index.json"


class Index(JsonPart):
    """The content of index.json."""

    facts: dict[str, Any]
    tensors: dict[str, int]  # name -> number of the file


class Part(NamedTuple):
    """A part that was found whole: its index, and its tensors for the asking."""

    folder: Path
    index: Index

    def tensor(self, name: str) -> Tensor | None:
        """A tensor; None where the shard had nothing for it.

        Raises:
            UserError: its file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        if name not in self.index.tensors:
            return None
        path = _file(self.folder, self.index.tensors[name])
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: not a readable safetensors file ({error}); delete its folder and run its "
                "job again"
            ) from error


def save_part(
    folder: Path,
    label: Label,
    device: torch.device,
    tensors: Iterable[Mapping[str, Tensor]],
    facts: Mapping[str, Any],
) -> None:
    """Write a part, whole or not at all.

    Args:
        folder: where it goes.
        label: whose it is.
        device: where the LM ran.
        tensors: by name; those given together are in memory together, and go to one file.
        facts: what to hand on; read when all tensors are written.
    """
    from safetensors.torch import save_file

    files: dict[str, int] = {}
    with sealed(folder) as partial:
        partial.mkdir()
        for number, some in enumerate(tensors):
            save_file(
                {name: one.contiguous() for name, one in some.items()}, _file(partial, number)
            )
            files |= dict.fromkeys(some, number)
        index = Index(label=label, device=device.type, facts=dict(facts), tensors=files)
        write_part(partial / INDEX, index)


def load_parts(folders: Sequence[Path], owner: str) -> list[Part]:
    """The parts of one whole, in the order of their shards, their tensors yet to be read.

    Args:
        folders: of the parts, in any order.
        owner: digest of what the whole is to be made from.

    Raises:
        UserError: a part is missing or damaged, or the parts make no such whole.
    """
    found = {folder: read_part(folder / INDEX, Index) for folder in folders}
    ordered = in_order({folder: index.label for folder, index in found.items()}, owner)
    first, *others = [folder for folder in ordered if found[folder].tensors] or ordered[:1]
    for folder in others:
        one, other = found[first], found[folder]
        if (one.device, one.facts) != (other.device, other.facts):
            raise UserError(
                f"{folder}: made on another kind of machine or from other weights than {first}; "
                "delete one of them and run its job again where the other ran"
            )
    return [Part(intact(folder), found[folder]) for folder in ordered]


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:04}.safetensors"
