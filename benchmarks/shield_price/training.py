"""What the shield adds to an optimizer step of PPO, and to a whole step with its rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from serving import SHAPES, Shape, base_lm, with_lora
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import adapter_parameters
from shielded_recrl.rl.ppo import policy_loss, token_logprobs, whiten
from shielded_recrl.rl.rollout import response_logits, sample
from shielded_recrl.shield.bases import Bases
from shielded_recrl.shield.basis import Basis
from shielded_recrl.shield.ranking_shield import RankingShield
from shielded_recrl.shield.serving import RankingHead

VARIANTS = {"without": None, "projection": 0.0, "projection and penalty": 10.0}
LEARNING_RATE, CLIP_RATIO, MAX_GRAD_NORM, EPOCHS = 3e-3, 0.2, 1.0, 2
LOG_RATIO_BOUND = 20.0
ITEMS, RANKER_WIDTH = 240, 64
# What orthogonality in fp32 leaves of ||A Q|| / ||A||.
LEAKAGE = 1e-5


@dataclass(frozen=True)
class Job:
    """A training step.

    Attributes:
        shape: of the LM.
        rows: responses in a step.
        prompt, response: their tokens.
        rank: k of a basis of width d, from d.
        protected: protected prompts, of `shape.prefix` tokens.
        penalised: protected prompts in a step of the penalty.
    """

    shape: Shape
    rows: int
    prompt: int
    response: int
    rank: Callable[[int], int]
    protected: int
    penalised: int


JOBS = {
    "tiny": Job(SHAPES["tiny"], 2, 8, 4, lambda width: width // 2, 4, 2),
    # The defaults of the workflow; energy 0.999 keeps about nine tenths of the directions.
    "embedded": Job(SHAPES["embedded"], 32, 72, 32, lambda width: round(0.9 * width), 128, 32),
    # Few rows, the harder case: the projections cost the same whatever the batch.
    "110M": Job(SHAPES["110M"], 2, 384, 64, lambda width: 256, 8, 2),
}


class Training:
    """PPO of an adapter on one batch of rollouts, under any variant of the shield."""

    def __init__(self, job: Job):
        self.job, shape = job, job.shape
        torch.manual_seed(0)
        self.model = with_lora(base_lm(shape))
        self.parameters = adapter_parameters(self.model)
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=LEARNING_RATE)
        bases = random_bases(self.model, job)
        prefixes = torch.randint(shape.vocabulary, (job.protected, shape.prefix)).tolist()
        head = RankingHead(
            torch.randn(ITEMS, RANKER_WIDTH), torch.randn(RANKER_WIDTH, shape.hidden), 1.0
        )
        self.shields = {
            name: RankingShield(
                bases,
                prefixes,
                head,
                kind="random",
                penalty=penalty,
                batch_size=job.penalised,
            )
            for name, penalty in VARIANTS.items()
            if penalty is not None
        }
        for shield in self.shields.values():
            shield.attach(self.model)
        self.roll_out()

    def roll_out(self) -> None:
        """Sample responses, and score them under policy and reference, as PPO does."""
        job = self.job
        prompts = torch.randint(job.shape.vocabulary, (job.rows, job.prompt)).tolist()
        size = (job.rows, job.response)
        self.rollout = sample(
            self.model,
            prompts,
            SimpleNamespace(pad_token_id=0, eos_token_id=1),
            torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
            1.0,
        )
        with torch.no_grad():
            self.logp = self.logprobs()
            with self.model.disable_adapter():
                self.logprobs()
        advantages = torch.randn(self.logp.shape)
        self.advantages = whiten(advantages, self.rollout.response)

    def logprobs(self) -> Tensor:
        """Log-probabilities [n, t] of the responses."""
        logits, _ = response_logits(self.model, self.rollout)
        return token_logprobs(logits, self.rollout.tokens, 1.0)

    def update(self) -> None:
        """One optimizer step, as `rl.train` makes it."""
        mask = self.rollout.response
        self.optimizer.zero_grad()
        logp = self.logprobs()
        loss, _ = policy_loss(logp, self.logp, self.advantages, mask, CLIP_RATIO, LOG_RATIO_BOUND)
        (loss / mask.sum()).backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), MAX_GRAD_NORM)
        self.optimizer.step()

    def time_update(self, variant: str) -> dict[str, float]:
        """CPU and wall seconds of an update, and CPU seconds spent in the shield's hooks.

        Raises:
            UserError: the shield did not keep the adapter out of its subspaces.
        """
        with self.hooked(variant) as inside:
            cpu, wall = time.process_time(), time.perf_counter()
            self.update()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        shield = self.shields.get(variant)
        if shield is not None and shield.leakage() > LEAKAGE:
            raise UserError(f"{variant}: the adapter leaks {shield.leakage():.2g}; nothing to time")
        return {"cpu": cpu, "wall": wall, "hooks": sum(inside)}

    @contextmanager
    def hooked(self, variant: str) -> Iterator[list[float]]:
        """Hook a shield between two clocks; CPU seconds of each hook."""
        shield, inside, begun = self.shields.get(variant), [], [0.0]

        def begin(*_):
            begun[0] = time.process_time()

        def end(*_):
            inside.append(time.process_time() - begun[0])

        def clock(tick) -> list:
            return [
                self.optimizer.register_step_pre_hook(tick),
                self.optimizer.register_step_post_hook(tick),
            ]

        handles = clock(begin)
        if shield is not None:
            shield.hook(self.optimizer)
        handles += clock(end)
        yield inside
        if shield is not None:
            shield.unhook(self.optimizer)
        for handle in handles:
            handle.remove()


def measure(job: Job, rounds: int) -> dict:
    """Time updates under every variant in turn, and the rollouts they share.

    Returns:
        job, updates: a row for each variant and round; rollouts: CPU seconds of each.
    """
    training = Training(job)
    names = list(VARIANTS)
    for name in names:
        training.time_update(name)
    updates, rollouts = [], []
    for turn in range(rounds):
        order = [names[(turn + i) % len(names)] for i in range(len(names))]
        for name in order[:: -1 if turn % 2 else 1]:
            updates.append({"variant": name, "round": turn, **training.time_update(name)})
        if turn % 4 == 0:
            begun = time.process_time()
            training.roll_out()
            rollouts.append(time.process_time() - begun)
    shape = job.shape
    about = {
        "rows": job.rows,
        "tokens": job.prompt + job.response,
        "ranks": {str(width): job.rank(width) for width in (shape.hidden, shape.inner)},
        "penalised": job.penalised,
        "prefix": shape.prefix,
        "epochs": EPOCHS,
    }
    return {"job": about, "updates": updates, "rollouts": rollouts}


def random_bases(model: nn.Module, job: Job) -> Bases:
    """Random subspaces for every module, one for each input that several modules share.

    Like collected ones they hold the smaller of a subspace and its complement.
    """
    generator = torch.Generator().manual_seed(0)
    groups, bases = {}, {}
    shared = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
    for name, layer in model.get_base_model().named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        parent, _, kind = name.rpartition(".")
        group = f"{parent}.{shared.get(kind, kind)}"
        groups[name] = group
        if group not in bases:
            bases[group] = _random_basis(layer.in_features, job.rank, generator)
    return Bases(groups=groups, bases=bases, about={})


def _random_basis(width: int, rank: Callable[[int], int], generator: torch.Generator) -> Basis:
    complement = 2 * rank(width) > width
    columns = width - rank(width) if complement else rank(width)
    gaussian = torch.randn(width, columns, generator=generator, dtype=torch.float64)
    return Basis(torch.linalg.qr(gaussian)[0].float(), complement=complement)
