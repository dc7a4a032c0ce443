"""The work that every program does, the clock, and the one JSON line that each prints.

Needs torch, transformers and peft only, so that it runs in each peer's own environment; of this
project's library, which is not installed there, it takes a module of the standard library's alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.append(str(Path(__file__).resolve().parents[2] / "workflow"))
from shielded_recrl.memory import peak_rss_mb, status_mb

EPOCHS, LEARNING_RATE, KL_WEIGHT, CLIP_RATIO, CLIP_VALUE = 4, 1e-4, 0.05, 0.2, 0.2
DISCOUNT, GAE_LAMBDA, TEMPERATURE = 1.0, 0.95, 1.0
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Job:
    """A Llama and the batch it is trained on.

    Attributes:
        vocabulary, hidden, inner, blocks, heads: of the Llama; its embeddings are not tied.
        batch: responses in a step.
        prompt, response: tokens of each, exactly.
        rank: of LoRA on the linear layers of all blocks; alpha is twice that.
    """

    vocabulary: int
    hidden: int
    inner: int
    blocks: int
    heads: int
    batch: int = 16
    prompt: int = 64
    response: int = 40
    rank: int = 16


JOBS = {
    "tiny": Job(64, 32, 64, 2, 2, batch=4, prompt=8, response=4, rank=4),
    "2M": Job(1024, 192, 512, 4, 4),
    "50M": Job(16000, 512, 1536, 10, 8),
}


class Meter:
    """Times whole steps: from the end of one to the end of the next.

    Args:
        warm_up: steps before the clock starts.
        steps: steps to time.
    """

    def __init__(self, warm_up: int, steps: int) -> None:
        self.warm_up, self.steps = warm_up, steps
        self.ends: list[tuple[float, float]] = []
        self.updates, self.tokens, self._counted = 0, 0, (0, 0)
        # The work is counted where it happens, not read from settings.
        self.hook = register_optimizer_step_post_hook(self._updated)

    @property
    def total(self) -> int:
        """All steps that have to run."""
        return self.warm_up + self.steps

    def _updated(self, *_) -> None:
        self.updates += 1

    def scored(self, responses: Sequence[Sequence[object]]) -> None:
        """Note responses that a reward was asked for."""
        self.tokens += sum(map(len, responses))

    def step(self) -> None:
        """Note the end of a step."""
        self.ends.append((time.perf_counter(), time.process_time()))
        if len(self.ends) == self.warm_up:
            self._counted = (self.updates, self.tokens)

    def seconds(self) -> tuple[list[float], list[float]]:
        """Seconds of each timed step, by the wall and of CPU."""
        wall, cpu = (
            [end - begin for begin, end in pairwise(clock)]
            for clock in zip(*self.ends[self.warm_up - 1 :], strict=True)
        )
        return wall, cpu

    def work(self) -> tuple[float, float]:
        """Optimizer steps and scored tokens of a timed step."""
        updates, tokens = self._counted
        return (self.updates - updates) / self.steps, (self.tokens - tokens) / self.steps


def arguments() -> argparse.Namespace:
    """Parse the command line, fix the threads and the seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=JOBS, default="2M")
    parser.add_argument("--variant", default="", help="of the program")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=2, help="steps, one at the least")
    parser.add_argument("--steps", type=int, default=5, help="to time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for files of a peer")
    parser.add_argument("--profile", action="store_true", help="time the parts of a step too")
    args = parser.parse_args()
    args.job = JOBS[args.model]
    if args.warm_up < 1 or args.steps < 1:
        parser.error("--warm-up and --steps have to be at least 1")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


def llama(job: Job, kind: str = "LlamaForCausalLM", **extra) -> nn.Module:
    """A Llama of random weights in fp32."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=job.vocabulary,
        hidden_size=job.hidden,
        intermediate_size=job.inner,
        num_hidden_layers=job.blocks,
        num_attention_heads=job.heads,
        num_key_value_heads=job.heads,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **extra,
    )
    return getattr(transformers, kind)(config).float()


def lora(job: Job, task: str | None = "CAUSAL_LM") -> LoraConfig:
    """LoRA on every linear layer of the blocks."""
    return LoraConfig(
        r=job.rank,
        lora_alpha=2 * job.rank,
        lora_dropout=0.0,
        target_modules=PROJECTIONS,
        task_type=task,
    )


def word_tokenizer(job: Job):
    """A tokenizer of one word an id, whose padding and end of text lie beyond the vocabulary.

    No model can write a token it has no logit for, so every response has its full length.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [f"w{i}" for i in range(job.vocabulary)] + ["<pad>", "<eos>"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def draw_prompts(job: Job, n: int, seed: int) -> list[list[int]]:
    """Prompts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(job.vocabulary, (n, job.prompt), generator=generator).tolist()


def low_share(ids: Tensor, job: Job) -> Tensor:
    """The reward [n]: share of response tokens [n, t] in the lower half of the vocabulary."""
    return (ids < job.vocabulary // 2).float().mean(dim=-1)


def words_reward(responses: Sequence[str], job: Job) -> list[float]:
    """The same from texts."""
    split = [response.split() for response in responses]
    return [
        sum(int(word[1:]) < job.vocabulary // 2 for word in words) / len(words) for words in split
    ]


def rss_mb() -> float:
    """Resident memory of this process now; Linux only.

    Raises:
        RuntimeError: there is no /proc.
    """
    if (now := status_mb("VmRSS")) is None:
        raise RuntimeError("/proc/self/status: no VmRSS; measure on Linux")
    return now


def trained(model: nn.Module) -> tuple[int, int]:
    """Frozen and trainable parameters."""
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    return sizes[False], sizes[True]


def report(
    program: str,
    args: argparse.Namespace,
    meter: Meter,
    imported_mb: float,
    models: Sequence[nn.Module],
    parts: dict[str, float] | None = None,
    optimizers: int = 1,
) -> None:
    """Print the measurement as one line of JSON.

    Args:
        program: who ran.
        args: from `arguments`.
        meter: of the steps.
        imported_mb: resident memory before the models were built.
        models: all that are trained or read in a step.
        parts: seconds of a step's parts, where they were timed.
        optimizers: that each take `EPOCHS` steps in a step of the program.
    """
    peak, (updates, tokens), (wall, cpu) = peak_rss_mb(), meter.work(), meter.seconds()
    expected = args.job.batch * args.job.response
    if tokens != expected:
        sys.exit(f"{program}: {tokens:g} tokens a step were scored, expected {expected}")
    if updates != EPOCHS * optimizers:
        sys.exit(f"{program}: {updates:g} optimizer steps a step, not {EPOCHS * optimizers}")
    counts = [trained(model) for model in models]
    row = {
        "model": args.model,
        "program": program,
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_mb": peak,
        "imported_mb": imported_mb,
        "frozen": sum(frozen for frozen, _ in counts),
        "trainable": sum(trainable for _, trainable in counts),
        "updates": updates,
        "tokens": tokens,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "peft": version("peft"),
    }
    print(json.dumps(row | ({"parts": parts} if parts else {})), flush=True)
