"""Train an explainer with token-level PPO, under a shield or without one.

In: base LM, LoRA init, ranker states, prepared dataset, bases where the shield needs them.
Out: a plain PEFT adapter folder, snapshots along the run, train.jsonl and summary.json.

One step samples a batch of explanations for train users' top items, scores them with the composite
reward, and makes `epochs` PPO updates (Schulman et al. 2017) of adapter and value head. The value
head reads the policy's hidden states; its gradient stops there.

Every random draw is keyed by (seed, step), so a resumed run needs no random state and ends in the
same bytes as an undisturbed one.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.lm import adapter_parameters, hidden_size, load_adapter
from shielded_recrl.explainer.prompts import Request
from shielded_recrl.explainer.settings import Precision, PromptSettings
from shielded_recrl.files import atomic, sha256, write_json, write_jsonl
from shielded_recrl.provenance import code_digest
from shielded_recrl.resume import Progress, fingerprint, load_progress, save_progress
from shielded_recrl.rl.ppo import (
    explained_variance,
    gae,
    policy_loss,
    token_logprobs,
    token_rewards,
    value_loss,
    whiten,
)
from shielded_recrl.rl.rewards import composite, vocabulary
from shielded_recrl.rl.rollout import Rollout, decode, response_logits, sample
from shielded_recrl.rl.settings import RLSettings
from shielded_recrl.rl.text import words
from shielded_recrl.shield.ranking_shield import RankingShield
from shielded_recrl.shield.serving import (
    RankingHead,
    Serving,
    load_readout,
    load_states,
    top_items,
)
from shielded_recrl.shield.settings import RoleSettings, ShieldSettings
from shielded_recrl.shield.variants import load_shield


def main(
    *,
    data: Path,
    ranker: Path,
    base: Path,
    adapter: Path,
    templates: Path,
    out: Path,
    scratch: Path,
    dataset: str,
    variant: str,
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")],
    roles: Annotated[RoleSettings, tyro.conf.arg(name="")],
    settings: Annotated[RLSettings, tyro.conf.arg(name="")],
    shield: Annotated[ShieldSettings, tyro.conf.arg(name="shield")],
    bases: Path | None = None,
    readout: Path | None = None,
    explanation_tokens: int = 32,
    precision: Precision = "fp32",
    roles_seed: int = 42,
    seed: int = 42,
) -> None:
    """Train an explainer with PPO.

    Args:
        data: folder of the prepared dataset.
        ranker: states.safetensors of the ranker.
        base: folder of the base LM.
        adapter: folder of the LoRA init.
        templates: folder of the prompt templates.
        out: folder of the run to write.
        scratch: folder of checkpoints; emptied when the run ends.
        dataset: name written into the summary.
        variant: name written into the summary.
        prompt: prompt lengths.
        roles: how many users are protected and held out.
        settings: PPO.
        shield: what keeps training from moving the ranking.
        bases: bases.safetensors, needed by the shields nullspace and random.
        readout: readout.safetensors, needed by the shield ranker and by a penalty.
        explanation_tokens: longest explanation.
        precision: precision the base is served in.
        roles_seed: seed of the draw of protected and held-out users.
        seed: seed of this run.
    """
    serving = Serving.load(data, base, templates, prompt, roles, roles_seed)
    model = load_adapter(load_base(base, precision, default_device()), adapter, trainable=True)
    states = load_states(ranker)
    head = RankingHead.of(states, load_readout(readout)) if readout else None
    guard = load_shield(shield, model, serving, head, bases, seed)
    inputs = {
        **{name: data / f"{name}.parquet" for name in ("train", "valid", "test", "items", "users")},
        **{name: templates / f"{name}.txt" for name in ("prefix", "request")},
        **{"ranker": ranker, "base": base, "adapter": adapter},
        **{"bases": bases, "readout": readout},
    }
    identity = {
        "code": code_digest("shielded_recrl.rl.train"),
        "inputs": {name: sha256(path) for name, path in inputs.items() if path is not None},
        "settings": [s.model_dump() for s in (prompt, roles, settings, shield)],
        "run": [dataset, variant, explanation_tokens, precision, roles_seed, seed],
    }
    trainer = Trainer(
        model,
        serving,
        states.valid_users,
        states.items,
        settings,
        guard,
        explanation_tokens,
        seed,
    )
    owner = fingerprint(identity)
    checkpoint = scratch / "checkpoint.safetensors"
    if (saved := load_progress(checkpoint, owner)) is not None:
        trainer.restore(saved)
        print(f"resumed at step {saved.step} from {checkpoint}", file=sys.stderr)

    steps = range(trainer.step, settings.steps)
    for _ in tqdm(steps, desc=f"ppo {dataset} {variant} {seed}", unit="step", mininterval=5):
        trainer.train_step()
        if trainer.step % settings.checkpoint_every == 0 and trainer.step < settings.steps:
            save_progress(checkpoint, trainer.checkpoint(), owner)

    trainer.export(out, dataset=dataset, variant=variant, kind=shield.kind, fingerprint=owner)
    checkpoint.unlink(missing_ok=True)
    first, last = trainer.log[0], trainer.log[-1]
    print(
        f"{out}: reward {first['reward']:.3f} -> {last['reward']:.3f}, KL {last['kl']:.3f} a token"
    )


class Trajectory(NamedTuple):
    """A batch of rollouts and what PPO needs of them; tensors [n, t]."""

    rollout: Rollout
    logp: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    hidden: Tensor
    log: dict[str, float]


class Trainer:
    """PPO in four verbs: generate_trajectory, ppo_step, checkpoint and restore, export."""

    def __init__(
        self,
        model: nn.Module,
        serving: Serving,
        users: np.ndarray,
        items: np.ndarray,
        settings: RLSettings,
        shield: RankingShield | None,
        explanation_tokens: int,
        seed: int,
    ):
        """
        Args:
            model: PEFT model with a trainable adapter.
            serving: histories, roles and prompts.
            users, items: SASRec states [U + 1, d_r] after the train history, and embeddings.
            settings: PPO.
            shield: what holds the ranking still while the adapter is trained, or None.
            explanation_tokens: longest response.
            seed: seed of the run.
        """
        self.model, self.serving, self.settings, self.seed = model, serving, settings, seed
        self.tokenizer = serving.prompts.tokenizer
        self.explanation_tokens = explanation_tokens
        self.categories = vocabulary(serving.prompts.items)
        train = serving.roles.train
        self.slates = top_items(
            users[train] @ items.T, serving.splits, "valid", train, settings.slate
        )
        self.parameters = adapter_parameters(model)
        device = next(iter(self.parameters.values())).device
        self.value_head = nn.Linear(hidden_size(model), 1, device=device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        head = {f"value_head.{name}": weight for name, weight in self.value_head.named_parameters()}
        self.trained = {**self.parameters, **head}
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=settings.learning_rate)
        self.value_optimizer = torch.optim.Adam(head.values(), lr=settings.value_learning_rate)
        self.shield = shield
        if shield is not None:
            shield.attach(model)
            shield.hook(self.optimizer)
        self.step = 0
        self.log: list[dict[str, Any]] = []
        self.snapshots: dict[str, Tensor] = {}
        self.snapshot_steps = {
            round(settings.steps * (i + 1) / settings.snapshots) for i in range(settings.snapshots)
        }

    def train_step(self) -> None:
        """One batch of rollouts and its PPO updates."""
        began = time.perf_counter()
        trajectory = self.generate_trajectory()
        losses = self.ppo_step(trajectory)
        self.step += 1
        seconds = time.perf_counter() - began
        self.log.append({"step": self.step, **trajectory.log, **losses, "seconds": seconds})
        if self.step in self.snapshot_steps:
            for name, weight in self.parameters.items():
                self.snapshots[f"step-{self.step:06d}/{name}"] = weight.detach().cpu().clone()

    def requests(self) -> list[Request]:
        """The requests of this step: a train user, and one of their top items."""
        rng = np.random.default_rng([self.seed, self.step, 0])
        count = self.settings.micro_batch * self.settings.gradient_accumulation
        rows = rng.integers(len(self.slates), size=count)
        requests = []
        for row in rows:
            slate = self.slates[row][self.slates[row] > 0]
            user = int(self.serving.roles.train[row])
            requests.append(self.serving.request(user, int(rng.choice(slate)), "valid"))
        return requests

    @torch.no_grad()
    def generate_trajectory(self) -> Trajectory:
        """Sample explanations, score them, and estimate advantages."""
        settings, requests = self.settings, self.requests()
        rollout = sample(
            self.model,
            [request.prompt for request in requests],
            self.tokenizer,
            self.explanation_tokens,
            settings.rollout_temperature,
            torch.Generator().manual_seed(
                int(np.random.default_rng([self.seed, self.step, 1]).integers(2**62))
            ),
            request=[len(request.prompt) - len(request.prefix) for request in requests],
        )
        texts = decode(rollout, self.tokenizer)
        rewards = composite(texts, requests, self.categories, settings.reward)
        device = rollout.ids.device
        scores = torch.tensor(rewards["total"], dtype=torch.float32, device=device)
        scores = scores - settings.missing_eos_penalty * (~rollout.ended).float()

        policy = [self.evaluate(rollout.rows(rows)) for rows in self.micro_batches(rollout)]
        logp, entropy, hidden = (torch.cat(parts) for parts in zip(*policy, strict=True))
        values = self.values(hidden)
        with self.model.disable_adapter():
            reference = torch.cat(
                [self.evaluate(rollout.rows(rows))[0] for rows in self.micro_batches(rollout)]
            )
        mask = rollout.response
        token_scores = token_rewards(scores, logp, reference, mask, settings.kl_weight)
        advantages, returns = gae(
            token_scores, values, mask, settings.discount, settings.gae_lambda
        )
        log = {
            "reward": float(rewards["total"].mean()),
            **{
                f"reward_{name}": float(rewards[name].mean())
                for name in ("length", "relevance", "coherence")
            },
            "kl": float(((logp - reference) * mask).sum() / mask.sum()),
            "entropy": float((entropy * mask).sum() / mask.sum()),
            "explained_variance": explained_variance(values, returns, mask),
            "words": float(np.mean([len(words(text)) for text in texts])),
            "ended": float(rollout.ended.float().mean()),
        }
        return Trajectory(rollout, logp, values, whiten(advantages, mask), returns, hidden, log)

    def ppo_step(self, trajectory: Trajectory) -> dict[str, float]:
        """Update the policy, after the warm-up, and the value head."""
        policy = {"policy_loss": 0.0, "clip_share": 0.0}
        if self.step >= self.settings.value_warmup:
            policy = self.update_policy(trajectory)
        return policy | {"value_loss": self.update_value(trajectory)}

    def update_policy(self, trajectory: Trajectory) -> dict[str, float]:
        """`epochs` clipped updates of the adapter; gradients are summed over micro batches."""
        settings = self.settings
        count = trajectory.rollout.response.sum()
        log: dict[str, float] = {}
        for _ in range(settings.epochs):
            totals = torch.zeros(2)
            self.optimizer.zero_grad()
            for rows in self.micro_batches(trajectory.rollout):
                rollout = trajectory.rollout.rows(rows)
                loss, clipped = policy_loss(
                    self.evaluate(rollout)[0],
                    trajectory.logp[rows],
                    trajectory.advantages[rows],
                    rollout.response,
                    settings.clip_ratio,
                )
                (loss / count).backward()
                totals += torch.stack([loss.detach(), clipped]).cpu() / count.cpu()
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), settings.max_grad_norm)
            if not torch.isfinite(norm):
                raise UserError(
                    f"rl: the gradient is not finite at step {self.step + 1}; "
                    "lower rl.learning_rate or choose a wider explainer.precision"
                )
            self.optimizer.step()
            log = dict(zip(("policy_loss", "clip_share"), totals.tolist(), strict=True))
        return log

    def update_value(self, trajectory: Trajectory) -> float:
        """`value_epochs` clipped updates of the value head on the states of the rollouts.

        No gradient reaches the trunk, so these passes cost next to nothing.
        """
        settings, mask = self.settings, trajectory.rollout.response
        for _ in range(settings.value_epochs):
            loss = value_loss(
                self.values(trajectory.hidden),
                trajectory.values,
                trajectory.returns,
                mask,
                settings.clip_value,
            )
            self.value_optimizer.zero_grad()
            (loss / mask.sum()).backward()
            self.value_optimizer.step()
        return float(loss.detach() / mask.sum())

    def evaluate(self, rollout: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and entropies [n, t] of the response tokens, and states [n, t, d]."""
        logits, hidden = response_logits(self.model, rollout)
        logp, entropy = token_logprobs(logits, rollout.tokens, self.settings.rollout_temperature)
        return logp, entropy, hidden.detach().float()

    def values(self, hidden: Tensor) -> Tensor:
        """V [n, t] of states [n, t, d]."""
        return self.value_head(hidden / hidden.shape[-1] ** 0.5)[..., 0]

    def micro_batches(self, rollout: Rollout) -> list[slice]:
        """Slices of at most `micro_batch` rows."""
        size = self.settings.micro_batch
        return [slice(start, start + size) for start in range(0, len(rollout.ids), size)]

    def checkpoint(self) -> Progress:
        """Everything `restore` needs."""
        tensors = {f"weight/{name}": weight.detach() for name, weight in self.trained.items()}
        for name, weight in self.trained.items():
            for key, value in self.state_of(name).get(weight, {}).items():
                tensors[f"adam.{key}/{name}"] = value
        tensors |= {f"snapshot/{name}": tensor for name, tensor in self.snapshots.items()}
        return Progress(self.step, self.log, tensors)

    def state_of(self, name: str) -> dict[Tensor, dict[str, Tensor]]:
        """State of the optimizer a trained weight belongs to."""
        return (self.optimizer if name in self.parameters else self.value_optimizer).state

    @torch.no_grad()
    def restore(self, checkpoint: Progress) -> None:
        """Continue from a checkpoint; its weights were saved after projection, bit for bit."""
        self.step, self.log = checkpoint.step, checkpoint.log
        for key, tensor in checkpoint.tensors.items():
            kind, name = key.split("/", 1)
            if kind == "weight":
                self.trained[name].copy_(tensor)
            elif kind == "snapshot":
                self.snapshots[name] = tensor
            else:
                weight = self.trained[name]
                state = self.state_of(name).setdefault(weight, {})
                device = "cpu" if kind == "adam.step" else weight.device
                state[kind.removeprefix("adam.")] = tensor.to(device)
        if self.shield is not None:
            updates = max(0, self.step - self.settings.value_warmup)
            self.shield.step = updates * self.settings.epochs

    def export(self, out: Path, *, dataset: str, variant: str, kind: str, fingerprint: str) -> None:
        """Write the run's folder."""
        from safetensors.torch import save_file

        with atomic(out / "adapter") as partial:
            save_adapter(self.model, partial)
        with atomic(out / "snapshots.safetensors") as partial:
            save_file(self.snapshots, partial)
        write_jsonl(out / "train.jsonl", self.log)
        trained = sum(weight.numel() for weight in self.parameters.values())
        every = sum(weight.numel() for weight in self.model.parameters())
        leak = {} if self.shield is None else {"leakage": self.shield.leakage()}
        write_json(
            out / "summary.json",
            {
                "dataset": dataset,
                "variant": variant,
                "seed": self.seed,
                "steps": self.step,
                "seconds": sum(row["seconds"] for row in self.log),
                "peak_memory_mb": peak_memory_mb(),
                "trainable_parameters": trained,
                "trainable_share": trained / every,
                "adapter_sha256": sha256(out / "adapter" / "adapter_model.safetensors"),
                "fingerprint": fingerprint,
                "shield": {"kind": kind, **leak},
            },
        )


def peak_memory_mb() -> float:
    """Largest resident memory of this process, or GPU memory where one is used, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
