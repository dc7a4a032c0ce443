"""Initialise a LoRA adapter (Hu et al. 2022): lora_A Kaiming-uniform, lora_B zero.

In: a base LM. Out: a plain PEFT folder (adapter_model.safetensors, adapter_config.json). The adapter
acts on all linear layers of the decoder blocks, or of the last block alone. An activated adapter
(Greenewald et al. 2025) names the tokens every request begins with, and acts from there on.
"""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.prompts import Item, request_text
from shielded_recrl.explainer.settings import Precision
from shielded_recrl.files import named, sealed

if TYPE_CHECKING:
    from torch import nn


def main(
    *,
    base: Path,
    out: Path,
    templates: Path,
    precision: Precision = "fp32",
    scope: Literal["all", "last_block"] = "all",
    activated: bool = False,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    seed: int = 42,
) -> None:
    """Initialise a LoRA adapter.

    Args:
        base: folder of the base LM.
        out: folder of the adapter to write.
        templates: folder of the prompt templates.
        precision: precision the base is loaded in.
        scope: decoder blocks whose linear layers are adapted.
        activated: whether the adapter acts from the request on only.
        lora_rank: rank of the adapter.
        lora_alpha: numerator of the LoRA scale alpha / rank.
        seed: seed of lora_A.
    """
    import torch

    from shielded_recrl.explainer.base import load_base, load_tokenizer
    from shielded_recrl.explainer.lm import last_block_linears

    model = load_base(base, precision, torch.device("cpu"))
    adapter = new_adapter(
        model,
        lora_rank,
        lora_alpha,
        seed,
        "all-linear" if scope == "all" else last_block_linears(model),
        invocation_tokens(load_tokenizer(base), templates) if activated else None,
    )
    with sealed(out) as partial:
        save_adapter(adapter, partial)
    print(f"{out}: LoRA rank {lora_rank}, {adapter.get_nb_trainable_parameters()[0]:,} parameters")


def new_adapter(
    base: nn.Module,
    rank: int,
    alpha: int,
    seed: int,
    targets: str | list[str] = "all-linear",
    invocation: list[int] | None = None,
) -> nn.Module:
    """A PEFT model with a new LoRA adapter.

    Args:
        base: a frozen causal LM.
        rank: of the adapter.
        alpha: numerator of the LoRA scale alpha / rank.
        seed: of lora_A.
        targets: linear layers that are adapted; all of the decoder by default.
        invocation: tokens that an activated adapter acts from; None acts always.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(
            base,
            LoraConfig(
                r=rank,
                lora_alpha=alpha,
                lora_dropout=0.0,
                target_modules=targets,
                alora_invocation_tokens=invocation,
                task_type="CAUSAL_LM",
            ),
        )


def invocation_tokens(tokenizer, templates: Path) -> list[int]:
    """Token ids that every request begins with, whatever the item.

    Raises:
        UserError: the template begins with the item itself.
    """
    template = (templates / "request.txt").read_text(encoding="utf-8")
    requests = [
        tokenizer.encode(
            request_text(template, Item(title, (title,), "")), add_special_tokens=False
        )
        for title in ("Zebra", "a", "7")
    ]
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*requests, strict=False))
    common = [tokens[0] for tokens in same]
    if not common:
        raise UserError(
            f"{templates / 'request.txt'}: an activated adapter needs a request that begins with "
            "words of its own; put some before {title}"
        )
    return common


def save_adapter(adapter, folder: Path) -> None:
    """Write a PEFT folder whose bytes depend on the adapter alone.

    PEFT writes target modules in the order of a set, and the path of the base where the job found
    it; both would make equal adapters differ.
    """
    adapter.save_pretrained(folder, selected_adapters=[adapter.active_adapter])
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    if base := config["base_model_name_or_path"]:
        config["base_model_name_or_path"] = named(base)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
