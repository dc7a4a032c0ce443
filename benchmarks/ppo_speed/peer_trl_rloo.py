"""TRL 1.16's RLOO: no critic; responses come in pairs from one prompt, the other is the baseline.

A step is one generation and as many optimizer steps as PPO has epochs (`num_iterations`).
"""

import contextlib
import os
import sys

import torch
from datasets import Dataset
from transformers import TrainerCallback
from work import (
    CLIP_RATIO,
    EPOCHS,
    KL_WEIGHT,
    LEARNING_RATE,
    TEMPERATURE,
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

GENERATIONS = 2


class Ends(TrainerCallback):
    """Notes the ends of steps, each of `EPOCHS` optimizer steps."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_end(self, args, state, control, **_):
        """An optimizer step is done."""
        if state.global_step % EPOCHS == 0:
            self.meter.step()


def main() -> None:
    """Train, report."""
    args = arguments()
    job, meter = args.job, Meter(args.warm_up, args.steps)
    os.chdir(args.work)

    def reward(completions, completion_ids, **_) -> list[float]:
        meter.scored(completion_ids)
        return words_reward(completions, job)

    with contextlib.redirect_stdout(sys.stderr):
        from trl import RLOOConfig, RLOOTrainer

        imported = rss_mb()
        torch.manual_seed(args.seed)
        tokenizer = word_tokenizer(job)
        prompts = draw_prompts(job, job.batch // GENERATIONS * meter.total, args.seed)
        trainer = RLOOTrainer(
            model=llama(job),
            reward_funcs=reward,
            args=RLOOConfig(
                output_dir="out",
                per_device_train_batch_size=job.batch,
                gradient_accumulation_steps=1,
                steps_per_generation=1,
                num_generations=GENERATIONS,
                num_iterations=EPOCHS,
                max_steps=EPOCHS * meter.total,
                max_completion_length=job.response,
                temperature=TEMPERATURE,
                top_p=1.0,
                top_k=0,
                beta=KL_WEIGHT,
                epsilon=CLIP_RATIO,
                learning_rate=LEARNING_RATE,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=args.seed,
            ),
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": tokenizer.batch_decode(prompts)}),
            peft_config=lora(job),
            callbacks=[Ends(meter)],
        )
        # Its constructor may set the number of threads.
        torch.set_num_threads(args.threads)
        trainer.train()
    report("TRL RLOO", args, meter, imported, [trainer.model])


if __name__ == "__main__":
    main()
