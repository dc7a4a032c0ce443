"""The LoRA layers of a PEFT model, by their names in the base LM, and what the shield can hold.

A LoRA update of a linear layer is x -> s B A x (Hu et al. 2022). The shield rests on exactly this:
A Q = 0 makes the update zero on the span of Q. Whatever else a fine-tuning method trains or
changes is outside that argument, and is refused.
"""

from __future__ import annotations

from dataclasses import fields

from torch import nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import blocks, causal_lm

# Initialisations that leave the base weights, and so the LM with the adapter off, as they are.
_HARMLESS_INITS = (True, False, "gaussian", "eva", "orthogonal")

_REFUSED = {
    "use_dora": "DoRA rescales each whole weight by a trained magnitude, which moves every input",
    "lora_bias": "a trained bias moves every input",
    "modules_to_save": "whole modules are trained, which moves every input",
    "trainable_token_indices": "token embeddings are trained, which moves every prompt with them",
    "target_parameters": "bare parameters are adapted, and no basis describes their inputs",
    "layer_replication": "the base LM gets other layers than the one the ranking reads",
    "alora_invocation_tokens": "activated LoRA leaves the prefix alone by itself and needs no shield",
    "use_qalora": "QA-LoRA pools the inputs before lora_A reads them",
}


def lora_layers(model: nn.Module, adapter: str = "default") -> dict[str, nn.Module]:
    """LoRA layers that hold an adapter, by the module's name in the base LM."""
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    }


def lora_a(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """lora_A weights [r, d_in] by the module's name in the base LM."""
    return {name: x.lora_A[adapter].weight for name, x in lora_layers(model, adapter).items()}


def lora_b(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """lora_B weights [d_out, r] by the module's name in the base LM."""
    return {name: x.lora_B[adapter].weight for name, x in lora_layers(model, adapter).items()}


def active_adapter(model: nn.Module) -> str:
    """The name of a PEFT model's one active adapter.

    Raises:
        UserError: not a PEFT model, or not one active adapter.
    """
    if not hasattr(model, "peft_config"):
        raise UserError(
            f"adapter: {type(model).__name__} is not a PEFT model; wrap it by peft.get_peft_model"
        )
    active = list(model.active_adapters)
    if len(active) != 1:
        raise UserError(
            f"adapter: {len(active)} adapters are active ({', '.join(active)}), but the shield "
            "constrains one; activate one by set_adapter"
        )
    return active[0]


def last_block(model: nn.Module) -> str:
    """What the names, in the base LM, of the last decoder block's modules begin with."""
    return f"{list(blocks(model))[-1]}."


def guard_gradients(model: nn.Module) -> None:
    """Keep bitsandbytes' layers in training mode, whatever mode the model is put into.

    On CPUs with AVX512-BF16 a 4-bit layer in evaluation mode repacks its weights at the first
    forward without gradient, and later gradients through it are silently wrong. Training mode
    costs these layers nothing: they have no dropout.
    """
    for module in model.modules():
        hooked = _training_mode in module._forward_pre_hooks.values()
        if type(module).__module__.startswith("bitsandbytes") and not hooked:
            module.register_forward_pre_hook(_training_mode)


def _training_mode(module: nn.Module, _) -> None:
    module.training = True


def require_plain_lora(model: nn.Module) -> None:
    """Refuse every adapter whose trained update is more than x -> s B A x of linear layers.

    Raises:
        UserError: what the adapter does beyond that, and why the shield cannot hold it.
    """
    adapter = active_adapter(model)
    _require_plain_config(model.peft_config[adapter])
    _require_linear_layers(model, adapter)
    known = [*lora_a(model, adapter).values(), *lora_b(model, adapter).values()]
    known_ids = set(map(id, known))
    for name, weight in model.named_parameters():
        if weight.requires_grad and id(weight) not in known_ids:
            raise _refusal(f"{name} is trained", "only lora_A and lora_B can be held; freeze it")


def _require_plain_config(config) -> None:
    if getattr(config.peft_type, "value", config.peft_type) != "LORA":
        raise _refusal(f"{config.peft_type}", "its update is not x -> B A x")
    for name, reason in _REFUSED.items():
        if getattr(config, name, None):
            raise _refusal(name, reason)
    for field in fields(config):
        if field.metadata.get("is_lora_variant") and getattr(config, field.name):
            raise _refusal(field.name, "the update of this variant is not x -> B A x")
    if config.bias != "none":
        raise _refusal(f"bias={config.bias!r}", "a trained bias moves every input")
    if config.init_lora_weights not in _HARMLESS_INITS:
        raise _refusal(
            f"init_lora_weights={config.init_lora_weights!r}",
            "this initialisation changes the base weights or the LoRA layer, and the bases and "
            "base scores with them",
        )


def _require_linear_layers(model: nn.Module, adapter: str) -> None:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in causal_lm(model).named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        base = module.get_base_layer()
        plain = isinstance(module, LoraLayer) and adapter not in module.lora_variant
        if not (plain and isinstance(base, nn.Linear)):
            raise _refusal(
                f"{name} is a {type(module).__name__} over {type(base).__name__}",
                "only plain LoRA over a linear layer has the update x -> B A x",
            )
        if module.merged:
            raise _refusal(f"{name} is merged", "its update is in the base weights; unmerge it")
    if not lora_layers(model, adapter):
        raise _refusal(f"{adapter!r} adapts no module", "there is nothing to hold")


def _refusal(what: str, why: str) -> UserError:
    return UserError(
        f"adapter: {what}: {why}. The shield holds plain LoRA on linear layers, bias none"
    )
