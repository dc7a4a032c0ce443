"""Collect the bases: a subspace of each module's inputs on the protected prompts.

In: base LM, protected users' serving prefixes. Out: bases.safetensors with one `Basis` for each
group of modules that share an input, and metadata that says which module reads which group.

The basis of a group holds the leading eigenvectors of the second moment of its inputs; see `moments`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import blocks, frozen
from shielded_recrl.explainer.settings import Precision, PromptSettings
from shielded_recrl.files import atomic
from shielded_recrl.shield.basis import Basis, random_basis
from shielded_recrl.shield.moments import (
    Head,
    Prompts,
    belongs_to_adapter,
    second_moments,
)
from shielded_recrl.shield.settings import BasisSettings, RoleSettings, Scope


def main(
    *,
    data: Path,
    base: Path,
    templates: Path,
    out: Path,
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")],
    roles: Annotated[RoleSettings, tyro.conf.arg(name="")],
    settings: Annotated[BasisSettings, tyro.conf.arg(name="")],
    readout: Path | None = None,
    ranker: Path | None = None,
    precision: Precision = "fp32",
    revision: str | None = None,
    seed: int = 42,
) -> None:
    """Collect the bases of the protected prefixes.

    Args:
        data: folder of the prepared dataset.
        base: folder of the base LM.
        templates: folder of the prompt templates.
        out: bases.safetensors to write.
        prompt: prompt lengths.
        roles: how many users are protected and held out.
        settings: what the bases span.
        readout: readout.safetensors, needed by the score weight.
        ranker: states.safetensors of the ranker, needed by the score weight.
        precision: precision the base is served in.
        revision: commit of the base's hub repository, noted in the file.
        seed: seed of the draw of protected users and of the probes.
    """
    from shielded_recrl.explainer.base import default_device, load_base
    from shielded_recrl.shield.serving import RankingHead, Serving, load_readout, load_states

    head = None
    if settings.weight == "score":
        if readout is None or ranker is None:
            raise UserError("bases: weight score needs --readout and --ranker")
        # Without gamma: a scale changes no basis, and gamma may be 0.
        weight = load_readout(readout).weight
        head = RankingHead(
            torch.from_numpy(load_states(ranker).items[1:]), torch.from_numpy(weight), 1.0
        )
    serving = Serving.load(data, base, templates, prompt, roles, seed)
    bases = collect_bases(
        load_base(base, precision, default_device()),
        [serving.prefix(user) for user in serving.roles.protected],
        energy=settings.energy,
        rank=settings.rank,
        weight=settings.weight,
        head=head,
        seed=seed,
        about={"revision": revision},
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
        with atomic(path) as partial:
            save_file(tensors, partial, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Bases:
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
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
    weight: Literal["plain", "score"] = "plain",
    scope: Scope = "all",
    head: Head | None = None,
    seed: int = 0,
    batch_size: int = 32,
    layers_at_a_time: int = 4,
    probes: int = 4,
    about: Mapping[str, Any] | None = None,
) -> Bases:
    """Bases of the inputs of every linear layer in the decoder blocks.

    Passes over the prompts once for every `layers_at_a_time` blocks, so that no more than their
    second moments are in memory.

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
    from shielded_recrl.explainer.lm import causal_lm

    prompts = [list(map(int, prompt)) for prompt in prompts]
    if not prompts or not all(prompts):
        raise UserError("bases: need at least one prompt, and no empty one")
    if weight == "score" and head is None:
        raise UserError("bases: weight score needs a head; pass head=...")
    if rank is None and not 0 < energy <= 1:
        raise UserError(f"bases: energy is {energy:g}; expected a share in (0, 1]")
    count = len(blocks(model))
    first = count - 1 if scope == "last_block" else 0
    groups: dict[str, str] = {}
    bases: dict[str, Basis] = {}
    adapter_off = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with frozen(model), adapter_off:
        digest = weights_sha256(model)
        for start in range(first, count, layers_at_a_time):
            moments, found = second_moments(
                model,
                prompts,
                range(start, min(start + layers_at_a_time, count)),
                head=head if weight == "score" else None,
                seed=seed,
                batch_size=batch_size,
                probes=probes,
                complete=rank is None and energy >= 1,
            )
            groups |= found
            for group in list(moments):
                moment = moments.pop(group)
                if not moment.finite():
                    raise UserError(
                        f"bases: inputs of {group} are not finite; serve the base in a wider "
                        "precision, or mend its weights"
                    )
                bases[group] = moment.leading(energy, rank, seed)
        facts = {
            "base_sha256": digest,
            "precision": precision_of(causal_lm(model)),
            "revision": None,
            "prompts_sha256": prompts_sha256(prompts),
            "tokens": sum(map(len, prompts)),
            "energy": energy,
            "rank": rank,
            "weight": weight,
            "scope": scope,
        }
    return Bases(groups, bases, facts | dict(about or {}))


def prompts_sha256(prompts: Sequence[Sequence[int]]) -> str:
    """Hex digest of token ids, in their order."""
    text = json.dumps([[int(token) for token in row] for row in prompts])
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(model: nn.Module) -> str:
    """Hex digest of the names and bytes of a base LM's weights.

    A PEFT model has the digest of its base. Quantised weights count as packed, with their state.

    Raises:
        UserError: a forward pass in evaluation mode repacked a 4-bit weight for a CPU. That rounds
            its scales, and reading it back with `state_dict` would ruin it.
    """
    from shielded_recrl.explainer.lm import causal_lm

    lm = causal_lm(model)
    for name, module in lm.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise UserError(
                f"{name}: bitsandbytes repacked this 4-bit weight in a forward pass in evaluation "
                "mode; load the base again and call explainer.lm.switch_off_dropout on it"
            )
    return tensors_sha256(
        (name.replace(".base_layer.", "."), weight)
        for name, weight in lm.state_dict().items()
        if not belongs_to_adapter(name)
    )


def tensors_sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hex digest of names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def precision_of(lm: nn.Module) -> str:
    """fp32, bf16, int8, nf4, ..."""
    for module in lm.modules():
        if type(module).__name__ == "Linear8bitLt":
            return "int8"
        if hasattr(module, "weight") and hasattr(module.weight, "quant_type"):
            return module.weight.quant_type
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return names.get(lm.dtype, str(lm.dtype).removeprefix("torch."))
