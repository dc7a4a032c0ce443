"""Rollouts by vLLM (Kwon et al. 2023), behind the same interface as the engines of `rollout`.

UNPROVEN: written against the sources of vLLM 0.32 and 0.33 and never run; this project's tests
cover what goes in and what comes out, not vLLM.

vLLM computes another policy than the trainer: bf16, other kernels, other batches. So the rollout
carries the log-probabilities of the engine, and the trainer weighs each token by
min(exp(log pi - log pi_engine), cap) (Yao et al. 2025, "Your efficient RL framework secretly brings
you off-policy RL training"). The same seed need not give the same texts.

Each call writes the adapter to a temporary PEFT folder and loads it under a name and id of its own:
vLLM keys its caches of adapters by id, and of prefixes by name.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.lm import is_activated, pad_left
from shielded_recrl.explainer.settings import Precision
from shielded_recrl.rl.rollout import Rollout

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
INSTEAD = "see docs/rl.md, or take rl.engine transformers"


class VLLMEngine:
    """An `Engine` that hands the adapter to vLLM."""

    def __init__(
        self,
        base: Path,
        model: nn.Module,
        tokenizer,
        precision: Precision,
        *,
        gpu_share: float = 0.3,
        seed: int = 0,
    ):
        """Load the base a second time, in vLLM.

        Args:
            base: folder of the base LM.
            model: PEFT model with the adapter to be served.
            tokenizer: gives the padding and end-of-text ids.
            precision: of the base in training.
            gpu_share: share of the GPU's memory that vLLM takes.
            seed: of vLLM itself; each response has its own.

        Raises:
            UserError: vLLM is missing, too old or will not start, or cannot serve this adapter.
        """
        options = engine_options(base, model, precision, gpu_share, seed)
        try:
            import vllm
            from vllm.engine.arg_utils import EngineArgs
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise UserError(
                f"rl.engine: vllm cannot be imported ({first_line(error)}); it needs an "
                f"environment of its own, {INSTEAD}"
            ) from error
        require(EngineArgs, options)
        require(vllm.SamplingParams, sampling_options(torch.zeros(1, 1), 1.0, 0)[0])
        require(LoRARequest, ("lora_name", "lora_int_id", "lora_path"))
        try:
            self.llm = vllm.LLM(**options)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"rl.engine: vllm does not start ({first_line(error)}); {INSTEAD}"
            ) from error
        self.sampling, self.lora, self.tokenizer = vllm.SamplingParams, LoRARequest, tokenizer
        self.calls = 0

    def __call__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        active: Sequence[int],
        uniforms: Tensor,
        temperature: float,
    ) -> Rollout:
        """See `Engine`; row i of `uniforms` makes the seed of response i."""
        self.calls += 1
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        options = sampling_options(uniforms, temperature, eos)
        with TemporaryDirectory(prefix="adapter-") as folder:
            save_adapter(model, Path(folder))
            outputs = self.llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [self.sampling(**each) for each in options],
                lora_request=self.lora(f"step-{self.calls}", self.calls, folder),
                use_tqdm=False,
            )
        device = next(model.parameters()).device
        fields = padded(prompts, [output.outputs[0] for output in outputs], pad, eos)
        fields = {name: tensor.to(device) for name, tensor in fields.items()}
        return Rollout(**fields, request=torch.tensor(active))


def engine_options(
    base: Path, model: nn.Module, precision: Precision, gpu_share: float, seed: int
) -> dict[str, Any]:
    """Arguments of `vllm.LLM`.

    Raises:
        UserError: a base that is not bf16, or an adapter vLLM does not serve.
    """
    rank = model.active_peft_config.r
    if precision != "bf16":
        # Its LoRA kernels take 16 bits; a quantised trainer would be another policy altogether.
        raise UserError(f"explainer.precision: rl.engine vllm needs bf16, got {precision}")
    if is_activated(model):
        raise UserError("rl.engine: vllm serves no activated adapter; take transformers")
    if rank > RANKS[-1]:
        raise UserError(f"explainer.lora_rank: vllm serves at most {RANKS[-1]}, got {rank}")
    return {
        "model": str(base),
        "dtype": "bfloat16",
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next(size for size in RANKS if size >= rank),
        # After temperature; the default is the distribution before it.
        "logprobs_mode": "processed_logprobs",
        # Else the base's generation_config.json adds top-p and end-of-text tokens.
        "generation_config": "vllm",
        "gpu_memory_utilization": gpu_share,
        "seed": seed,
    }


def sampling_options(uniforms: Tensor, temperature: float, eos: int) -> list[dict[str, Any]]:
    """Arguments of `vllm.SamplingParams`, one dict a row of uniforms [n, max_new_tokens].

    `eos` alone ends a response, as in the trainer, whatever else the model calls an end.

    Raises:
        UserError: vLLM would change the temperature, or refuse it.
    """
    if not 0.01 <= temperature <= 2:
        raise UserError(f"rl.rollout_temperature: vllm takes 0.01 to 2, got {temperature}")
    rows = uniforms.double().cpu().numpy()
    return [
        {
            "max_tokens": rows.shape[1],
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "seed": int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:7]),
            "logprobs": 0,
            "stop_token_ids": [eos],
            "ignore_eos": True,
            "detokenize": False,
        }
        for row in rows
    ]


def padded(
    prompts: Sequence[Sequence[int]], completions: Sequence[Any], pad: int, eos: int
) -> dict[str, Tensor]:
    """Answers of vLLM, `vllm.CompletionOutput`, as the fields of a `Rollout`, all but `request`.

    Their token ids hold the end-of-text token too.
    """
    n, t = len(completions), max(len(completion.token_ids) for completion in completions)
    ids, mask = pad_left(prompts, pad)
    tokens = torch.full((n, t), pad)
    response, logp = torch.zeros(n, t), torch.zeros(n, t)
    for row, completion in enumerate(completions):
        chosen = list(completion.token_ids)
        tokens[row, : len(chosen)] = torch.tensor(chosen)
        response[row, : len(chosen)] = 1.0
        logp[row, : len(chosen)] = torch.tensor(
            [at[token].logprob for at, token in zip(completion.logprobs, chosen, strict=True)]
        )
    return {
        "ids": torch.cat([ids, tokens], dim=1),
        "mask": torch.cat([mask, response.to(mask.dtype)], dim=1),
        "response": response,
        "ended": torch.tensor([completion.token_ids[-1] == eos for completion in completions]),
        "logp": logp,
    }


def require(api: Callable[..., Any], names: Iterable[str]) -> None:
    """Refuse a vLLM whose `api` lacks one of the arguments `names`."""
    if lacking := sorted(set(names) - set(inspect.signature(api).parameters)):
        raise UserError(
            f"rl.engine: this vllm's {api.__name__} has no {lacking[0]}; install 0.32 or 0.33"
        )
