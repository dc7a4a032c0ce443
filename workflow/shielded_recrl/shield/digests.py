"""Digests of what a shield was made from: prompts, weights, tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import causal_lm
from shielded_recrl.shield.moments import belongs_to_adapter


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
