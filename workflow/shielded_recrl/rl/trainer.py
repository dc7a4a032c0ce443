"""Token-level PPO for a LoRA adapter on a frozen causal LM, with a value critic and plain rewards.

    trainer = PPO(peft_model, tokenizer, prompts, reward, settings, max_new_tokens=32, seed=42)
    while trainer.step < settings.steps:
        print(trainer.train_step())

One step samples a batch of responses, scores them, and makes `epochs` passes of clipped updates
(Schulman et al. 2017) over it; the KL to the base, which is the model with its adapter off, is part
of the reward (Ziegler et al. 2019).

Every random draw is keyed by (seed, step), so the step is all the random state of a run; what a
reward draws from the global generators is kept beside it in checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import (
    adapter_parameters,
    first_adapted,
    inputs_recorded,
    save_memory,
    switch_off_dropout,
)
from shielded_recrl.resume import Progress, random_state, restore_random_state
from shielded_recrl.rl.critic import make_critic
from shielded_recrl.rl.distributed import Ranks
from shielded_recrl.rl.logs import checked, peak_memory_mb
from shielded_recrl.rl.ppo import (
    entropy,
    explained_variance,
    gae,
    importance_weights,
    k1,
    k3,
    masked_mean,
    next_kl_weight,
    policy_loss,
    token_logprobs,
    token_rewards,
    value_loss,
    whiten,
)
from shielded_recrl.rl.rewards.base import Reward
from shielded_recrl.rl.rewards.base import checked as component
from shielded_recrl.rl.rollout import (
    Engine,
    Place,
    Rollout,
    Scores,
    TransformersEngine,
    assembled,
    decode,
    response_logits,
)
from shielded_recrl.rl.settings import PPOSettings
from shielded_recrl.rl.text import words
from shielded_recrl.shield.ranking_shield import RankingShield

# Streams of random numbers of a step; 0 is left to `prompts`, and each epoch has one of its own.
SAMPLING, MINI_BATCHES = 1, 2
# What comes with the rewards of a batch and is no component.
UNNAMED = ("total", "words")
# The study has a key for each setting, the plain loop flags for some.
LOWER_RATE = "lower the learning rate (rl.learning_rate or --learning-rate)"
LOWER_VALUE_RATE = f"{LOWER_RATE}, or rl.value_learning_rate in the study"


class Prompts(NamedTuple):
    """What one step asks.

    Attributes:
        ids: token ids of each prompt.
        active: tokens of each prompt that an activated adapter acts on, the last ones.
        context: what the reward is told of each prompt.
    """

    ids: Sequence[Sequence[int]]
    active: Sequence[int]
    context: Sequence[Any]


class Trajectory(NamedTuple):
    """Rollouts and what PPO needs of them; tensors [n, t] but `hidden` and `entry`.

    Attributes:
        rollout: responses.
        logp: log-probabilities under the policy that wrote them.
        values: V_t at the time.
        advantages: whitened over the batch, times the importance weights of the engine.
        returns: what V_t is to become.
        hidden: final hidden states [n, t, d], without gradient.
        entry: what enters the first adapted decoder block, [n, p + t, d], where blocks lie below.
        live: `logp` with its graph, where one pass held the whole batch: the first update goes on
            from it.
    """

    rollout: Rollout
    logp: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    hidden: Tensor
    entry: Tensor | None
    live: Tensor | None


class PPO:
    """The algorithm in four verbs: generate_trajectory, ppo_step, checkpoint, restore."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        prompts: Callable[[int], Prompts],
        reward: Reward,
        settings: PPOSettings,
        *,
        max_new_tokens: int,
        seed: int,
        shield: RankingShield | None = None,
        probe: Callable[[], dict[str, float]] | None = None,
        engine: Engine | None = None,
        ranks: Ranks | None = None,
    ):
        """
        Args:
            model: PEFT model with a trainable LoRA adapter on a frozen base.
            tokenizer: of the base; gives the padding and end-of-text ids.
            prompts: step -> its prompts, micro_batch * gradient_accumulation of them.
            reward: see `Reward`; its component `total` is what the policy is to raise.
            settings: PPO.
            max_new_tokens: longest response.
            seed: seed of every draw.
            shield: what holds a ranking still while the adapter is trained.
            probe: figures measured after each step for the log.
            engine: where rollouts come from; decoding by the model itself by default.
            ranks: the processes that share each batch; this one alone by default.

        Raises:
            UserError: the ranks cannot share the batch evenly, or mini batches would be empty.
        """
        self.model, self.tokenizer, self.settings, self.seed = model, tokenizer, settings, seed
        self.prompts, self.reward, self.probe = prompts, reward, probe
        self.max_new_tokens, self.ranks = max_new_tokens, ranks or Ranks()
        self.engine = engine or TransformersEngine(
            tokenizer, settings.merge_rollouts, settings.compile, settings.rollout_batch
        )
        self.batch = settings.micro_batch * settings.gradient_accumulation
        if self.batch % self.ranks.world:
            raise UserError(
                f"rl.gradient_accumulation: a batch of {self.batch} responses cannot be shared by "
                f"{self.ranks.world} processes; choose a multiple"
            )
        if settings.mini_batches > self.batch:
            raise UserError(
                f"rl.mini_batches: a batch of {self.batch} responses cannot be split into "
                f"{settings.mini_batches} mini batches; choose at most {self.batch}"
            )
        if settings.kl_target is not None and settings.kl_horizon < self.batch:
            raise UserError(
                f"rl.kl_horizon: {settings.kl_horizon} is less than a batch of {self.batch} "
                "responses, so that the KL weight would jump; raise it"
            )
        switch_off_dropout(model)
        self.parameters = adapter_parameters(model, model.active_adapter)
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=settings.learning_rate)
        self.shield = shield
        if shield is not None:
            shield.attach(model)
            shield.hook(self.optimizer)
        self.critic = make_critic(settings.critic, model, seed)
        self.value_optimizer = torch.optim.Adam(
            self.critic.parameters.values(), lr=settings.value_learning_rate
        )
        if settings.gradient_checkpointing:
            save_memory(model)
        self.first_block = first_adapted(model)
        self.cuda = next(iter(self.parameters.values())).is_cuda
        self.kl_weight = settings.kl_weight
        self.step, self.updates = 0, 0
        self.log: list[dict[str, float]] = []

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that is trained, by name."""
        return {**self.parameters, **self.critic.parameters}

    def train_step(self) -> dict[str, float]:
        """One batch of rollouts and its updates; its row of the log.

        Raises:
            UserError: a reward, loss or gradient is not finite; no weight has moved by it.
        """
        began = time.perf_counter()
        trajectory, row = self.generate_trajectory()
        row |= self.ppo_step(trajectory)
        self.ranks.agree(self.trained.values())
        if self.settings.kl_target is not None and row["updates"] > 0:
            self.kl_weight = next_kl_weight(
                self.kl_weight,
                row["kl"],
                self.settings.kl_target,
                self.batch,
                self.settings.kl_horizon,
            )
        self.step += 1
        seconds = time.perf_counter() - began
        row |= {"tokens_per_second": self.batch * row["tokens"] / seconds, "seconds": seconds}
        if self.probe is not None:
            row |= self.probe()
        row = checked({"step": self.step, **row, "memory_mb": peak_memory_mb(self.cuda)})
        self.log.append(row)
        return row

    def rng(self, stream: int) -> np.random.Generator:
        """The generator of one stream of this step."""
        return np.random.default_rng([self.seed, self.step, stream])

    def sample(self) -> tuple[Rollout, dict[str, Tensor]]:
        """This rank's responses, and their rewards [n] with the words of each.

        Raises:
            UserError: not as many prompts as the batch has, or a reward unlike `Reward`.
        """
        mine = slice(self.ranks.rank, None, self.ranks.world)
        asked = self.prompts(self.step)
        if {len(part) for part in asked} != {self.batch}:
            raise UserError(
                f"prompts: {[len(part) for part in asked]} ids, counts and contexts at step "
                f"{self.step + 1}, expected {self.batch} of each"
            )
        ids, active, context = (part[mine] for part in asked)
        uniforms = torch.from_numpy(self.rng(SAMPLING).random((self.batch, self.max_new_tokens)))
        rollout = self.engine(
            self.model, ids, active, uniforms[mine], self.settings.rollout_temperature
        )
        texts = decode(rollout, self.tokenizer)
        prompts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        rewards = dict(self.reward(prompts, texts, context))
        if "total" not in rewards or "words" in rewards:
            raise UserError(
                f"reward: gives {', '.join(rewards) or 'nothing'}; expected `total` and components "
                "of other names than `words`"
            )
        for name, values in rewards.items():
            component(name, values, len(texts))
            self.require_finite(
                values, f"reward {name!r}", "mend the reward, or what it is computed from", texts
            )
        rewards["words"] = torch.tensor([float(len(words(text))) for text in texts])
        return rollout, {name: x.to(rollout.ids.device) for name, x in rewards.items()}

    def generate_trajectory(self) -> tuple[Trajectory, dict[str, float]]:
        """Sample responses, score them, and estimate advantages; with figures for the log."""
        settings, total = self.settings, self.ranks.total
        rollout, rewards = self.sample()
        mask = rollout.response
        penalty = settings.missing_eos_penalty * (~rollout.ended).float()
        reference, entry = self.refer(rollout)
        policy, live = self.score(rollout, entry)
        with torch.no_grad():
            values = self.values(rollout, policy.hidden, entry)
            rewarded = token_rewards(
                rewards["total"] - penalty, policy.logp, reference, mask, self.kl_weight
            )
            advantages, returns = gae(
                rewarded, values, mask, settings.discount, settings.gae_lambda
            )
            weights = importance_weights(policy.logp, rollout.logp, settings.importance_cap)
            advantages = whiten(advantages, mask, total) * weights
        figures = self.of_texts(rollout, rewards, penalty) | {
            "kl": (k1(policy.logp, reference), mask),
            "kl_k3": (k3(policy.logp, reference), mask),
            "entropy": (policy.entropy, mask),
            "importance": (weights, mask),
        }
        row = {name: float(masked_mean(*part, total)) for name, part in figures.items()}
        row["kl_weight"] = self.kl_weight
        row["explained_variance"] = explained_variance(values, returns, mask, total)
        parts = policy.logp, values, advantages, returns, policy.hidden, entry, live
        return Trajectory(rollout, *parts), row

    def of_texts(
        self, rollout: Rollout, rewards: dict[str, Tensor], penalty: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """What the log says of the responses as texts: figures [n], each with a mask of ones."""
        figures = {f"reward_{name}": x for name, x in rewards.items() if name not in UNNAMED}
        if "click" in rewards:
            figures["ctr"] = rewards["click"]
        figures |= {
            "reward": rewards["total"],
            "score": rewards["total"] - penalty,
            "words": rewards["words"],
            "tokens": rollout.response.sum(dim=1),
            "ended": rollout.ended.float(),
        }
        return {name: (part, torch.ones_like(part)) for name, part in figures.items()}

    def ppo_step(self, trajectory: Trajectory) -> dict[str, float]:
        """Update the critic and, after the warm-up, the policy."""
        row = {"policy_loss": 0.0, "approx_kl": 0.0, "clip_share": 0.0, "grad_norm": 0.0}
        row["updates"] = 0
        if self.step >= self.settings.value_warmup:
            row |= self.update_policy(trajectory)
        row |= self.update_critic(trajectory)
        return row | {"loss": row["policy_loss"] + row["value_loss"]}

    def update_policy(self, trajectory: Trajectory) -> dict[str, float]:
        """`epochs` passes of clipped updates; they end early where the policy has moved too far.

        Gradients are summed over micro batches and ranks.
        """
        settings, parameters = self.settings, list(self.parameters.values())
        row: dict[str, float] = {}
        updates = 0
        for epoch in range(settings.epochs):
            for index, rows in enumerate(self.mini_batches(epoch)):
                self.optimizer.zero_grad()
                means = self.policy_gradient(trajectory, rows)
                trajectory = trajectory._replace(live=None)
                self.ranks.add_gradients(parameters)
                where = f" (epoch {epoch + 1}, mini batch {index + 1})"
                self.require_finite(
                    torch.tensor(means["policy_loss"]),
                    f"policy loss{where}",
                    f"{LOWER_RATE}, or rl.log_ratio_bound in the study",
                )
                if settings.kl_stop is not None and means["approx_kl"] > settings.kl_stop:
                    self.optimizer.zero_grad()
                    return {**row, **means, "updates": updates}
                norm = nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                self.require_finite(
                    norm,
                    f"gradient norm{where}",
                    f"{LOWER_RATE}, or hold the base in a wider precision (explainer.precision or "
                    "--precision)",
                )
                self.optimizer.step()
                updates += 1
                self.updates += 1
                row = {**means, "grad_norm": float(norm)}
        return {**row, "updates": updates}

    def policy_gradient(self, trajectory: Trajectory, rows: Tensor) -> dict[str, float]:
        """Add the gradient of the mean loss over some rows' tokens; means for the log.

        Args:
            trajectory: this rank's.
            rows: indices of this rank's rows of a mini batch.
        """
        rollout, settings = trajectory.rollout, self.settings
        count = self.ranks.total(rollout.response[rows].sum())
        sums = torch.zeros(3, device=rollout.ids.device)
        for place in rollout.micro_batches(settings.micro_batch, rows):
            batch, at = rollout.at(place), (place.rows, place.response)
            if trajectory.live is not None:
                logp = trajectory.live[at]
            else:
                logp = self.logprobs(batch, self.entry(trajectory.entry, place))[0]
            loss, clipped = policy_loss(
                logp,
                trajectory.logp[at],
                trajectory.advantages[at],
                batch.response,
                settings.clip_ratio,
                settings.log_ratio_bound,
            )
            (loss / count).backward()
            moved = (k3(trajectory.logp[at], logp.detach()) * batch.response).sum()
            sums += torch.stack([loss.detach(), moved, clipped])
        names = ("policy_loss", "approx_kl", "clip_share")
        return dict(zip(names, (self.ranks.total(sums) / count).tolist(), strict=True))

    def update_critic(self, trajectory: Trajectory) -> dict[str, float]:
        """`value_epochs` clipped updates of the critic; of the last, means for the log."""
        settings, parameters = self.settings, list(self.critic.parameters.values())
        rollout = trajectory.rollout
        mask = rollout.response
        count = self.ranks.total(mask.sum())
        size = len(mask) if self.critic.cheap else settings.micro_batch
        for _ in range(settings.value_epochs):
            sums = torch.zeros(2, device=mask.device)
            self.value_optimizer.zero_grad()
            for place in rollout.micro_batches(size):
                batch, at = rollout.at(place), (place.rows, place.response)
                loss, clipped = value_loss(
                    self.critic(batch, trajectory.hidden[at], self.entry(trajectory.entry, place)),
                    trajectory.values[at],
                    trajectory.returns[at],
                    batch.response,
                    settings.clip_value,
                )
                (loss / count).backward()
                sums += torch.stack([loss.detach(), clipped])
            self.ranks.add_gradients(parameters)
            value, clipped = (self.ranks.total(sums) / count).tolist()
            norm = nn.utils.get_total_norm([weight.grad for weight in parameters])
            for what, figure in (("loss", torch.tensor(value)), ("gradient norm", norm)):
                self.require_finite(figure, f"value {what}", LOWER_VALUE_RATE)
            self.value_optimizer.step()
        return {"value_loss": value, "value_clip_share": clipped}

    @torch.no_grad()
    def refer(self, rollout: Rollout) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [n, t] under the base, and the entry states of a `Trajectory`."""
        places = rollout.micro_batches(self.settings.micro_batch)
        recorded = inputs_recorded(self.model, self.first_block)
        with self.model.disable_adapter(), recorded as entering:
            logps = [self.logprobs(rollout.at(place))[0] for place in places]
        logp = assembled(logps, [(p.rows, p.response) for p in places], rollout.response.shape[1])
        if self.first_block == 0:
            return logp, None
        columns = [(place.rows, place.columns) for place in places]
        return logp, assembled(entering, columns, rollout.ids.shape[1])

    def score(self, rollout: Rollout, entry: Tensor | None) -> tuple[Scores, Tensor | None]:
        """Scores under the policy, and the log-probabilities with their graph.

        The graph is kept where one pass holds the whole batch and the first update is made of it.
        """
        settings = self.settings
        places = rollout.micro_batches(settings.micro_batch)
        keep = (
            len(places) == 1 and settings.mini_batches == 1 and self.step >= settings.value_warmup
        )
        parts = []
        for place in places:
            batch = rollout.at(place)
            with torch.set_grad_enabled(keep):
                logp, logits, hidden = self.logprobs(batch, self.entry(entry, place))
            spread = entropy(logits.detach(), settings.rollout_temperature) * batch.response
            parts.append(Scores(logp, spread, hidden.detach()))
        at = [(place.rows, place.response) for place in places]
        t = rollout.response.shape[1]
        scores = Scores(*(assembled(part, at, t) for part in zip(*parts, strict=True)))
        return scores._replace(logp=scores.logp.detach()), scores.logp if keep else None

    def logprobs(
        self, rollout: Rollout, entry: tuple[int, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities [n, t] under the model as it is switched now, 0 on padding; logits
        [n, t, v] and hidden states [n, t, d]."""
        logits, hidden = response_logits(self.model, rollout, entry)
        logp = token_logprobs(logits, rollout.tokens, self.settings.rollout_temperature)
        return logp * rollout.response, logits, hidden.float()

    def entry(self, entry: Tensor | None, place: Place) -> tuple[int, Tensor] | None:
        """Where a pass over a micro batch may begin."""
        return None if entry is None else (self.first_block, entry[place.rows, place.columns])

    @torch.no_grad()
    def values(self, rollout: Rollout, hidden: Tensor, entry: Tensor | None) -> Tensor:
        """V [n, t] as the critic sees it now, 0 on padding."""
        places = rollout.micro_batches(self.settings.micro_batch)
        parts = [
            self.critic(rollout.at(p), hidden[p.rows, p.response], self.entry(entry, p))
            for p in places
        ]
        at = [(place.rows, place.response) for place in places]
        return assembled(parts, at, rollout.response.shape[1]) * rollout.response

    def mini_batches(self, epoch: int) -> list[Tensor]:
        """This rank's rows of each mini batch, the same partition of the batch on any ranks."""
        order = np.arange(self.batch)
        if self.settings.mini_batches > 1:
            order = self.rng(MINI_BATCHES + epoch).permutation(self.batch)
        mine, world = self.ranks.rank, self.ranks.world
        return [
            torch.from_numpy(np.sort(part[part % world == mine]) // world)
            for part in np.array_split(order, self.settings.mini_batches)
        ]

    def require_finite(
        self, values: Tensor, what: str, mend: str, texts: Sequence[str] = ()
    ) -> None:
        """Stop where a number is not finite, before any weight moves by it."""
        finite = torch.isfinite(values)
        if bool(finite.all()):
            return
        where = ""
        if texts:
            row = int((~finite).nonzero()[0, 0])
            place = row * self.ranks.world + self.ranks.rank
            where = f", response {place} of the batch ({texts[row][:60]!r})"
        raise UserError(
            f"rl: the {what} is not finite at step {self.step + 1}{where}; {mend}; "
            "the next start goes on from the last checkpoint, where there is one"
        )

    def checkpoint(self) -> Progress:
        """Everything `restore` needs.

        Raises:
            UserError: a weight is not finite; the checkpoint before it stays.
        """
        for name, weight in self.trained.items():
            self.require_finite(weight.detach(), name, "lower its learning rate")
        tensors = {f"weight/{name}": weight.detach() for name, weight in self.trained.items()}
        for name, weight in self.trained.items():
            for key, value in self.state_of(name).get(weight, {}).items():
                tensors[f"adam.{key}/{name}"] = value
        tensors |= {f"random/{name}": state for name, state in random_state().items()}
        tensors["scalar/kl_weight"] = torch.tensor(self.kl_weight, dtype=torch.float64)
        tensors["scalar/updates"] = torch.tensor(self.updates)
        return Progress(self.step, self.log, tensors)

    def state_of(self, name: str) -> dict[Tensor, dict[str, Tensor]]:
        """State of the optimizer a trained weight belongs to."""
        return (self.optimizer if name in self.parameters else self.value_optimizer).state

    @torch.no_grad()
    def restore(self, progress: Progress) -> None:
        """Continue from a checkpoint; its weights were saved after projection, bit for bit."""
        self.step, self.log = progress.step, list(progress.log)
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in progress.tensors.items():
            kind, name = key.split("/", 1)
            parts.setdefault(kind, {})[name] = tensor
        self.kl_weight = float(parts["scalar"]["kl_weight"])
        self.updates = int(parts["scalar"]["updates"])
        restore_random_state(parts["random"])
        for kind, tensors in parts.items():
            for name, tensor in tensors.items():
                if kind == "weight":
                    self.trained[name].copy_(tensor)
                elif kind.startswith("adam."):
                    weight = self.trained[name]
                    device = "cpu" if kind == "adam.step" else weight.device
                    state = self.state_of(name).setdefault(weight, {})
                    state[kind.removeprefix("adam.")] = tensor.to(device)
        if self.shield is not None:
            self.shield.step = self.updates
