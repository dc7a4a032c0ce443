"""Collect the bases: a subspace of each module's inputs on the protected prompts.

In: base LM, protected users' serving prefixes, or what shards of `collect` made of them. Out:
bases.safetensors with one `Basis` for each group of modules that share an input, and metadata that
says which module reads which group.

The basis of a group holds the leading eigenvectors of the second moment of its inputs; see `moments`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from shielded_recrl.errors import UserError
from shielded_recrl.files import intact, sealed
from shielded_recrl.shards import pairwise
from shielded_recrl.shield.basis import Basis, random_basis
from shielded_recrl.shield.collect import (
    MomentInputs,
    facts_of,
    moments_by_blocks,
    protected_prefixes,
    score_head,
)
from shielded_recrl.shield.digests import tensors_sha256
from shielded_recrl.shield.moments import Head, Moment, Prompts
from shielded_recrl.shield.parts import Part, load_parts
from shielded_recrl.shield.settings import BasisSettings, Scope, Weight


def main(
    *,
    inputs: Annotated[MomentInputs, tyro.conf.arg(name="")],
    out: Path,
    settings: Annotated[BasisSettings, tyro.conf.arg(name="")],
    parts: tuple[Path, ...] = (),
    revision: str | None = None,
) -> None:
    """Collect the bases of the protected prefixes.

    Args:
        inputs: what the moments are made from.
        out: bases.safetensors to write.
        settings: what the bases span.
        parts: what `shield collect` wrote, all shards; without any the LM runs here.
        revision: commit of the base's hub repository, noted in the file.
    """
    from shielded_recrl.explainer.base import default_device, load_base

    head, seed = score_head(settings.weight, inputs.readout, inputs.ranker), inputs.seed
    serving = inputs.serving(inputs.roles, seed)
    device, about = default_device(), {"revision": revision}
    if parts:
        found = load_parts(parts, inputs.digest(settings.moments))
        bases = joined_bases(found, settings, seed, device, about)
    else:
        bases = collect_bases(
            load_base(inputs.base, inputs.precision, device),
            protected_prefixes(serving),
            energy=settings.energy,
            rank=settings.rank,
            weight=settings.weight,
            head=head,
            seed=seed,
            about=about,
        )
    bases.save(out)
    ranks = ", ".join(f"{basis.rank}/{basis.width}" for basis in bases.bases.values())
    print(
        f"{out}: {len(serving.roles.protected)} protected prefixes, rank k/d of each input: {ranks}"
    )


@dataclass(frozen=True)
class Bases:
    """The bases of a base LM.

    Attributes:
        groups: module name in the base LM -> group.
        bases: group -> basis, on the CPU. A group is named after the first of its modules to run.
        about: what they were collected from: base_sha256, precision, revision, prompts_sha256,
            tokens (number of prompt tokens), and energy, rank, weight and scope as asked.
    """

    groups: Mapping[str, str]
    bases: Mapping[str, Basis]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modules(self) -> dict[str, Basis]:
        """Module name -> its basis."""
        return {module: self.bases[group] for module, group in self.groups.items()}

    def randomised(self, seed: int) -> Bases:
        """Uniformly random subspaces of equal rank: the control of the study."""
        generator = torch.Generator().manual_seed(seed)
        bases = {
            group: random_basis(basis.width, basis.rank, generator)
            for group, basis in sorted(self.bases.items())
        }
        return replace(self, bases=bases)

    def save(self, path: Path) -> None:
        """Write a safetensors file; equal bases give equal bytes."""
        from safetensors.torch import save_file

        tensors = {group: basis.matrix.cpu() for group, basis in self.bases.items()}
        about = {
            "about": dict(self.about),
            "groups": dict(self.groups),
            "complement": [group for group, basis in self.bases.items() if basis.complement],
            "captured": {group: basis.energy for group, basis in self.bases.items()},
            "sha256": tensors_sha256(tensors.items()),
        }
        # One key: safetensors writes several in an order that differs from run to run.
        metadata = {"bases": json.dumps(about, sort_keys=True)}
        with sealed(path) as partial:
            save_file(tensors, partial, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Bases:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(intact(path), framework="pt") as file:
                stored = json.loads(file.metadata()["bases"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            bases = {
                group: Basis(tensors[group], group in stored["complement"], energy)
                for group, energy in stored["captured"].items()
            }
            if tensors_sha256(tensors.items()) != stored["sha256"]:
                raise ValueError("its bases are not those that were written")
            loaded = cls(stored["groups"], bases, stored["about"])
            loaded.modules  # noqa: B018  a module without a basis raises KeyError
            return loaded
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: not a readable bases file ({error}); delete it and run again"
            ) from error


def collect_bases(
    model: nn.Module,
    prompts: Prompts,
    *,
    energy: float = 0.999,
    rank: int | None = None,
    weight: Weight = "plain",
    scope: Scope = "all",
    head: Head | None = None,
    seed: int = 0,
    batch_size: int = 32,
    layers_at_a_time: int = 4,
    probes: int = 4,
    about: Mapping[str, Any] | None = None,
) -> Bases:
    """Bases of the inputs of every linear layer in the decoder blocks.

    Passes over the prompts once for every `layers_at_a_time` blocks, so that the device
    holds no more than their second moments; partial sums of them wait in main memory.

    Args:
        model: causal LM in any precision, or a PEFT model, whose adapter is off meanwhile.
        prompts: token ids; h is read at the last one of each.
        energy: share of the trace of C a basis captures, in (0, 1]; 1 keeps the numerical rank,
            the complete span.
        rank: directions of each basis, at most the numerical rank; overrides `energy`.
        weight: "plain" or "score".
        scope: "all" decoder blocks or "last_block".
        head: hidden states [n, d] -> scores [n, I]; needed by weight "score".
        seed: seed of the probes and of the randomised decomposition.
        batch_size: prompts in a forward pass.
        layers_at_a_time: decoder blocks in a pass over the prompts.
        probes: Hutchinson probes of each prompt that estimate ||d score / d y_t||^2.
        about: facts to note, such as the revision of the base.

    Raises:
        UserError: no prompts or an empty one, "score" without a head, or a model whose blocks
            cannot be found or read.
    """
    prompts = [list(map(int, prompt)) for prompt in prompts]
    if not prompts or not all(prompts):
        raise UserError("bases: need at least one prompt, and no empty one")
    if weight == "score" and head is None:
        raise UserError("bases: weight score needs a head; pass head=...")
    if rank is None and not 0 < energy <= 1:
        raise UserError(f"bases: energy is {energy:g}; expected a share in (0, 1]")
    facts = facts_of(model, prompts, weight, scope)
    groups: dict[str, str] = {}

    def collected() -> Iterator[tuple[str, Moment]]:
        for moments, found in moments_by_blocks(
            model,
            prompts,
            weight=weight,
            complete=rank is None and energy >= 1,
            scope=scope,
            head=head,
            seed=seed,
            batch_size=batch_size,
            layers_at_a_time=layers_at_a_time,
            probes=probes,
        ):
            groups.update(found)
            for group in list(moments):
                yield group, moments.pop(group)

    device = next(model.parameters()).device
    bases = leading_bases(collected(), energy, rank, seed, device)
    asked = {"revision": None, "energy": energy, "rank": rank}
    return Bases(groups, bases, facts | asked | dict(about or {}))


def joined_bases(
    parts: Sequence[Part],
    settings: BasisSettings,
    seed: int,
    device: torch.device,
    about: Mapping[str, Any],
) -> Bases:
    """The bases of `collect_bases`, to the bit, from what shards collected.

    The moments of one group are in memory at a time: log2(shards) + 1 of them.

    Args:
        parts: of all shards, in their order.
        settings: what the bases span.
        seed: seed of the randomised decomposition.
        device: where moments are decomposed.
        about: facts to note.

    Raises:
        UserError: a part is damaged, or inputs are not finite.
    """
    facts = next(part.index.facts for part in parts if part.index.tensors)

    def joined() -> Iterator[tuple[str, Moment]]:
        for group, width, rows in facts["inputs"]:
            moment = Moment(width, rows, settings.moments.complete)
            moment.hold(pairwise((part.tensor(group) for part in parts), moment.joined))
            yield group, moment

    bases = leading_bases(joined(), settings.energy, settings.rank, seed, device)
    asked = {"energy": settings.energy, "rank": settings.rank}
    return Bases(facts["groups"], bases, facts["about"] | asked | dict(about))


def leading_bases(
    moments: Iterable[tuple[str, Moment]],
    energy: float,
    rank: int | None,
    seed: int,
    device: torch.device,
) -> dict[str, Basis]:
    """The basis of each moment, taken one by one; see `collect_bases`."""
    bases = {}
    for group, moment in moments:
        if not moment.finite():
            raise UserError(
                f"bases: inputs of {group} are not finite; serve the base in a wider "
                "precision, or mend its weights"
            )
        bases[group] = moment.leading(energy, rank, seed, device)
    return bases
