"""TRL 1.12's experimental PPO, with a value model of the policy's size.

Variants: `lora` trains the value model's adapter and head; `full` trains all of it, as the script
of TRL's documentation does whatever it does to the policy.
"""

import contextlib
import os
import sys
from types import SimpleNamespace

import torch
from datasets import Dataset
from peft import inject_adapter_in_model
from torch import nn
from transformers import TrainerCallback
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
    low_share,
    report,
    rss_mb,
    word_tokenizer,
)


class Ends(TrainerCallback):
    """Notes the ends of PPO steps."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_end(self, args, state, control, **_):
        """A batch is done, with all its epochs."""
        self.meter.step()


class Backbone(nn.Module):
    """Hands the token ids on, where TRL expects hidden states."""

    def forward(self, input_ids, **_):
        """Ids [n, p + t]."""
        return SimpleNamespace(hidden_states=(input_ids,))


class Score(nn.Module):
    """The reward of the response, at every position."""

    def __init__(self, job: Job, meter: Meter) -> None:
        super().__init__()
        self.job, self.meter = job, meter

    def forward(self, ids):
        """Rewards [n, p + t, 1] of ids [n, p + t]."""
        responses = ids[:, self.job.prompt :]
        self.meter.scored(responses.tolist())
        rewards = low_share(responses, self.job)
        return rewards[:, None, None].expand(*ids.shape, 1)


class RewardModel(nn.Module):
    """A plain reward in the form of a reward model."""

    base_model_prefix = "model"

    def __init__(self, job: Job, meter: Meter) -> None:
        super().__init__()
        self.model, self.score = Backbone(), Score(job, meter)


def value_model(job: Job, variant: str) -> nn.Module:
    """A Llama with a scalar head."""
    model = llama(job, "LlamaForSequenceClassification", num_labels=1)
    if variant == "full":
        return model
    model = inject_adapter_in_model(lora(job, None), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))
    return model


def main() -> None:
    """Train, report."""
    args = arguments()
    job, meter = args.job, Meter(args.warm_up, args.steps)
    os.chdir(args.work)
    with contextlib.redirect_stdout(sys.stderr):
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        imported = rss_mb()
        torch.manual_seed(args.seed)
        policy, value = llama(job), value_model(job, args.variant)
        prompts = draw_prompts(job, job.batch * meter.total, args.seed)
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir="out",
                per_device_train_batch_size=job.batch,
                gradient_accumulation_steps=1,
                local_rollout_forward_batch_size=job.batch,
                num_mini_batches=1,
                num_ppo_epochs=EPOCHS,
                total_episodes=job.batch * meter.total,
                response_length=job.response,
                temperature=TEMPERATURE,
                stop_token=None,
                kl_coef=KL_WEIGHT,
                cliprange=CLIP_RATIO,
                cliprange_value=CLIP_VALUE,
                gamma=DISCOUNT,
                lam=GAE_LAMBDA,
                learning_rate=LEARNING_RATE,
                num_sample_generations=0,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=args.seed,
            ),
            processing_class=word_tokenizer(job),
            model=policy,
            ref_model=None,
            reward_model=RewardModel(job, meter),
            value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            peft_config=lora(job),
            callbacks=[Ends(meter)],
        )
        # Its constructor may set the number of threads.
        torch.set_num_threads(args.threads)
        trainer.train()
    name = "TRL PPO" if args.variant == "lora" else "TRL PPO, value model trained in full"
    report(name, args, meter, imported, [trainer.policy_model, value])


if __name__ == "__main__":
    main()
