"""Initialise a LoRA adapter (Hu et al. 2022): lora_A Kaiming-uniform, lora_B zero.

In: a base LM. Out: a plain PEFT folder (adapter_model.safetensors, adapter_config.json).
"""

from __future__ import annotations

import json
from pathlib import Path

from shielded_recrl.explainer.settings import Precision
from shielded_recrl.files import atomic


def main(
    *,
    base: Path,
    out: Path,
    precision: Precision = "fp32",
    lora_rank: int = 16,
    lora_alpha: int = 32,
    seed: int = 42,
) -> None:
    """Initialise a LoRA adapter on every linear layer of the decoder blocks.

    Args:
        base: folder of the base LM.
        out: folder of the adapter to write.
        precision: precision the base is loaded in.
        lora_rank: rank of the adapter.
        lora_alpha: numerator of the LoRA scale alpha / rank.
        seed: seed of lora_A.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from shielded_recrl.explainer.base import load_base

    model = load_base(base, precision, torch.device("cpu"))
    torch.manual_seed(seed)
    adapter = get_peft_model(
        model,
        LoraConfig(
            r=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    with atomic(out) as partial:
        save_adapter(adapter, partial)
    print(f"{out}: LoRA rank {lora_rank}, {adapter.get_nb_trainable_parameters()[0]:,} parameters")


def save_adapter(adapter, folder: Path) -> None:
    """Write a PEFT folder whose bytes depend on the adapter alone.

    PEFT writes target modules in the order of a set and the path of the base; both would make
    equal adapters differ.
    """
    adapter.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
