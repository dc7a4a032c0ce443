"""Settings of the rl stage."""

from typing import Literal

from pydantic import Field

from shielded_recrl.settings import Settings


class RewardSettings(Settings):
    """Weights of the composite reward; each component lies in [0, 1]."""

    length: float = Field(0.2, ge=0, description="Weight of the saturating length reward.")
    relevance: float = Field(
        0.5, ge=0, description="Weight of naming the item's and history's features."
    )
    coherence: float = Field(0.3, ge=0, description="Weight of whole, unrepeated sentences.")
    target_words: int = Field(14, ge=1, description="Words at which the length reward saturates.")


class RLSettings(Settings):
    """Token-level PPO (Schulman et al. 2017; Ziegler et al. 2019)."""

    steps: int = Field(16, ge=1, description="PPO steps: one batch of rollouts each.")
    micro_batch: int = Field(32, ge=1, description="Sequences in one forward and backward pass.")
    gradient_accumulation: int = Field(1, ge=1, description="Micro batches in one optimizer step.")
    epochs: int = Field(2, ge=1, description="Passes over a batch of rollouts.")
    learning_rate: float = Field(3e-3, gt=0, description="Adam learning rate of the adapter.")
    kl_weight: float = Field(
        0.05, ge=0, description="Weight of the per-token KL to the base inside the reward."
    )
    rollout_temperature: float = Field(
        1.0, gt=0, description="Temperature of training rollouts, also of the scored policy."
    )
    clip_ratio: float = Field(0.2, gt=0, description="PPO clipping of the probability ratio.")
    clip_value: float = Field(
        0.2, gt=0, description="Clipping of the value around its old estimate."
    )
    value_learning_rate: float = Field(
        1e-2, gt=0, description="Adam learning rate of the value head."
    )
    value_epochs: int = Field(10, ge=1, description="Updates of the value head on a batch.")
    value_warmup: int = Field(
        1, ge=0, description="First steps that fit the value head and leave the policy alone."
    )
    discount: float = Field(1.0, gt=0, le=1, description="Discount factor of GAE.")
    gae_lambda: float = Field(1.0, ge=0, le=1, description="Lambda of GAE (Schulman et al. 2016).")
    max_grad_norm: float = Field(1.0, gt=0, description="Clipping of the gradient norm.")
    missing_eos_penalty: float = Field(
        0.3, ge=0, description="Taken from the score of a text that did not end."
    )
    slate: int = Field(
        10, ge=1, description="Training requests explain one of the user's top items."
    )
    checkpoint_every: int = Field(5, ge=1, description="Steps between resumable checkpoints.")
    snapshots: int = Field(
        3, ge=1, description="Adapters kept along the run for the learning curves."
    )
    reward: RewardSettings = Field(RewardSettings(), description="Weights of the composite reward.")


class SamplingSettings(Settings):
    """How text is sampled for people, in evaluation and audits."""

    temperature: float = Field(0.7, gt=0, description="Sampling temperature.")
    top_p: float = Field(0.9, gt=0, le=1, description="Nucleus sampling threshold.")


class SimulatorSettings(Settings):
    """Click simulator: P(click) = sigmoid(a * relevance + b * quality + bias(user))."""

    relevance_weight: float = Field(1.0, description="a, the weight of item relevance.")
    quality_weight: float = Field(0.5, ge=0, description="b, the weight of explanation quality.")
    bias_scale: float = Field(0.3, ge=0, description="Standard deviation of the user bias.")
    sessions: int = Field(200, ge=1, description="Simulated sessions of each user and item.")


class EvaluationSettings(SimulatorSettings):
    """What is measured on held-out users."""

    users: int = Field(64, ge=2, description="Held-out users whose explanations are generated.")
    items_per_user: int = Field(2, ge=1, description="Top items explained to each of them.")
    bootstrap: int = Field(1000, ge=10, description="Resamples of the user-clustered bootstrap.")
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Risk level of the certificate's bounds for held-out users."
    )
    merge: tuple[Literal["fp32", "bf16", "nf4"], ...] = Field(
        ("fp32", "bf16", "nf4"),
        description="Precisions in which the adapter is also certified after a merge.",
    )
