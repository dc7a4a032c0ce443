"""This project's PPO. Variants: the value critic, `shared` or `separate`."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from peft import get_peft_model
from work import (
    CLIP_RATIO,
    CLIP_VALUE,
    DISCOUNT,
    EPOCHS,
    GAE_LAMBDA,
    KL_WEIGHT,
    LEARNING_RATE,
    TEMPERATURE,
    Job,
    Meter,
    arguments,
    draw_prompts,
    llama,
    lora,
    report,
    rss_mb,
    word_tokenizer,
    words_reward,
)

from shielded_recrl.rl.settings import PPOSettings
from shielded_recrl.rl.trainer import PPO, Prompts

PARTS = {
    "engine": "generate",
    "refer": "score, base",
    "score": "score, policy",
    "reward": "reward",
    "update_policy": "update, policy",
    "update_critic": "update, critic",
}


def settings(job: Job, critic: str) -> PPOSettings:
    """What the peers are given, and nothing that they do not do."""
    return PPOSettings(
        micro_batch=job.batch,
        gradient_accumulation=1,
        mini_batches=1,
        epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        value_learning_rate=LEARNING_RATE,
        value_epochs=EPOCHS,
        value_warmup=0,
        kl_weight=KL_WEIGHT,
        clip_ratio=CLIP_RATIO,
        clip_value=CLIP_VALUE,
        discount=DISCOUNT,
        gae_lambda=GAE_LAMBDA,
        rollout_temperature=TEMPERATURE,
        missing_eos_penalty=0.0,
        critic=critic,
    )


def clocked(trainer: PPO) -> dict[str, float]:
    """Put a clock around each part of a step; its seconds so far, by the name of the part."""
    seconds: dict[str, float] = defaultdict(float)

    def clock(part: str, call: Callable) -> Callable:
        def run(*arguments, **named):
            begin = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                seconds[part] += time.perf_counter() - begin

        return run

    for name, part in PARTS.items():
        setattr(trainer, name, clock(part, getattr(trainer, name)))
    return seconds


def main() -> None:
    """Train, report."""
    args = arguments()
    job, meter = args.job, Meter(args.warm_up, args.steps)

    def prompts(step: int) -> Prompts:
        ids = draw_prompts(job, job.batch, args.seed + step)
        return Prompts(ids, [job.prompt] * job.batch, [None] * job.batch)

    def reward(asked: Sequence[str], texts: Sequence[str], context) -> dict[str, torch.Tensor]:
        meter.scored([text.split() for text in texts])
        return {"total": torch.tensor(words_reward(texts, job))}

    imported = rss_mb()
    tokenizer = word_tokenizer(job)
    torch.manual_seed(args.seed)
    model = get_peft_model(llama(job), lora(job))
    trainer = PPO(
        model,
        tokenizer,
        prompts,
        reward,
        settings(job, args.variant),
        max_new_tokens=job.response,
        seed=args.seed,
    )
    parts = clocked(trainer) if args.profile else {}
    for step in range(meter.total):
        if step == meter.warm_up:
            parts.clear()
        trainer.train_step()
        meter.step()
    each = {part: seconds / meter.steps for part, seconds in parts.items()}
    name = f"this project, {args.variant} critic"
    # The policy has an optimizer, and so has the critic.
    report(name, args, meter, imported, [model], each, optimizers=2)


if __name__ == "__main__":
    main()
