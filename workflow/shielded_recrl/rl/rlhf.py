"""The plain RLHF loop: a prompt, a response, a reward, PPO. No recommender, no shield.

In: a base LM (by default one that is trained on the spot) and a list of prompts. Out, in
runs/<name>/:

    adapter/      plain PEFT adapter
    logs/         train.jsonl, a row a step
    tb/           the same for TensorBoard
    checkpoints/  where a killed run goes on from
    samples.md    responses before and after
    curve.png     reward, KL, length and entropy over steps

What happens in a step is in `trainer`; this file says what is asked, what is rewarded and where
things are kept.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from pydantic import Field
from transformers import set_seed

from shielded_recrl.errors import UserError, first_line
from shielded_recrl.explainer.base import default_device, load_base, load_tokenizer
from shielded_recrl.explainer.init import new_adapter, save_adapter
from shielded_recrl.explainer.settings import Precision
from shielded_recrl.files import sealed, sha256, write_jsonl, write_text
from shielded_recrl.hub import Revision, fetched_name
from shielded_recrl.provenance import code_digest
from shielded_recrl.resume import Progress, fingerprint, load_progress, save_progress
from shielded_recrl.rl.curve import save_curve
from shielded_recrl.rl.logs import LoggerName, advance, open_loggers, progress_bar
from shielded_recrl.rl.reviews import PROMPTS, embedded_base
from shielded_recrl.rl.rewards.base import Composite
from shielded_recrl.rl.rewards.plain import LengthPenalty, Preference, Sentiment
from shielded_recrl.rl.samples import page, say
from shielded_recrl.rl.settings import PPOSettings
from shielded_recrl.rl.trainer import PPO, Prompts
from shielded_recrl.settings import Settings


class RLHFSettings(Settings):
    """The plain RLHF loop."""

    reward: Literal["sentiment", "preference", "length"] = Field(
        "sentiment", description="A positive tone, a preferred ending, or few words."
    )
    epochs: int = Field(5, ge=1, description="Epochs; a checkpoint is written after each.")
    steps_per_epoch: int = Field(20, ge=1, description="PPO steps of an epoch.")
    batch_size: int = Field(64, ge=1, description="Responses in a step.")
    micro_batch: int | None = Field(
        None, ge=1, description="Responses in one pass, a divisor of the batch; none: all of them."
    )
    max_new_tokens: int = Field(24, ge=1, description="Longest response.")
    learning_rate: float = Field(2e-3, gt=0, description="Adam learning rate of the adapter.")
    kl_coef: float = Field(0.05, ge=0, description="Weight of the KL to the base in the reward.")
    ppo_epochs: int = Field(4, ge=1, description="Passes of updates over the responses of a step.")
    lora_rank: int = Field(8, ge=1, description="Rank of the adapter; its alpha is twice that.")
    seed: int = Field(42, ge=0, description="Seed of every draw.")
    model: str = Field(
        "embedded", description="`embedded` (trained on the spot), a local folder, or a hub id."
    )
    revision: Revision = Field(None, description="Commit of the hub repository.")
    precision: Precision = Field("fp32", description="Weights of the base.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    prompts: Path | None = Field(
        None, description="Text file, a prompt a line; none: openings of reviews."
    )
    preferred: tuple[str, ...] = Field(
        ("to everyone", "whole family", "back to it"), description="Endings that earn 1."
    )
    dispreferred: tuple[str, ...] = Field(
        ("to anyone", "time and money", "avoid it"), description="Endings that cost 1."
    )
    target_words: int = Field(4, ge=1, description="Words that the reward `length` does not mind.")
    logger: tuple[LoggerName, ...] = Field(("tensorboard",), description="tensorboard, wandb.")
    name: str | None = Field(
        None,
        pattern=r"^\w[\w.-]*$",
        description="Name of the run, of its folder, too; none: reward and seed.",
    )
    runs: Path = Field(Path("runs"), description="Folder of runs, and of bases made for them.")
    overwrite: bool = Field(
        False,
        description="Delete what the folder holds, and start anew, unless it is this very run.",
    )


def main(*, settings: Annotated[RLHFSettings, tyro.conf.arg(name="")]) -> None:
    """Train a LoRA adapter with PPO on a reward that reads nothing but the response.

    A run that was killed goes on by the same command, and ends in the same bytes. With more epochs,
    a finished run goes on, too.

    Raises:
        UserError: settings that do not go together, or a folder that holds something else.
    """
    name = settings.name or f"{settings.reward}-{settings.seed}"
    run = settings.runs / name
    device = chosen_device(settings.device)
    ppo = ppo_settings(settings)
    prompts = load_prompts(settings.prompts)
    reward = make_reward(settings)
    base = base_folder(settings)
    for flag, path in (("--model", base), ("--prompts", settings.prompts)):
        if path is not None and path.resolve().is_relative_to(run.resolve()):
            raise UserError(f"{flag} {path}: lies in the run's folder {run}; choose another --name")

    # A reward may draw from the global generators; NumPy's takes 32 bits.
    set_seed(settings.seed % 2**32)
    tokenizer = load_tokenizer(base)
    model = new_adapter(
        load_base(base, settings.precision, device),
        settings.lora_rank,
        2 * settings.lora_rank,
        settings.seed,
    )
    trainer = PPO(
        model,
        tokenizer,
        Shuffled(prompts, tokenizer, settings.batch_size, settings.seed),
        reward,
        ppo,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
    )
    # How long a run is, where it lies and how it is logged change nothing of what it learns.
    free = {"epochs", "steps_per_epoch", "name", "runs", "logger", "overwrite", "model", "prompts"}
    owner = fingerprint(
        {
            "code": code_digest("shielded_recrl.rl.rlhf"),
            "settings": settings.model_dump(exclude=free),
            "base": sha256(base),
            "prompts": prompts,
            "device": device.type,
        }
    )
    goes_on = take_up(trainer, run, owner, settings.overwrite)
    learn(trainer, run, owner, name, settings, goes_on)

    title = f"PPO on the reward {settings.reward}, seed {settings.seed}"
    export(trainer, prompts, run, title)
    first, last = trainer.log[0], trainer.log[-1]
    print(
        f"{run}: {trainer.step} steps, reward {first['reward']:.3f} -> {last['reward']:.3f}, "
        f"KL {last['kl']:.3f} a token\n"
        f"  adapter  {run / 'adapter'}\n"
        f"  texts    {run / 'samples.md'}\n"
        f"  curve    {run / 'curve.png'}\n"
        f"  log      {run / LOG}\n"
        f"next: tensorboard --logdir {settings.runs}"
    )


LOG = Path("logs", "train.jsonl")
CHECKPOINT = Path("checkpoints", "checkpoint.safetensors")
ANEW = "choose another --name, or start anew with --overwrite True"
DEVICES = re.compile(r"cpu|cuda(:\d+)?|mps")


def ppo_settings(settings: RLHFSettings) -> PPOSettings:
    """What the trainer is told.

    Raises:
        UserError: the micro batch does not divide the batch.
    """
    micro = settings.micro_batch or settings.batch_size
    if settings.batch_size % micro:
        raise UserError(
            f"--micro-batch {micro} does not divide --batch-size {settings.batch_size}; "
            "choose a divisor"
        )
    return PPOSettings(
        steps=settings.epochs * settings.steps_per_epoch,
        micro_batch=micro,
        gradient_accumulation=settings.batch_size // micro,
        epochs=settings.ppo_epochs,
        learning_rate=settings.learning_rate,
        kl_weight=settings.kl_coef,
        checkpoint_every=settings.steps_per_epoch,
    )


def make_reward(settings: RLHFSettings) -> Composite:
    """The reward a run asks for."""
    if settings.reward == "sentiment":
        return Composite([Sentiment()], {"sentiment": 1.0})
    if settings.reward == "preference":
        endings = Preference(settings.preferred, settings.dispreferred)
        return Composite([endings], {"preference": 1.0})
    return Composite([LengthPenalty(settings.target_words)], {"length_penalty": -1.0})


def chosen_device(name: str) -> torch.device:
    """The device of a name; `auto` is the GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return default_device()
    refusal = f"--device {name}: no such device here; choose auto, cpu, cuda, cuda:N or mps"
    if not DEVICES.fullmatch(name):
        raise UserError(refusal)
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(refusal) from error


def load_prompts(path: Path | None) -> list[str]:
    """The prompts of a file, a line each, empty lines left out; openings of reviews by default.

    Raises:
        UserError: no such file, no text, or no prompt in it.
    """
    if path is None:
        return list(PROMPTS)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path}: no readable text file ({error})") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts {path}: no prompt in it; write one a line")
    return prompts


def base_folder(settings: RLHFSettings) -> Path:
    """Folder of the base LM; made or downloaded where it is not there yet.

    Raises:
        UserError: a name that is no folder and has no commit.
    """
    if settings.model == "embedded":
        return embedded_base(settings.runs)
    folder = Path(settings.model)
    if folder.is_dir():
        return folder
    if settings.revision is None:
        raise UserError(
            f"--model {settings.model}: no such folder; a hub id needs --revision and the "
            "40 digits of a commit"
        )
    from shielded_recrl.explainer.fetch import main as fetch

    named = f"{fetched_name(settings.model)}-{settings.revision[:12]}"
    folder = settings.runs / named
    if not folder.is_dir():
        fetch(repository=settings.model, revision=settings.revision, out=folder)
    return folder


class Shuffled:
    """The prompts of each step: all of them in a random order, then all of them in another."""

    def __init__(self, prompts: Sequence[str], tokenizer, batch_size: int, seed: int):
        """
        Args:
            prompts: texts.
            tokenizer: of the base LM.
            batch_size: prompts in a step.
            seed: of the orders.
        """
        self.ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, step: int) -> Prompts:
        """The prompts of a step; see `trainer.Prompts`."""
        first = step * self.batch_size
        ids = [self.at(place) for place in range(first, first + self.batch_size)]
        return Prompts(ids, [len(row) for row in ids], [None] * self.batch_size)

    def at(self, place: int) -> list[int]:
        """The prompt at a place of the endless sequence."""
        turn, index = divmod(place, len(self.ids))
        order = np.random.default_rng([self.seed, turn, 0]).permutation(len(self.ids))
        return self.ids[order[index]]


def take_up(trainer: PPO, run: Path, owner: str, overwrite: bool) -> bool:
    """Go on from the checkpoint in a run's folder; whether there was one to go on from.

    Raises:
        UserError: the folder holds a longer run, or anything else that may not be deleted.
    """
    if (saved := saved_progress(run, owner, overwrite)) is not None:
        if saved.step > trainer.settings.steps:
            raise UserError(
                f"{run}: this run has {saved.step} steps already, {trainer.settings.steps} are "
                "asked for; ask for more, or choose another --name"
            )
        trainer.restore(saved)
        print(f"{run}: goes on from step {saved.step}")
    elif run.exists() and any(run.iterdir()) and not overwrite:
        what = (
            "a run with other settings, inputs or code"
            if (run / CHECKPOINT).is_file()
            else "files, and no checkpoint to go on from"
        )
        raise UserError(f"{run}: holds {what}; {ANEW}")
    return saved is not None


def saved_progress(run: Path, owner: str, overwrite: bool) -> Progress | None:
    """The checkpoint of this very run, if the folder has one.

    Raises:
        UserError: it is damaged and may not be deleted.
    """
    try:
        return load_progress(run / CHECKPOINT, owner)
    except UserError as error:
        if overwrite:
            return None
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{run / CHECKPOINT}: damaged checkpoint ({reason}); {ANEW}") from error


@contextmanager
def cleared(folder: Path) -> Iterator[None]:
    """Make room for a folder: what is there is deleted if the block succeeds, else put back."""
    if not folder.exists():
        yield
        return
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
    folder.rename(aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        raise
    shutil.rmtree(aside)


def learn(
    trainer: PPO, run: Path, owner: str, name: str, settings: RLHFSettings, goes_on: bool
) -> None:
    """The remaining steps; each is logged at once, each epoch ends in a checkpoint.

    A new run begins with a checkpoint, so that it can always go on. The log is cut back to the
    checkpoint a run goes on from: the rows after it will be made once more.

    Raises:
        UserError: a logger does not start; what the folder held is still there.
    """
    steps = trainer.settings.steps
    logging = open_loggers(
        run,
        settings.logger,
        run_name=name,
        config=settings.model_dump(mode="json"),
        first_step=trainer.step + 1,
    )
    with ExitStack() as stack:
        with nullcontext() if goes_on else cleared(run):
            write = stack.enter_context(logging)
            write_jsonl(run / LOG, trainer.log)
            if not goes_on:
                save_progress(run / CHECKPOINT, trainer.checkpoint(), owner)
        bar = stack.enter_context(progress_bar(trainer.step + 1, steps, name))
        while trainer.step < steps:
            row = trainer.train_step()
            append(run / LOG, row)
            write(row)
            advance(bar, row)
            if trainer.step % trainer.settings.checkpoint_every == 0:
                save_progress(run / CHECKPOINT, trainer.checkpoint(), owner)


def append(path: Path, row: dict[str, float]) -> None:
    """Add a row to a file of one JSON object a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, sort_keys=True, allow_nan=False) + "\n")


def export(trainer: PPO, prompts: Sequence[str], run: Path, title: str) -> None:
    """Write adapter, samples and curve."""
    with sealed(run / "adapter") as partial:
        save_adapter(trainer.model, partial)
    before, after = (
        say(
            trainer.model,
            trainer.tokenizer,
            prompts,
            trainer.reward,
            adapter=adapter,
            max_new_tokens=trainer.max_new_tokens,
            temperature=trainer.settings.rollout_temperature,
            seed=trainer.seed,
        )
        for adapter in (False, True)
    )
    write_text(run / "samples.md", page(title, before, after))
    save_curve(trainer.log, title, run / "curve.png")
