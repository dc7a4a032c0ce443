"""What a run reports while it trains: the schema of train.jsonl, TensorBoard, W&B, a progress bar.

`StepLog` is the one place where a row of train.jsonl is defined; the JSON schema and the table in
the docs are made from it. TensorBoard tags and W&B keys are the keys of the row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from shielded_recrl import markdown
from shielded_recrl.errors import UserError, first_line
from shielded_recrl.memory import peak_rss_mb

LoggerName = Literal["tensorboard", "wandb"]
Row = Mapping[str, float]
# A logger is asked for by the study's config and by the flag of the plain loop.
WITHOUT = "leave it out of resources.loggers (of --logger in the plain loop)"


def figure(unit: str, description: str, **bounds: float) -> Any:
    """A field of `StepLog`."""
    return Field(description=description, json_schema_extra={"unit": unit}, **bounds)


class StepLog(BaseModel):
    """One row of train.jsonl: one PPO step.

    Every key beyond those below is the mean of a reward component, `reward_<name>`, or a figure of
    the run's probe; all are finite numbers.
    """

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, float] = Field(init=False)

    step: int = figure("count", "PPO steps finished, this one included.", ge=1)
    reward: float = figure(
        "reward", "Weighted sum of the reward's components, mean over the batch."
    )
    score: float = figure("reward", "The same, less the penalty of texts that did not end.")
    kl: float = figure(
        "nats/token",
        "KL to the base by k1, log pi - log pi_0 on sampled tokens; an estimate that can be "
        "below 0.",
    )
    kl_k3: float = figure("nats/token", "The same KL by k3, never below 0 (Schulman 2020).")
    kl_weight: float = figure(
        "reward/nat", "Coefficient of the KL inside the reward, in force in this step."
    )
    entropy: float = figure("nats/token", "Entropy of the policy the texts were sampled from.")
    loss: float = figure("loss/token", "Policy loss plus value loss.")
    policy_loss: float = figure(
        "loss/token",
        "Clipped surrogate at the last optimizer step; 0 while only values are fitted.",
    )
    value_loss: float = figure(
        "reward²/token", "Half the clipped squared error of the values at their last update."
    )
    approx_kl: float = figure(
        "nats/token",
        "KL by k3 from the policy of the rollouts to the one the last optimizer step began from.",
    )
    clip_share: float = figure(
        "share of tokens",
        "Tokens whose probability ratio left the clip range, at the last optimizer step.",
    )
    value_clip_share: float = figure(
        "share of tokens",
        "Tokens whose value left the range around its old estimate, at the last update.",
    )
    updates: int = figure("count", "Optimizer steps of the policy in this step.", ge=0)
    grad_norm: float = figure(
        "loss/weight", "Norm of the policy's gradient before clipping, at the last optimizer step."
    )
    explained_variance: float = figure(
        "share", "1 - Var(return - value) / Var(return) before the updates; 1 is perfect."
    )
    importance: float = figure(
        "ratio",
        "Mean truncated importance weight pi / pi_engine; 1 where engine and policy agree.",
    )
    words: float = figure("words", "Mean length of a text.")
    tokens: float = figure("tokens", "Mean length of a response, end-of-text included.")
    ended: float = figure("share of texts", "Texts that reached end-of-text in time.")
    tokens_per_second: float = figure(
        "tokens/s", "Response tokens over the seconds of the whole step.", ge=0
    )
    seconds: float = figure("s", "Wall-clock time of the step.", ge=0)
    memory_mb: float = figure(
        "MiB",
        "Peak so far: GPU memory allocated, or resident memory of the process on a CPU.",
        ge=0,
    )


def checked(row: Row) -> dict[str, float]:
    """A row that keeps to the schema, keys in the schema's order.

    Raises:
        UserError: a key is missing, or a value is no finite number; the line names step and key.
    """
    try:
        return StepLog.model_validate(dict(row)).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        got = f"; got {row[key]!r}" if key in row else ""
        raise UserError(
            f"train.jsonl: step {row.get('step', '?')}, {key}: {first['msg']}{got}; "
            "every figure of a step is a finite number, see docs/train_log.md"
        ) from error


def table() -> str:
    """The schema as a Markdown table."""
    rows = [
        (f"`{name}`", field.json_schema_extra["unit"], field.description)
        for name, field in StepLog.model_fields.items()
    ]
    rows += [
        ("`reward_<name>`", "reward", "Mean of a component, before its weight."),
        ("others", "", "Figures of the run's probe, such as `drift`."),
    ]
    return "\n".join([*markdown.table(("key", "unit", "meaning"), rows), ""])


@contextmanager
def open_loggers(
    folder: Path,
    names: Sequence[LoggerName],
    *,
    run_name: str,
    config: Mapping[str, Any],
    first_step: int,
) -> Iterator[Callable[[Row], None]]:
    """Yield a function that writes one row to every logger named.

    A row is on disk when the function returns, so a row written before a checkpoint is never lost
    to a kill after it.

    Args:
        folder: of the run; event files go to `tb/`, W&B's to `wandb/`, each made when needed.
        names: loggers; none writes nothing.
        run_name: name of the run in W&B.
        config: settings shown in W&B; JSON values.
        first_step: the step the first row will have. What an earlier try wrote from there on is
            hidden by TensorBoard; W&B has one run a try, all of them in the group `run_name`.

    Raises:
        UserError: W&B is asked for and not installed, or will not start.
    """
    with ExitStack() as stack:
        writers = []
        if "tensorboard" in names:
            writers.append(stack.enter_context(_tensorboard(folder / "tb", first_step)))
        if "wandb" in names:
            writers.append(stack.enter_context(_wandb(folder / "wandb", run_name, config)))

        def write(row: Row) -> None:
            for writer in writers:
                writer(row)

        yield write


@contextmanager
def _tensorboard(folder: Path, first_step: int) -> Iterator[Callable[[Row], None]]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, purge_step=first_step) as writer:

        def write(row: Row) -> None:
            for key, value in row.items():
                if key != "step":
                    writer.add_scalar(key, value, row["step"])
            writer.flush()

        yield write


@contextmanager
def _wandb(
    folder: Path, run_name: str, config: Mapping[str, Any]
) -> Iterator[Callable[[Row], None]]:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "logger wandb: not installed; install it with `pip install -c requirements.lock -e "
            f".[wandb]`, or {WITHOUT}"
        ) from error

    folder.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE", "offline")
    # W&B is given rows and settings; it would also collect code, packages and the machine's name.
    private = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        host="",
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "shielded-recrl"),
            name=run_name,
            group=run_name,
            dir=folder,
            config=dict(config),
            mode=mode,
            reinit="create_new",
            settings=private,
        )
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(
            f"logger wandb: does not start in mode {mode} ({first_line(error)}); set "
            f"WANDB_MODE=offline, or WANDB_API_KEY for mode online, or {WITHOUT}"
        ) from error
    with run:
        yield lambda row: run.log(
            {key: value for key, value in row.items() if key != "step"}, step=int(row["step"])
        )


def progress_bar(first_step: int, steps: int, name: str, disable: bool = False) -> tqdm:
    """A bar from `first_step` to `steps` on stderr; `advance` moves it."""
    return tqdm(
        total=steps,
        initial=first_step - 1,
        desc=name,
        unit="step",
        mininterval=5,
        disable=disable,
    )


def advance(bar: tqdm, row: Row) -> None:
    """Move the bar one step on, with the row's reward, KL and speed behind it."""
    bar.set_postfix(
        {
            "reward": f"{row['reward']:.3f}",
            "kl": f"{row['kl']:.3f}",
            "tokens/s": f"{row['tokens_per_second']:.0f}",
        },
        refresh=False,
    )
    bar.update()


def peak_memory_mb(cuda: bool) -> float:
    """Peak so far in MiB: of GPU memory allocated, or of this process's resident memory."""
    if cuda:
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return peak_rss_mb()
