"""The modes of serving one request: rank from the prefix, then explain an item.

In: a shape, from which a random Llama is made. Run as a program, it prints the peak memory
of every mode as a line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import activation, causal_lm, last_block_linears

RANK, SEED = 16, 0
PHASES = ("ranking", "switching", "reading", "decoding")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# How far the merged weights may move h, as a share of its root mean square.
ROUNDING = {"fp32": 1e-3, "bf16": 0.2}


@dataclass(frozen=True)
class Shape:
    """A Llama and the lengths of its requests.

    Attributes:
        hidden, inner: width of the hidden states and of the feed-forward layer.
        prefix, request, answer: tokens of the history, of item and instruction, of the explanation.
    """

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    vocabulary: int
    prefix: int
    request: int
    answer: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 16, 32, 2, 2, 64, prefix=6, request=4, answer=3),
        Shape("embedded", 96, 256, 3, 4, 1024, prefix=48, request=24, answer=32),
        Shape("110M", 768, 2048, 12, 12, 32_000, prefix=256, request=128, answer=64),
    )
}


class Watch:
    """CPU and wall seconds of each phase of a request."""

    def __init__(self) -> None:
        self.cpu, self.wall = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block as part of a phase."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu[phase] += time.process_time() - cpu
        self.wall[phase] += time.perf_counter() - wall


@dataclass(frozen=True)
class Prompt:
    """Token ids of a batch of requests: prefix [n, p] and request [n, q]; tokens to decode."""

    prefix: Tensor
    request: Tensor
    answer: int


@dataclass(frozen=True)
class Served:
    """What the ranking reads, h [n, d], the explanations [n, t], and the cache they leave."""

    hidden: Tensor
    tokens: Tensor
    cache: DynamicCache


Models = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Mode:
    """A way of serving.

    Attributes:
        title: what tables call it.
        models: the models that have to be resident.
        serve: (models, prompt, watch) -> what was served.
        exact: whether h has to be that of the base, bit for bit.
    """

    title: str
    models: tuple[str, ...]
    serve: Callable[[Models, Prompt, Watch], Served]
    exact: bool


def one_prefill(name: str) -> Callable[[Models, Prompt, Watch], Served]:
    """Read h at the end of the prefix, and go on from its cache, on one model."""

    def serve(models: Models, prompt: Prompt, watch: Watch) -> Served:
        lm = causal_lm(models[name])
        with watch("ranking"):
            hidden, cache = rank(lm, prompt.prefix)
        return Served(hidden, explain(lm, prompt.request, cache, prompt.answer, watch), cache)

    return serve


def separate(name: str) -> Callable[[Models, Prompt, Watch], Served]:
    """Rank with the adapter off; read the prefix again with the adapter on."""

    def serve(models: Models, prompt: Prompt, watch: Watch) -> Served:
        model = models[name]
        with switched(model.disable_adapter(), watch), watch("ranking"):
            hidden, _ = rank(causal_lm(model), prompt.prefix, use_cache=False)
        return again(causal_lm(model), hidden, prompt, watch)

    return serve


def two_models(name: str) -> Callable[[Models, Prompt, Watch], Served]:
    """Rank with the base; explain with a merged copy that reads the prefix again."""

    def serve(models: Models, prompt: Prompt, watch: Watch) -> Served:
        with watch("ranking"):
            hidden, _ = rank(models["base"], prompt.prefix, use_cache=False)
        return again(models[name], hidden, prompt, watch)

    return serve


def activated(name: str) -> Callable[[Models, Prompt, Watch], Served]:
    """Read the prefix with the adapter asleep; wake it up for the request and the explanation."""

    def serve(models: Models, prompt: Prompt, watch: Watch) -> Served:
        model = models[name]
        lm, length = causal_lm(model), prompt.request.shape[1]
        with watch("ranking"):
            hidden, cache = rank(lm, prompt.prefix)
        # PEFT cuts the offset down to the tokens at hand, so that it holds for decoding as well.
        with switched(activation(model, [length] * len(prompt.request)), watch):
            tokens = explain(lm, prompt.request, cache, prompt.answer, watch)
        return Served(hidden, tokens, cache)

    return serve


def adapter_modes(scope: str) -> dict[str, Mode]:
    """The modes of an adapter of some decoder blocks, by name with the scope's suffix."""
    adapted, merged, awake = (
        f"{name}{SCOPES[scope]}" for name in ("adapted", "merged", "activated")
    )
    blocks = "" if scope == "all" else ", last block"
    modes = {
        "always_on": Mode("always on", (adapted,), one_prefill(adapted), exact=False),
        "merged": Mode("always on, merged", (merged,), one_prefill(merged), exact=False),
        "separate": Mode("separate", (adapted,), separate(adapted), exact=True),
        "two_models": Mode(
            "separate, merged copy", ("base", merged), two_models(merged), exact=True
        ),
        "activated": Mode("activated", (awake,), activated(awake), exact=True),
    }
    return {
        f"{name}{SCOPES[scope]}": replace(mode, title=mode.title + blocks)
        for name, mode in modes.items()
    }


# Decoder blocks that are adapted -> suffix of the names of models and modes.
SCOPES = {"all": "", "last_block": "_last"}
MODES = {
    "base": Mode("base alone", ("base",), one_prefill("base"), exact=True),
    **adapter_modes("all"),
    **adapter_modes("last_block"),
}


def rank(lm: nn.Module, prefix: Tensor, use_cache: bool = True) -> tuple[Tensor, DynamicCache]:
    """h [n, d] at the last token of the prefix, and the cache that a request can follow."""
    output = lm.base_model(input_ids=prefix, use_cache=use_cache)
    return output.last_hidden_state[:, -1], output.past_key_values


def again(lm: nn.Module, hidden: Tensor, prompt: Prompt, watch: Watch) -> Served:
    """Explain from a cache of its own, which the prefix has to enter first."""
    cache = DynamicCache(config=lm.config)
    whole = torch.cat([prompt.prefix, prompt.request], dim=1)
    return Served(hidden, explain(lm, whole, cache, prompt.answer, watch), cache)


def explain(lm: nn.Module, ids: Tensor, cache: DynamicCache, answer: int, watch: Watch) -> Tensor:
    """Read ids [n, q] behind what the cache holds, and decode `answer` tokens greedily."""
    with watch("reading"):
        tokens = [_next(lm, ids, cache)]
    with watch("decoding"):
        while len(tokens) < answer:
            tokens.append(_next(lm, tokens[-1], cache))
        return torch.cat(tokens, dim=1)


def _next(lm: nn.Module, ids: Tensor, cache: DynamicCache) -> Tensor:
    output = lm(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return output.logits[:, -1].argmax(dim=-1, keepdim=True)


@contextmanager
def switched(context: AbstractContextManager, watch: Watch) -> Iterator[None]:
    """A context whose entry and exit count as switching."""
    with ExitStack() as stack:
        with watch("switching"):
            stack.enter_context(context)
        yield
        with watch("switching"):
            stack.close()


def base_lm(shape: Shape, precision: str = "fp32") -> LlamaForCausalLM:
    """A frozen random Llama, the same each time, input and output embeddings tied."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        initializer_range=0.6 / math.sqrt(shape.hidden),
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(PRECISIONS[precision])
    return model.requires_grad_(False).eval()


def with_lora(base: LlamaForCausalLM, scope: str = "all", activated: bool = False) -> nn.Module:
    """LoRA on the linear layers of all blocks or of the last one, in the precision of the base.

    lora_B is not zero, so that it acts on what it reads.
    """
    torch.manual_seed(SEED)
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules="all-linear" if scope == "all" else last_block_linears(base),
        alora_invocation_tokens=[0] if activated else None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=False).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1 / math.sqrt(RANK))
    return model


def merged_lora(base: LlamaForCausalLM, scope: str = "all") -> nn.Module:
    """The base with the adapter merged into its weights."""
    return with_lora(base, scope).merge_and_unload()


BUILDERS: dict[str, Callable[[LlamaForCausalLM], nn.Module]] = {"base": lambda base: base}
for _scope, _suffix in SCOPES.items():
    BUILDERS[f"adapted{_suffix}"] = partial(with_lora, scope=_scope)
    BUILDERS[f"merged{_suffix}"] = partial(merged_lora, scope=_scope)
    BUILDERS[f"activated{_suffix}"] = partial(with_lora, scope=_scope, activated=True)


def build(shape: Shape, precision: str, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """Models by name, each with weights of its own."""
    return {name: BUILDERS[name](base_lm(shape, precision)) for name in names}


def prompt(shape: Shape, batch: int, seed: int) -> Prompt:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, shape.prefix + shape.request)
    ids = torch.randint(shape.vocabulary, size, generator=generator)
    return Prompt(ids[:, : shape.prefix], ids[:, shape.prefix :], shape.answer)


@torch.inference_mode()
def measure(shape: Shape, precision: str, batch: int, rounds: int) -> tuple[dict, list[dict]]:
    """Check that the modes serve what they promise, then time them in turn.

    Returns:
        what was checked, with the bytes each mode holds; a row for each mode and round.

    Raises:
        UserError: a mode ranks otherwise than it promises.
    """
    models = build(shape, precision, tuple(BUILDERS))
    checks = check(models, prompt(shape, batch, seed=0), precision)
    rows = []
    names = list(MODES)
    for turn in range(rounds):
        asked = prompt(shape, batch, seed=turn + 1)
        # The order moves on by one each round, and every other round goes backwards.
        order = [names[(turn + i) % len(names)] for i in range(len(names))]
        for name in order[:: -1 if turn % 2 else 1]:
            watch = Watch()
            MODES[name].serve(models, asked, watch)
            rows.append({"mode": name, "round": turn, "cpu": watch.cpu, "wall": watch.wall})
    return checks, rows


def check(models: Models, asked: Prompt, precision: str) -> dict:
    """Serve one request by every mode, and compare what the ranking reads.

    Returns:
        mode -> whether h is the base's bit for bit, its largest distance as a share of the root
        mean square of the base's, and the bytes of weights and cache; and the largest distance of
        a merged model from the unmerged one.

    Raises:
        UserError: a mode that is exact moves h, one that acts on the prefix does not, or merging
            moves h by more than rounding explains.
    """
    served = {name: mode.serve(models, asked, Watch()) for name, mode in MODES.items()}
    base = served["base"].hidden
    found = {}
    for name, mode in MODES.items():
        hidden = served[name].hidden
        found[name] = {
            "identical": torch.equal(hidden, base),
            "distance": distance(hidden, base),
            "weight_bytes": sum(weight_bytes(models[part]) for part in mode.models),
            "cache_bytes": cache_bytes(served[name].cache),
        }
        if found[name]["identical"] != mode.exact:
            wanted = "the same as" if mode.exact else "other than"
            raise UserError(f"{mode.title}: expected h {wanted} the base's; nothing was timed")
    moved = max(
        distance(served[f"merged{suffix}"].hidden, served[f"always_on{suffix}"].hidden)
        for suffix in SCOPES.values()
    )
    if moved > ROUNDING[precision]:
        raise UserError(f"merging moved h by {moved:.2g} of its size; nothing was timed")
    return {"modes": found, "merge_distance": moved}


def distance(hidden: Tensor, reference: Tensor) -> float:
    """The largest difference as a share of the root mean square of the reference."""
    hidden, reference = hidden.double(), reference.double()
    return float((hidden - reference).abs().max() / reference.square().mean().sqrt())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights, tied ones counted once."""
    return sum(weight.nbytes for weight in model.parameters())


def cache_bytes(cache: DynamicCache) -> int:
    """Bytes of keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.inference_mode()
def peak_memory(shape: Shape, precision: str, batch: int, name: str) -> int:
    """Bytes that serving a request takes above a process that served a tiny one; Linux only.

    Weights, cache and whatever a forward pass allocates are in it; loading is not.
    """
    tiny, mode = SHAPES["tiny"], MODES[name]
    mode.serve(build(tiny, precision, mode.models), prompt(tiny, batch, 0), Watch())
    _reset_peak()
    before = _resident("VmRSS")
    models = build(shape, precision, mode.models)
    _reset_peak()
    mode.serve(models, prompt(shape, batch, 0), Watch())
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def _reset_peak() -> None:
    gc.collect()
    # What building freed goes back to the system first.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Print the peak memory of every mode, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("precision", choices=PRECISIONS)
    parser.add_argument("batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = (SHAPES[options.shape], options.precision, options.batch)
    # Forked before PyTorch has run anything: each process starts with the same, nothing but code.
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps({mode: pool.apply(peak_memory, (*asked, mode)) for mode in MODES}))


if __name__ == "__main__":
    main()
