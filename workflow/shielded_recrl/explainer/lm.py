"""What the shield and PPO read off a causal LM, adapter or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.files import intact, read_json

# The counts of the `activation` that holds now.
_AWAKE: ContextVar[Sequence[int] | None] = ContextVar("awake", default=None)


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers causal LM inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk(model: nn.Module) -> nn.Module:
    """The decoder without its language-model head; its output is taken after the last norm."""
    return causal_lm(model).base_model


def hidden_size(model: nn.Module) -> int:
    """Width d of the hidden states."""
    return causal_lm(model).config.hidden_size


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Name in the causal LM -> decoder block, first to last.

    Raises:
        UserError: the model has no list of as many blocks as its config says.
    """
    lm = causal_lm(model)
    count = lm.config.get_text_config().num_hidden_layers
    for name, module in lm.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return {f"{name}.{index}": block for index, block in enumerate(module)}
    raise UserError(
        f"{type(lm).__name__}: it has no list of {count} decoder blocks; "
        "choose a causal LM of transformers"
    )


def last_block_linears(model: nn.Module) -> list[str]:
    """Names, in the causal LM, of the linear layers of the last decoder block."""
    *_, last = blocks(model).values()
    inside = set(last.modules())
    return [
        name
        for name, layer in causal_lm(model).named_modules()
        if layer in inside and isinstance(layer, nn.Linear)
    ]


@contextmanager
def activation(model: nn.Module, tokens: Sequence[int]) -> Iterator[None]:
    """Let an activated adapter (Greenewald et al. 2025) act on the last tokens[i] tokens of row i.

    Outside of this block it acts on none. Any other adapter acts on all tokens, here and there.
    """
    if not is_activated(model):
        yield
        return
    from peft.tuners.lora import LoraLayer

    counts = [int(count) for count in tokens]

    # PEFT's own hooks allow one pass before each backward under gradient checkpointing.
    def wake(layer, args, kwargs):
        return args, {**kwargs, "alora_offsets": counts}

    handles = [
        module.register_forward_pre_hook(wake, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, LoraLayer)
    ]
    before = _AWAKE.set(counts)
    try:
        yield
    finally:
        _AWAKE.reset(before)
        for handle in handles:
            handle.remove()


def is_activated(model: nn.Module) -> bool:
    """Whether the adapter of a PEFT model acts from its invocation tokens on only."""
    config = getattr(model, "active_peft_config", None)
    return bool(getattr(config, "alora_invocation_tokens", None))


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [n, longest], with padding before each row."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """Position ids [n, t] of left-padded rows: 0 at each row's first real token."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


@torch.no_grad()
def prefix_states(
    model: nn.Module, prefixes: Sequence[Sequence[int]], batch_size: int = 64
) -> Tensor:
    """h(u): the final hidden state at the last token of each prefix.

    Padding stands behind the prefix, where causal attention never looks. Equal prefixes in equal
    batches give equal bits, so states with and without an adapter compare exactly.

    Returns:
        float32 states [n, d] on the CPU, in the order of `prefixes`.
    """
    return torch.cat(
        [
            last_states(model, prefixes[start : start + batch_size]).cpu()
            for start in range(0, len(prefixes), batch_size)
        ]
    )


def last_states(model: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    """Final hidden states, float32 [n, d], at the last token of each row, with their gradient."""
    device = next(trunk(model).parameters()).device
    longest = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows], device=device)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    hidden = trunk(model)(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[torch.arange(len(rows), device=device), last].float()


@contextmanager
def states_recorded(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the final hidden states [n, t, d] of each forward pass inside."""
    states: list[Tensor] = []
    handle = trunk(model).register_forward_hook(
        lambda module, inputs, output: states.append(output.last_hidden_state)
    )
    try:
        yield states
    finally:
        handle.remove()


def first_adapted(model: nn.Module) -> int:
    """Index of the first decoder block that an adapter acts in; 0 if it also acts elsewhere."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    where = [set(block.modules()) for block in blocks(model).values()]
    layers = [module for module in causal_lm(model).modules() if isinstance(module, BaseTunerLayer)]
    inside = [
        next((index for index, modules in enumerate(where) if layer in modules), 0)
        for layer in layers
    ]
    return min(inside, default=0)


@contextmanager
def inputs_recorded(model: nn.Module, block: int) -> Iterator[list[Tensor]]:
    """Collect what enters a decoder block, [n, t, d], in each forward pass inside.

    Nothing is collected of the first block: a pass cannot begin later than it does anyway.
    """
    states: list[Tensor] = []
    if block == 0:
        yield states
        return
    module = list(blocks(model).values())[block]

    def note_form(module, args, output):
        # Some models' blocks (GPT-J, BLOOM) give their states as the first of a tuple.
        module.gives_tuple = isinstance(output, tuple)

    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        ),
        module.register_forward_hook(note_form),
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entered_at(model: nn.Module, block: int, states: Tensor) -> Iterator[None]:
    """Let the forward passes inside begin at a decoder block with what enters it, [n, t, d].

    The blocks below hand it on unread: where no adapter acts in them, their output is the same in
    every pass over the same tokens. `inputs_recorded` at this block comes first.
    """
    *below, entered = list(blocks(model).values())[: block + 1]
    given = (states,) if entered.gives_tuple else states
    for module in below:
        module.forward = lambda *args, **kwargs: given
    try:
        yield
    finally:
        for module in below:
            del module.forward


@contextmanager
def merged_for_decoding(model: nn.Module) -> Iterator[None]:
    """The active LoRA adapter of a PEFT model inside the base weights, and out of them again.

    W + s B A stands in the place of W meanwhile; afterwards W is copied back, bit for bit, which
    subtracting would not do. For weights of full precision only: rounding would sample from
    another policy.
    """
    from peft.tuners.lora import LoraLayer

    adapter = model.active_adapter
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    with torch.no_grad(), _switched_off(layers):
        kept = [weight.detach().clone() for weight in weights]
        try:
            for layer, weight in zip(layers, weights, strict=True):
                weight.add_(layer.get_delta_weight(adapter))
            yield
        finally:
            for weight, saved in zip(weights, kept, strict=True):
                weight.copy_(saved)


@contextmanager
def _switched_off(layers: Sequence[nn.Module]) -> Iterator[None]:
    # PEFT's own switch also changes which weights want a gradient.
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def can_merge(model: nn.Module) -> bool:
    """Whether decoding may take place with the adapter merged.

    It may where W + s B A is all the adapter does (plain LoRA, always on), to weights in fp32 that
    no other module shares.
    """
    from peft.tuners.lora import LoraLayer

    adapter = getattr(model, "active_adapter", None)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    embedding = causal_lm(model).get_input_embeddings().weight
    return bool(layers) and all(
        not layer.disable_adapters
        and adapter not in layer.lora_variant
        and not layer.lora_bias.get(adapter, False)
        and (weight := layer.get_base_layer().weight).dtype == torch.float32
        and weight is not embedding
        for layer in layers
    )


def save_memory(model: nn.Module) -> None:
    """Gradient checkpointing (Chen et al. 2016): recompute a block's activations going backward.

    Only the blocks themselves go into training mode, which is when transformers checkpoints; what
    is in them stays in evaluation mode, and dropout of their own is set to 0. A block is recomputed
    with the adapter it ran with, whichever is active by then.
    """

    def contexts():
        return nullcontext(), _as_it_was(model, model.active_adapter, _AWAKE.get())

    lm = causal_lm(model)
    lm.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    lm.enable_input_require_grads()
    for block in blocks(model).values():
        # Some models' blocks apply a dropout of their own.
        for name in [name for name in vars(block) if "dropout" in name]:
            if isinstance(getattr(block, name), float):
                setattr(block, name, 0.0)
        block.training = block.recomputes = True


@contextmanager
def _as_it_was(model: nn.Module, adapter: str, awake: Sequence[int] | None) -> Iterator[None]:
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    now = [layer._active_adapter for layer in layers]
    # PEFT's own switch also changes which weights want a gradient.
    for layer in layers:
        layer._active_adapter = [adapter]
    try:
        with nullcontext() if awake is None else activation(model, awake):
            yield
    finally:
        for layer, active in zip(layers, now, strict=True):
            layer._active_adapter = active


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """No dropout inside, and each module's mode as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    switch_off_dropout(model)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Dropout off, and no weight wants a gradient; all as it was afterwards."""
    gradients = [(weight, weight.requires_grad) for weight in model.parameters()]
    with dropout_off(model):
        model.requires_grad_(False)
        try:
            yield
        finally:
            # PEFT makes adapters trainable when it switches them on again.
            for weight, required in gradients:
                weight.requires_grad_(required)


def switch_off_dropout(model: nn.Module) -> None:
    """Evaluation mode for all but bitsandbytes' own layers, and blocks that recompute.

    On CPUs with AVX512-BF16 a 4-bit layer in evaluation mode repacks its weights at the first
    forward without gradient, and later gradients through it are silently wrong. These layers have
    no dropout of their own, so training mode costs nothing.
    """
    model.eval()
    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes") or recomputes(module):
            module.training = True


def recomputes(module: nn.Module) -> bool:
    """Whether a module is a decoder block that `save_memory` has prepared."""
    return module.__dict__.get("recomputes", False)


@contextmanager
def decoding(model: nn.Module) -> Iterator[None]:
    """Decoder blocks as decoding needs them: those that recompute would leave the cache unread."""
    ready = [module for module in model.modules() if recomputes(module) and module.training]
    try:
        for module in ready:
            module.training = False
        yield
    finally:
        for module in ready:
            module.training = True


def load_adapter(base: nn.Module, folder: Path, trainable: bool = False) -> nn.Module:
    """A PEFT model of a frozen base and an adapter folder.

    Raises:
        UserError: the folder holds no adapter that fits the base.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    # In the place of either file PEFT would take one of the hub, or a pickle.
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise _misfit(folder, f"no {name} in it")
    about = read_json(folder / "adapter_config.json")
    kind = about.get("peft_type") if isinstance(about, dict) else None
    # Some other kinds name a pickle, which PEFT would load.
    if kind != "LORA":
        raise _misfit(folder, f"its peft_type is {kind}, expected LORA")
    intact(folder)
    try:
        model = PeftModel.from_pretrained(base, folder, is_trainable=trainable)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise _misfit(folder, reason) from error
    # PEFT only warns about weights that are missing or left over.
    if odd := stored.keys() ^ set(get_peft_model_state_dict(model)):
        raise _misfit(folder, f"{len(odd)} weights are missing or left over, such as {min(odd)}")
    # It rounds weights of any type to its own.
    if whole := [name for name, dtype in stored.items() if "F" not in dtype]:
        raise _misfit(folder, f"{min(whole)} holds integers")
    if (name := not_finite(adapter_parameters(model).items())) is not None:
        raise _misfit(folder, f"{name} holds what is no number")
    switch_off_dropout(model)
    return model


def _misfit(folder: Path, reason: str) -> UserError:
    return UserError(
        f"{folder}: the adapter does not fit the base LM ({reason}); "
        "delete the folder and initialise it again"
    )


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first weight with an infinity or NaN in it."""
    return next(
        (
            name
            for name, weight in weights
            # A sum holds no copy, and keeps either.
            if weight.is_floating_point()
            and not weight.detach().sum(dtype=torch.float64).isfinite()
        ),
        None,
    )


def adapter_parameters(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """LoRA weights of an adapter by name, in a fixed order."""
    return {
        name: weight
        for name, weight in sorted(model.named_parameters())
        if "lora_" in name and f".{adapter}." in name
    }
