"""Train a LoRA adapter (Hu et al. 2022) on what recommenders said: the response LM before RL.

In: base LM, prepared dialogues, emotions, recommendations. Out: a plain PEFT folder, and
supervise.jsonl with a row for each validation:

    step                    optimizer steps so far; 0 is the base
    train_loss              mean loss since the row before, null at step 0
    valid_loss              cross-entropy of a token of the response, in nats
    valid_perplexity        exp(valid_loss)
    valid_perplexity_turns  the base's, of prompts that have the turns alone; null later on

The loss is that of the response alone, end-of-text included. Training ends when the validation loss
has not fallen for `patience` validations; the adapter of its lowest is what is written. Only train
turns are trained on; the test split decides nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from shielded_recrl.dialogue.inputs import ResponseInputs
from shielded_recrl.dialogue.response.examples import example, shuffled
from shielded_recrl.dialogue.response.generation import require_room
from shielded_recrl.dialogue.response.prompts import (
    ResponsePrompts,
    ResponseRequest,
    names_again,
    spread,
)
from shielded_recrl.dialogue.settings import SuperviseSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import default_device, load_base
from shielded_recrl.explainer.init import new_adapter, save_adapter
from shielded_recrl.explainer.lm import adapter_parameters
from shielded_recrl.explainer.pretrain import (
    MAX_GRAD_NORM,
    WEIGHT_DECAY,
    Example,
    batches,
    collate,
    learning_rate_factor,
    weighted_loss,
)
from shielded_recrl.files import sealed, write_jsonl

# Responses that are validated together.
VALID_BATCH = 64


def main(
    *,
    inputs: Annotated[ResponseInputs, tyro.conf.arg(name="")],
    out: Path,
    log: Path,
    settings: Annotated[SuperviseSettings, tyro.conf.arg(name="")],
) -> None:
    """Train a LoRA adapter on the recommender's turns.

    Args:
        inputs: what responses are written from.
        out: folder of the adapter to write.
        log: supervise.jsonl to write.
        settings: size of the adapter, and its training.
    """
    prompts, seed = inputs.prompts(), inputs.seed
    taught, held = (lessons(prompts, split, inputs.response_tokens) for split in ("train", "valid"))
    for split, found in (("train", taught), ("valid", held)):
        if not found:
            raise UserError(
                f"{inputs.data}: no recommender of the {split} split answers in {inputs.response_tokens} tokens "
                "or less; raise dialogue.response.response_tokens or give more dialogues"
            )
    held = spread(held, settings.valid_responses)
    device = default_device()
    model = load_base(inputs.base, inputs.precision, device)
    require_room(model, inputs.prompt.prompt_tokens + inputs.response_tokens)
    model = new_adapter(model, settings.lora_rank, settings.lora_alpha, seed)
    found = fit(
        model,
        [row(prompts, request) for request in taught],
        [row(prompts, request) for request in held],
        settings,
        seed,
        device,
    )
    turns_alone = [row(prompts, request, plain=True) for request in held]
    with model.disable_adapter():
        before = validation_loss(model, turns_alone, device)
    rows = [{**line, "valid_perplexity_turns": None} for line in found.log]
    rows[0]["valid_perplexity_turns"] = math.exp(before)
    with sealed(out) as partial:
        save_adapter(model, partial)
    write_jsonl(log, rows)
    best = next(line for line in rows if line["step"] == found.step)
    print(
        f"{out}: LoRA rank {settings.lora_rank}, best at step {found.step} of "
        f"{rows[-1]['step']}; validation perplexity {best['valid_perplexity']:.2f}, of the base "
        f"{rows[0]['valid_perplexity']:.2f} ({math.exp(before):.2f} where it is shown the turns "
        "alone)"
    )


def lessons(prompts: ResponsePrompts, split: str, response_tokens: int) -> list[ResponseRequest]:
    """Requests of a split to learn from, their prompts as the LM is served them.

    Their gold response fits, so that the LM learns to end in time, and names new films only, as do
    the recommendations that fill its slots.
    """
    turns = {dialogue.index: dialogue.turns for dialogue in prompts.dialogues.split(split)}
    return [
        request
        for request in prompts.requests(split)
        if not names_again(turns[request.dialogue], request.turn)
        and len(prompts.response_ids(request.gold)) <= response_tokens
    ]


def row(prompts: ResponsePrompts, request: ResponseRequest, plain: bool = False) -> Example:
    """A request and its gold response; only tokens of the response have a weight."""
    prompt = prompts.plain_ids(request.context) if plain else prompts.ids(request)
    return example(prompt, prompts.response_ids(request.gold), 0.0)


class Fit(NamedTuple):
    """Outcome of a training: the step whose weights the model now has, and all validations."""

    step: int
    log: list[dict[str, Any]]


def fit(
    model: nn.Module,
    taught: Sequence[Example],
    held: Sequence[Example],
    settings: SuperviseSettings,
    seed: int,
    device: torch.device,
) -> Fit:
    """Train an adapter in place, up to the step with the lowest validation loss.

    Args:
        model: PEFT model with a trainable adapter.
        taught: what is trained on.
        held: what is validated on.
        settings: of the training.
        seed: of the order.
        device: of the model.

    Raises:
        UserError: a loss is not finite, or the base is not beaten.
    """
    rng = random.Random(seed)
    stream = batches(shuffled(taught, rng), settings.batch_size, rng)
    weights = adapter_parameters(model)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.steps)
    )
    log = [validation(0, None, validation_loss(model, held, device))]
    best, kept = log[0], copies(weights)
    bar = tqdm(total=settings.steps, desc="supervise", unit="step", mininterval=5)
    with bar:
        for step, losses in training(model, stream, optimizer, scheduler, settings, device):
            log.append(validation(step, losses, validation_loss(model, held, device)))
            bar.update(step - bar.n)
            bar.set_postfix(valid=f"{log[-1]['valid_loss']:.3f}", refresh=False)
            if log[-1]["valid_loss"] < best["valid_loss"]:
                best, kept = log[-1], copies(weights)
            elif sum(line["step"] > best["step"] for line in log) >= settings.patience:
                break
    if best["step"] == 0:
        raise UserError(
            "dialogue.response.supervise: no validation loss is below the base's "
            f"{best['valid_loss']:.3f}; lower learning_rate or give more steps"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(kept[name])
    return Fit(best["step"], log)


def training(
    model: nn.Module,
    stream: Iterator[list[Example]],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    settings: SuperviseSettings,
    device: torch.device,
) -> Iterator[tuple[int, float]]:
    """Train; whenever a validation is due, the step and the mean loss since the last one."""
    losses: list[float] = []
    for step in range(1, settings.steps + 1):
        loss = batch_loss(model, next(stream), device)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        losses.append(require_finite(loss, f"training loss of step {step}"))
        if step % settings.evaluate_every == 0 or step == settings.steps:
            yield step, sum(losses) / len(losses)
            losses = []


def batch_loss(model: nn.Module, batch: Sequence[Example], device: torch.device) -> Tensor:
    """Mean cross-entropy of the tokens that have a weight."""
    # Padding follows the text, so the causal mask alone keeps it unseen, whichever token it is.
    ids, weights = (tensor.to(device) for tensor in collate(list(batch), 0))
    logits = model(input_ids=ids, use_cache=False).logits
    return weighted_loss(logits.float(), ids, weights)


@torch.no_grad()
def validation_loss(model: nn.Module, held: Sequence[Example], device: torch.device) -> float:
    """Cross-entropy of a token of the responses, mean over all tokens.

    Raises:
        UserError: it is not finite.
    """
    ordered = sorted(held, key=lambda one: len(one.ids))
    total = count = 0.0
    for start in range(0, len(ordered), VALID_BATCH):
        batch = ordered[start : start + VALID_BATCH]
        tokens = sum(sum(one.weights) for one in batch)
        total += tokens * batch_loss(model, batch, device).item()
        count += tokens
    return require_finite(torch.tensor(total / count), "validation loss")


def validation(step: int, train_loss: float | None, valid_loss: float) -> dict[str, Any]:
    """A row of the log."""
    return {
        "step": step,
        "train_loss": train_loss,
        "valid_loss": valid_loss,
        "valid_perplexity": math.exp(valid_loss),
    }


def require_finite(loss: Tensor, what: str) -> float:
    """A loss as a number.

    Raises:
        UserError: it is none.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise UserError(
            f"dialogue.response.supervise: the {what} is {value}; lower learning_rate, or hold the "
            "base in a wider precision (dialogue.response.precision)"
        )
    return value


def copies(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Copies of weights, by name."""
    return {name: weight.detach().clone() for name, weight in weights.items()}
