"""Train an explainer with token-level PPO, under a shield or without one.

In: base LM, LoRA init, ranker states, prepared dataset, read-out, bases where the shield needs them.
Out: a plain PEFT adapter folder, snapshots along the run, train.jsonl and summary.json.

One step samples a batch of explanations for train users' top items and makes PPO updates on them:
see `trainer`, and `run` for all steps. By torchrun, several processes share each batch: see `distributed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import nn
from transformers import set_seed

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.lm import load_adapter
from shielded_recrl.explainer.prompts import Request
from shielded_recrl.explainer.settings import Precision, PromptSettings
from shielded_recrl.files import sealed, sha256
from shielded_recrl.provenance import code_digest
from shielded_recrl.resume import fingerprint
from shielded_recrl.rl.distributed import join
from shielded_recrl.rl.logs import LoggerName
from shielded_recrl.rl.rewards.study import study_reward
from shielded_recrl.rl.rollout import Engine
from shielded_recrl.rl.run import run
from shielded_recrl.rl.settings import RLSettings
from shielded_recrl.rl.trainer import PPO, Prompts
from shielded_recrl.shield.penalty import ScorePenalty
from shielded_recrl.shield.serving import (
    RankerStates,
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
    readout: Path,
    out: Path,
    scratch: Path,
    dataset: str,
    variant: str,
    prompt: Annotated[PromptSettings, tyro.conf.arg(name="")],
    roles: Annotated[RoleSettings, tyro.conf.arg(name="")],
    settings: Annotated[RLSettings, tyro.conf.arg(name="")],
    shield: Annotated[ShieldSettings, tyro.conf.arg(name="shield")],
    bases: Path | None = None,
    explanation_tokens: int = 32,
    precision: Precision = "fp32",
    roles_seed: int = 42,
    seed: int = 42,
    live: Path | None = None,
    loggers: tuple[LoggerName, ...] | None = None,
) -> None:
    """Train an explainer with PPO.

    Args:
        data: folder of the prepared dataset.
        ranker: states.safetensors of the ranker.
        base: folder of the base LM.
        adapter: folder of the LoRA init.
        templates: folder of the prompt templates.
        readout: readout.safetensors: what the drift is measured on, and what the shield ranker and
            a penalty hold.
        out: folder of the run to write.
        scratch: folder of checkpoints; emptied when the run ends.
        dataset: name written into the summary.
        variant: name written into the summary.
        prompt: prompt lengths.
        roles: how many users are protected and held out.
        settings: PPO.
        shield: what keeps training from moving the ranking.
        bases: bases.safetensors, needed by the shields nullspace and random.
        explanation_tokens: longest explanation.
        precision: precision the base is served in.
        roles_seed: seed of the draw of protected and held-out users.
        seed: seed of this run.
        live: folder in which loggers write while the run goes on; none: they write nothing.
        loggers: tensorboard, wandb (offline, unless WANDB_MODE says otherwise); those that
            RECRL_LOGGERS names by default, else tensorboard.
    """
    # A reward may draw from the global generators; NumPy's takes 32 bits.
    set_seed(seed % 2**32)
    ranks = join()
    serving = Serving.load(data, base, templates, prompt, roles, roles_seed)
    model = load_adapter(load_base(base, precision, default_device()), adapter, trainable=True)
    states = load_states(ranker)
    head = RankingHead.of(states, load_readout(readout))
    inputs = {
        **{name: data / f"{name}.parquet" for name in ("train", "valid", "test", "items", "users")},
        **{name: templates / f"{name}.txt" for name in ("prefix", "request")},
        **{"ranker": ranker, "base": base, "adapter": adapter},
        **{"bases": bases, "readout": readout},
    }
    owner = fingerprint(
        {
            "code": code_digest("shielded_recrl.rl.train"),
            "inputs": {name: sha256(path) for name, path in inputs.items() if path is not None},
            "settings": [s.model_dump() for s in (prompt, roles, settings, shield)],
            "run": [dataset, variant, explanation_tokens, precision, roles_seed, seed],
            "machine": [ranks.world, default_device().type],
        }
    )
    trainer = PPO(
        model,
        serving.prompts.tokenizer,
        ExplainerPrompts(serving, states, settings, seed),
        study_reward(serving, states.valid_users, states.items, model, settings.reward),
        settings,
        max_new_tokens=explanation_tokens,
        seed=seed,
        shield=load_shield(shield, model, serving, head, bases, seed),
        probe=Drift(model, head, serving, settings.drift_users, shield.kind),
        engine=rollout_engine(
            settings, base, model, serving.prompts.tokenizer, precision, ranks.world
        ),
        ranks=ranks,
    )
    run(
        trainer,
        partial(export, trainer, out, shield.kind, {"dataset": dataset, "variant": variant}),
        steps=settings.steps,
        name=f"{dataset}/{variant}/seed-{seed}",
        owner=owner,
        out=out,
        scratch=scratch,
        live=live,
        loggers=loggers,
        snapshots_after=snapshot_steps(settings),
    )
    if ranks.leads:
        first, last = trainer.log[0], trainer.log[-1]
        print(
            f"{out}: reward {first['reward']:.3f} -> {last['reward']:.3f}, "
            f"KL {last['kl']:.3f} a token"
        )


class ExplainerPrompts:
    """Requests to explain train users one of their top items; see `trainer.PPO`."""

    def __init__(self, serving: Serving, states: RankerStates, settings: RLSettings, seed: int):
        """
        Args:
            serving: histories, roles and prompts.
            states: SASRec states after the train history, and item embeddings.
            settings: batch and slate.
            seed: seed of the run.
        """
        self.serving, self.states, self.seed = serving, states, seed
        self.count = settings.micro_batch * settings.gradient_accumulation
        self.slate = settings.slate

    def requests(self, step: int) -> list[Request]:
        """The requests of a step: a train user, and one of their top items."""
        rng = np.random.default_rng([self.seed, step, 0])
        train = self.serving.roles.train
        users = train[rng.integers(len(train), size=self.count)]
        # Only those who are drawn: a slate of everybody is a matrix of users x items.
        scores = self.states.valid_users[users] @ self.states.items.T
        slates = top_items(scores, self.serving.splits, "valid", users, self.slate)
        return [
            self.serving.request(int(user), int(rng.choice(slate[slate > 0])), "valid")
            for user, slate in zip(users, slates, strict=True)
        ]

    def __call__(self, step: int) -> Prompts:
        """The prompts of a step."""
        requests = self.requests(step)
        return Prompts(
            ids=[request.prompt for request in requests],
            active=[len(request.prompt) - len(request.prefix) for request in requests],
            context=requests,
        )


class Drift:
    """How far training has moved the scores that protected users are served."""

    def __init__(
        self, model: nn.Module, head: RankingHead, serving: Serving, users: int, kind: str
    ):
        """Score the users with the adapter off.

        Args:
            model: PEFT model.
            head: the served ranking.
            serving: whose protected users are measured.
            users: how many of them, the first.
            kind: of the shield; under `separate` the ranking is served with the adapter off.
        """
        prompts = [serving.prefix(user) for user in serving.roles.protected[:users]]
        self.model, self.adapter_off = model, kind == "separate"
        # A ranking of gamma 0 does not read the LM.
        self.change = ScorePenalty(model, prompts, head, 1.0, 0, users) if head.gamma > 0 else None

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Root mean square change of the scores, in standard deviations over items."""
        if self.change is None:
            return {"drift": 0.0}
        if self.adapter_off:
            with self.model.disable_adapter():
                return {"drift": float(self.change.loss(0)) ** 0.5}
        return {"drift": float(self.change.loss(0)) ** 0.5}


def rollout_engine(
    settings: RLSettings,
    base: Path,
    model: nn.Module,
    tokenizer,
    precision: Precision,
    world: int,
) -> Engine | None:
    """The engine a run asks for; None for the trainer's own."""
    if settings.engine == "transformers":
        return None
    if world > 1:
        raise UserError(
            "rl.engine: vllm and several processes would load a base each on one GPU; take one of "
            "the two: resources.gpu 1, or rl.engine transformers"
        )
    from shielded_recrl.rl.vllm_engine import VLLMEngine

    return VLLMEngine(base, model, tokenizer, precision)


def snapshot_steps(settings: RLSettings) -> set[int]:
    """Steps after which the adapter is kept, evenly along the run; the last is one."""
    count = settings.snapshots
    return {round(settings.steps * (i + 1) / count) for i in range(count)}


def export(trainer: PPO, out: Path, kind: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write the adapter; what the summary of an explainer says beside that of every run."""
    with sealed(out / "adapter") as folder:
        save_adapter(trainer.model, folder)
    trained = sum(weight.numel() for weight in trainer.parameters.values())
    every = sum(weight.numel() for weight in trainer.model.parameters())
    leak = {} if trainer.shield is None else {"leakage": trainer.shield.leakage()}
    return {**about, "trainable_share": trained / every, "shield": {"kind": kind, **leak}}
