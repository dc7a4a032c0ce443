"""The response LM that is trained by reward: a new LoRA adapter over the supervised LM.

    supervised   W0 + s0 B0 A0, the base with its supervised adapter merged, in fp32
    policy       supervised + s B A, a LoRA adapter of its own whose B begins at 0

So the model with its adapter off is the supervised policy: that is what PPO takes its KL to, and what
evaluation compares with. The saved adapter is A and B alone. It means nothing over the plain base;
`OVER` beside it names the base and the supervised adapter it belongs to, by the digests of their
weights, and `load_policy` puts all in its place:

    model = load_policy(base, supervised, adapter)
    with model.disable_adapter(): ...           # the supervised policy

In: folders of base, supervised adapter and adapter. Out: a PEFT model, or a folder of the adapter.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.init import new_adapter, save_adapter
from shielded_recrl.explainer.lm import load_adapter, switch_off_dropout
from shielded_recrl.explainer.settings import Precision
from shielded_recrl.files import read_json, sealed, sha256, write_json

WEIGHTS = "adapter_model.safetensors"
# Names what an adapter stands over.
OVER = "over.json"
QUANTIZED = ("int8", "nf4")


def load_policy(
    base: Path,
    supervised: Path,
    adapter: Path,
    precision: Precision = "fp32",
    device: torch.device | None = None,
    trainable: bool = False,
) -> nn.Module:
    """A trained policy; with its adapter off, the supervised one.

    Args:
        base: folder of the base LM.
        supervised: folder of the supervised adapter.
        adapter: folder that `save_policy` wrote.
        precision: precision the merged base is held in.
        device: of the model; the GPU where there is one by default.
        trainable: whether the adapter wants gradients.

    Raises:
        UserError: a folder is missing or damaged, or the adapter stands over others.
    """
    if not stands_over(adapter, base, supervised):
        raise UserError(
            f"{adapter}: not an adapter over {supervised} and {base}; give those that belong "
            "together, or train with `python -m shielded_recrl.dialogue train`"
        )
    return load_adapter(supervised_policy(base, supervised, precision, device), adapter, trainable)


def stands_over(adapter: Path, base: Path, supervised: Path) -> bool:
    """Whether an adapter was trained over this base and this supervised adapter."""
    if not (adapter / OVER).is_file() or not (supervised / WEIGHTS).is_file():
        return False
    return read_json(adapter / OVER) == _digests(base, supervised)


def _digests(base: Path, supervised: Path) -> dict[str, Any]:
    """What an adapter stands over, by its weights: other files of a base's folder change nothing."""
    return {
        "base": {path.name: sha256(path) for path in sorted(base.glob("*.safetensors"))},
        "supervised": sha256(supervised / WEIGHTS),
    }


def new_policy(
    base: Path,
    supervised: Path,
    rank: int,
    alpha: int,
    seed: int,
    precision: Precision = "fp32",
    device: torch.device | None = None,
) -> nn.Module:
    """A policy that is yet to be trained: the supervised one under an adapter that adds 0.

    Args:
        base: folder of the base LM.
        supervised: folder of the supervised adapter.
        rank: of the new adapter.
        alpha: numerator of its scale alpha / rank.
        seed: of its A.
        precision: precision the merged base is held in.
        device: of the model; the GPU where there is one by default.

    Raises:
        UserError: a folder is missing or damaged, or the two do not fit.
    """
    model = new_adapter(supervised_policy(base, supervised, precision, device), rank, alpha, seed)
    switch_off_dropout(model)
    return model


def supervised_policy(
    base: Path,
    supervised: Path,
    precision: Precision = "fp32",
    device: torch.device | None = None,
) -> nn.Module:
    """The base with the supervised adapter merged, frozen.

    Both are added up in fp32, whatever the precision the sum is held in.

    Raises:
        UserError: a folder is missing or damaged, or the two do not fit.
    """
    device = device or default_device()
    # Rounding comes after the sum, and a quantized sum is read from a folder.
    model = load_adapter(load_base(base, "fp32", device), supervised).merge_and_unload()
    if precision in QUANTIZED:
        with TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = load_base(Path(folder), precision, device)
        # The folder is gone; PEFT looks for what a model says it came from.
        model.name_or_path = str(base)
        return model
    if precision == "bf16":
        model.to(torch.bfloat16)
    model.requires_grad_(False)
    switch_off_dropout(model)
    return model


def save_policy(model: nn.Module, base: Path, supervised: Path, folder: Path) -> None:
    """Write the folder of an adapter, by rename when whole.

    Args:
        model: a policy.
        base: folder of the base LM it stands over.
        supervised: folder of the supervised adapter it stands over.
        folder: to write.
    """
    with sealed(folder) as partial:
        save_adapter(model, partial)
        config = read_json(partial / "adapter_config.json")
        # Over the plain base it would be another policy, so no loader shall find that by itself.
        write_json(partial / "adapter_config.json", config | {"base_model_name_or_path": None})
        write_json(partial / OVER, _digests(base, supervised))


@torch.no_grad()
def distance(model: nn.Module) -> dict[str, Any]:
    """How far a policy's weights are from the supervised ones.

    Returns:
        norm: Frobenius norm of all s B A. relative: over the norm of the weights they are added to.
        layers, moved: adapted layers, and those of them that differ.
    """
    from peft.tuners.lora import LoraLayer

    adapter = model.active_adapter
    squares, of_base = [], 0.0
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        squares.append(float(layer.get_delta_weight(adapter).double().square().sum()))
        weight = layer.get_base_layer().weight
        # Quantized weights are packed, so that their numbers are no norm.
        of_base += float(weight.double().square().sum()) if weight.is_floating_point() else 0.0
    norm = sum(squares) ** 0.5
    return {
        "norm": norm,
        "relative": norm / of_base**0.5 if of_base else None,
        "layers": len(squares),
        "moved": sum(square > 0 for square in squares),
    }
