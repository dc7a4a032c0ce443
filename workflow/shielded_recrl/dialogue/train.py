"""Train the response LM by reward with token-level PPO, from its supervised adapter on.

In: base LM, supervised adapter, frozen critic, prepared dialogues, emotions, recommendations. Out: a
folder with

    adapter/        LoRA weights over the supervised LM, see `policy`
    train.jsonl     a row for each step, see docs/train_log.md; its `kl` is to the supervised LM
    summary.json    steps, samples, the weights' distance from the supervised ones

One step answers a batch of train turns and updates the policy on what the reward makes of the
answers. The trainer takes its KL to the model with the adapter off; the supervised adapter is merged
first, so that this is the supervised LM and not the base. Films are recommended before: what is
trained here writes `<movie>`, and which film that is stands in `recommendations.parquet`, which is
read only. So no step can move the recommender's recall.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import nn

from shielded_recrl.dialogue.critique.model import Critic
from shielded_recrl.dialogue.inputs import ResponseInputs
from shielded_recrl.dialogue.response.generation import require_room
from shielded_recrl.dialogue.response.prompts import ResponsePrompts, ResponseRequest
from shielded_recrl.dialogue.rl.policy import WEIGHTS, distance, new_policy, save_policy
from shielded_recrl.dialogue.rl.reward import dialogue_reward
from shielded_recrl.dialogue.settings import DialogueRLSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device
from shielded_recrl.files import sha256, write_json, write_jsonl
from shielded_recrl.provenance import code_digest
from shielded_recrl.resume import discard_progress, fingerprint, load_progress, save_progress
from shielded_recrl.rl.distributed import join
from shielded_recrl.rl.logs import LoggerName, advance, open_loggers, progress_bar
from shielded_recrl.rl.trainer import PPO, Prompts

# Stream of the order of the prompts; the trainer's have other names.
ORDER = 0


def main(
    *,
    inputs: Annotated[ResponseInputs, tyro.conf.arg(name="")],
    supervised: Path,
    reward_critic: Path,
    out: Path,
    scratch: Path,
    settings: Annotated[DialogueRLSettings, tyro.conf.arg(name="")],
    live: Path | None = None,
    loggers: tuple[LoggerName, ...] | None = None,
) -> None:
    """Train the supervised response LM with PPO.

    Args:
        inputs: what responses are written from.
        supervised: folder of the supervised adapter.
        reward_critic: folder of the trained critic.
        out: folder of the run to write.
        scratch: folder of checkpoints; emptied when the run ends.
        settings: PPO and the reward's weights.
        live: folder in which loggers write while the run goes on; none: they write nothing.
        loggers: tensorboard, wandb; those that RECRL_LOGGERS names by default, else tensorboard.
    """
    if settings.engine != "transformers":
        raise UserError(
            "dialogue.rl.engine: vllm reads a base from a folder, and the supervised LM is merged in "
            "memory; take transformers"
        )
    ranks = join()
    prompts, seed = inputs.prompts(), inputs.seed
    asked = TrainPrompts(
        prompts,
        prompts.requests("train"),
        settings.micro_batch * settings.gradient_accumulation,
        seed,
    )
    steps = asked.steps(settings)
    device = default_device()
    model = new_policy(
        inputs.base,
        supervised,
        settings.lora_rank,
        settings.lora_alpha,
        seed,
        inputs.precision,
        device,
    )
    require_room(model, inputs.prompt.prompt_tokens + inputs.response_tokens)
    judge = Critic.load(reward_critic, device)
    frozen = digest(judge.learned.model)
    read = {**inputs.files(), "supervised": supervised, "critic": reward_critic}
    owner = fingerprint(
        {
            "code": code_digest("shielded_recrl.dialogue.train"),
            "inputs": {name: sha256(path) for name, path in read.items()},
            "settings": [inputs.prompt.model_dump(), settings.model_dump()],
            "run": [inputs.precision, inputs.response_tokens, seed],
            "machine": [ranks.world, device.type],
        }
    )
    trainer = PPO(
        model,
        prompts.tokenizer,
        asked,
        dialogue_reward(judge, prompts.dialogues, settings.reward),
        settings,
        max_new_tokens=inputs.response_tokens,
        seed=seed,
        ranks=ranks,
    )
    checkpoint = scratch / "checkpoint.safetensors"
    if (saved := load_progress(checkpoint, owner)) is not None:
        trainer.restore(saved)
        if ranks.leads:
            print(f"resumed at step {saved.step} from {checkpoint}", file=sys.stderr)
    if loggers is None:
        loggers = tuple(os.environ.get("RECRL_LOGGERS", "tensorboard").split())
    name = f"dialogue/seed-{seed}"
    logging = open_loggers(
        live or out,
        loggers if live and ranks.leads else (),
        run_name=name,
        config=settings.model_dump(mode="json"),
        first_step=trainer.step + 1,
    )
    with logging as write, progress_bar(trainer.step + 1, steps, name, not ranks.leads) as bar:
        while trainer.step < steps:
            row = trainer.train_step()
            write(row)
            advance(bar, row)
            due = trainer.step % settings.checkpoint_every == 0 and trainer.step < steps
            if due and ranks.leads:
                save_progress(checkpoint, trainer.checkpoint(), owner)
    ranks.leave()
    if not ranks.leads:
        return
    # The critic refuses to score once it changed; this holds against what its counters cannot see.
    if digest(judge.learned.model) != frozen:
        raise UserError(
            f"{reward_critic}: the critic's weights changed in training; it is to be frozen"
        )
    about = {
        "seed": seed,
        "fingerprint": owner,
        "train_turns": len(asked.requests),
        "critic_sha256": frozen,
        "supervised_sha256": sha256(supervised / WEIGHTS),
    }
    export(trainer, supervised, out, about)
    discard_progress(checkpoint)
    first, last = trainer.log[0], trainer.log[-1]
    print(
        f"{out}: reward {first['reward']:.3f} -> {last['reward']:.3f}, critic "
        f"{first['reward_critic']:.3f} -> {last['reward_critic']:.3f}, KL to the supervised LM "
        f"{last['kl']:.3f} a token"
    )


class TrainPrompts:
    """Train turns to answer: all of them in a random order, then all in another; see `trainer.PPO`."""

    def __init__(
        self,
        prompts: ResponsePrompts,
        requests: Sequence[ResponseRequest],
        batch: int,
        seed: int,
    ):
        """
        Args:
            prompts: turns requests into token ids.
            requests: the turns.
            batch: turns in a step.
            seed: of the orders.

        Raises:
            UserError: there is no turn.
        """
        if not requests:
            raise UserError("dialogue: no turn of a recommender in train; give more dialogues")
        self.prompts, self.requests, self.batch, self.seed = prompts, list(requests), batch, seed

    def steps(self, settings: DialogueRLSettings) -> int:
        """Steps of a run: as many as are set, or as the passes over all turns take."""
        return settings.steps or math.ceil(settings.passes * len(self.requests) / self.batch)

    def rows(self, step: int) -> list[int]:
        """Which turns a step answers."""
        count = len(self.requests)
        places = range(step * self.batch, (step + 1) * self.batch)
        orders = {
            turn: np.random.default_rng([self.seed, turn, ORDER]).permutation(count)
            for turn in {place // count for place in places}
        }
        return [int(orders[place // count][place % count]) for place in places]

    def __call__(self, step: int) -> Prompts:
        """The prompts of a step."""
        requests = [self.requests[row] for row in self.rows(step)]
        ids = [self.prompts.ids(request) for request in requests]
        return Prompts(ids=ids, active=[len(row) for row in ids], context=requests)


def digest(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def export(trainer: PPO, supervised: Path, out: Path, about: dict[str, Any]) -> None:
    """Write the run's folder."""
    save_policy(trainer.model, supervised, out / "adapter")
    write_jsonl(out / "train.jsonl", trainer.log)
    trained = sum(weight.numel() for weight in trainer.parameters.values())
    write_json(
        out / "summary.json",
        {
            **about,
            "steps": trainer.step,
            "samples": trainer.step * trainer.batch,
            "seconds": sum(row["seconds"] for row in trainer.log),
            "peak_memory_mb": trainer.log[-1]["memory_mb"],
            "trainable_parameters": trained,
            "adapter_sha256": sha256(out / "adapter" / WEIGHTS),
            "distance": distance(trainer.model),
        },
    )
