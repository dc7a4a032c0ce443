"""Collect the bases: an orthonormal basis of each module's inputs on the protected prefixes.

In: base LM, protected users' serving prefixes. Out: bases.safetensors with one Q [d_in, k] for
each group of modules that share an input (q, k, v; gate, up), and metadata that says which module
reads which group. k is the smallest rank that captures the asked share of the input energy, that
is of the trace of the second moment sum_t x_t x_t^T.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.settings import Precision, PromptSettings
from shielded_recrl.files import atomic
from shielded_recrl.shield.settings import RoleSettings


def main(
    *,
    data: Path,
    base: Path,
    templates: Path,
    out: Path,
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")],
    roles: Annotated[RoleSettings, tyro.conf.arg(name="")],
    precision: Precision = "fp32",
    energy: float = 0.999,
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
        precision: precision the base is served in.
        energy: share of input energy the bases capture.
        seed: seed of the draw of protected users.
    """
    from shielded_recrl.explainer.base import default_device, load_base
    from shielded_recrl.shield.serving import Serving

    serving = Serving.load(data, base, templates, prompt, roles, seed)
    model = load_base(base, precision, default_device())
    prefixes = [serving.prefix(user) for user in serving.roles.protected]
    moments, groups = input_moments(model, prefixes)
    bases = {group: leading_basis(moment, energy) for group, moment in moments.items()}
    save_bases(out, bases, groups, energy=energy, precision=precision, prefixes=prefixes)
    ranks = ", ".join(f"{q.shape[1]}/{q.shape[0]}" for q in bases.values())
    print(f"{out}: {len(prefixes)} protected prefixes, rank k/d of each input: {ranks}")


@torch.no_grad()
def input_moments(
    model: nn.Module, prefixes: Sequence[Sequence[int]], batch_size: int = 32
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Second moments of the inputs of every linear layer in the decoder blocks.

    Returns:
        moments: group name -> sum_t x_t x_t^T, float64 [d_in, d_in] on the CPU. A group is named
            after its first module.
        groups: module name -> group name; modules fed the same tensor share a group.
    """
    from shielded_recrl.explainer.lm import causal_lm, trunk

    device = next(model.parameters()).device
    head = causal_lm(model).get_output_embeddings()
    linear = {
        name: module
        for name, module in causal_lm(model).named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    moments: dict[str, Tensor] = {}
    groups: dict[str, str] = {}
    inputs: dict[str, Tensor] = {}
    mask = torch.empty(0)

    def observe(name: str):
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            (x,) = arguments
            group = next((g for g, seen in inputs.items() if seen is x), name)
            groups[name] = group
            if group not in inputs:
                inputs[group] = x
                rows = x[mask].double()
                moment = (rows.T @ rows).cpu()
                moments[group] = moments[group] + moment if group in moments else moment

        return hook

    handles = [module.register_forward_pre_hook(observe(name)) for name, module in linear.items()]
    try:
        for start in range(0, len(prefixes), batch_size):
            batch = prefixes[start : start + batch_size]
            longest = max(map(len, batch))
            ids = torch.tensor([list(row) + [0] * (longest - len(row)) for row in batch])
            lengths = torch.tensor([len(row) for row in batch])
            mask = (torch.arange(longest)[None, :] < lengths[:, None]).to(device)
            inputs.clear()
            trunk(model)(input_ids=ids.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return moments, groups


def leading_basis(moment: Tensor, energy: float) -> Tensor:
    """Orthonormal basis [d, k], float32, of the directions that hold `energy` of the trace.

    With energy 1 all directions of the numerical rank are kept: the complete span.

    Args:
        moment: symmetric positive semi-definite [d, d], float64.
        energy: share in (0, 1].
    """
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if energy >= 1:
        rank = int(
            (values > values[0] * moment.shape[0] * torch.finfo(torch.float32).eps ** 2).sum()
        )
    else:
        captured = values.cumsum(0) / values.sum()
        rank = int((captured < energy).sum()) + 1
    return vectors[:, :rank].float().contiguous()


def save_bases(
    path: Path,
    bases: Mapping[str, Tensor],
    groups: Mapping[str, str],
    *,
    energy: float,
    precision: str,
    prefixes: Sequence[Sequence[int]],
) -> None:
    """Write bases with the metadata that ties them to base, precision and prompts."""
    from safetensors.torch import save_file

    prompts = json.dumps([list(prefix) for prefix in prefixes])
    about = {
        "groups": dict(groups),
        "energy": energy,
        "precision": precision,
        "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
    }
    # One key: safetensors writes several in an order that differs from run to run.
    metadata = {"bases": json.dumps(about, sort_keys=True)}
    with atomic(path) as partial:
        save_file(dict(bases), partial, metadata=metadata)


def load_bases(path: Path) -> dict[str, Tensor]:
    """Read bases.safetensors: module name -> Q [d_in, k].

    Raises:
        UserError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            groups = json.loads(file.metadata()["bases"])["groups"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {module: tensors[group] for module, group in groups.items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a readable bases file ({error}); delete it and run again"
        ) from error
