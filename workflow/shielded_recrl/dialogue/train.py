"""Train the response LM by reward with token-level PPO, from its supervised adapter on.

In: base LM, supervised adapter, frozen critic, prepared dialogues, emotions, recommendations. Out: a
folder with

    adapter/        LoRA weights over the supervised LM, see `policy`
    train.jsonl     a row for each step, see docs/train_log.md; its `kl` is to the supervised LM
    summary.json    steps, samples, the weights' distance from the supervised ones, the digests of
                    all that was read, and the recommender's recall before training and after it

One step answers a batch of train turns and updates the policy on what the reward makes of the
answers. The trainer takes its KL to the model with the adapter off; the supervised adapter is merged
first, so that this is the supervised LM and not the base. Films are recommended before: what is
trained here writes `<movie>`, and which film that is stands in `recommendations.parquet`, which is
read only. So no step can move the recommender's recall: it is measured before the first step and again,
from the file read anew, after the last, and a run that finds another file writes nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import nn

from shielded_recrl.dialogue.comparison.recall import served
from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.critique.model import Critic
from shielded_recrl.dialogue.inputs import ResponseInputs
from shielded_recrl.dialogue.response.generation import require_room
from shielded_recrl.dialogue.response.prompts import ResponsePrompts, ResponseRequest
from shielded_recrl.dialogue.rl.policy import WEIGHTS, distance, new_policy, save_policy
from shielded_recrl.dialogue.rl.reward import dialogue_reward
from shielded_recrl.dialogue.settings import DialogueRLSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device
from shielded_recrl.files import sha256
from shielded_recrl.provenance import code_digest
from shielded_recrl.resume import fingerprint
from shielded_recrl.rl.distributed import join
from shielded_recrl.rl.logs import LoggerName
from shielded_recrl.rl.run import run
from shielded_recrl.rl.trainer import PPO, Prompts

# Stream of the order of the prompts; the trainer's have other names.
ORDER = 0
# Resamples of the interval of recall.
RESAMPLES = 1000


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
    prompts, seed, device = inputs.prompts(), inputs.seed, default_device()
    asked = TrainPrompts(
        prompts,
        prompts.requests("train"),
        settings.micro_batch * settings.gradient_accumulation,
        seed,
    )
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
    digests = {name: sha256(path) for name, path in read.items()}
    before = served(inputs.recommendations, prompts.dialogues, RESAMPLES)
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

    def export() -> dict[str, Any]:
        # The critic refuses to score once it changed; this holds against what its counters cannot see.
        if digest(judge.learned.model) != frozen:
            raise UserError(
                f"{reward_critic}: the critic's weights changed in training; it is to be frozen"
            )
        after = served_again(inputs, prompts.dialogues, before)
        save_policy(model, inputs.base, supervised, out / "adapter")
        return {
            "inputs": digests,
            "form": inputs.form(),
            "settings_sha256": fingerprint({"settings": settings.model_dump(), **inputs.form()}),
            "recall": {"before": before, "after": after},
            "train_turns": len(asked.requests),
            "samples": trainer.step * trainer.batch,
            "critic_sha256": frozen,
            "supervised_sha256": sha256(supervised / WEIGHTS),
            "distance": distance(model),
        }

    run(
        trainer,
        export,
        steps=asked.steps(settings),
        name=f"dialogue/seed-{seed}",
        owner=fingerprint(
            {
                "code": code_digest("shielded_recrl.dialogue.train"),
                "inputs": digests,
                "settings": [inputs.form(), settings.model_dump()],
                "seed": seed,
                "machine": [ranks.world, device.type],
            }
        ),
        out=out,
        scratch=scratch,
        live=live,
        loggers=loggers,
    )
    if ranks.leads:
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


def served_again(
    inputs: ResponseInputs, dialogues: Dialogues, before: Mapping[str, Any]
) -> dict[str, Any]:
    """What the recommendations are worth now, see `served`.

    Raises:
        UserError: they are not what they were before.
    """
    after = served(inputs.recommendations, dialogues, RESAMPLES)
    if after != before:
        raise UserError(
            f"{inputs.recommendations}: changed while responses were trained; nothing of this stage "
            "writes it, so run recommend and train one after the other"
        )
    return after
