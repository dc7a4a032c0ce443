"""Settings of the rl stage."""

from typing import Annotated, Literal

from pydantic import Field

from shielded_recrl.settings import Settings


class RewardSettings(Settings):
    """Weights of the composite reward; each component lies in [0, 1]."""

    length: float = Field(0.15, ge=0, description="Weight of the saturating length reward.")
    coherence: float = Field(0.15, ge=0, description="Weight of whole, unrepeated sentences.")
    features: float = Field(
        0.35, ge=0, description="Weight of naming the item's and the history's features."
    )
    similarity: float = Field(
        0.1, ge=0, description="Weight of nearness to item and history, by embeddings."
    )
    support: float = Field(
        0.2, ge=0, description="Weight of the share of claims that metadata supports."
    )
    click: float = Field(0.05, ge=0, description="Weight of the modelled click probability.")
    repetition: float = Field(0.1, ge=0, description="Penalty on repeated trigrams.")
    toxicity: float = Field(0.0, ge=0, description="Penalty on offensive texts; 0 loads no scorer.")
    target_words: int = Field(20, ge=1, description="Words at which the length reward saturates.")


class PPOSettings(Settings):
    """Token-level PPO (Schulman et al. 2017; Ziegler et al. 2019)."""

    steps: int = Field(16, ge=1, description="PPO steps: one batch of rollouts each.")
    micro_batch: int = Field(32, ge=1, description="Sequences in one forward and backward pass.")
    gradient_accumulation: int = Field(
        1, ge=1, description="Micro batches in a batch of rollouts, over all GPUs."
    )
    mini_batches: int = Field(1, ge=1, description="Optimizer steps in a pass over a batch.")
    epochs: int = Field(4, ge=1, description="Passes over a batch of rollouts.")
    learning_rate: float = Field(3e-3, gt=0, description="Adam learning rate of the adapter.")
    kl_weight: float = Field(
        0.01, ge=0, description="Weight of the per-token KL to the base inside the reward."
    )
    kl_target: float | None = Field(
        None, gt=0, description="KL per token that kl_weight is steered to; null keeps it fixed."
    )
    kl_horizon: int = Field(
        10_000,
        ge=1,
        description="Responses over which the steered kl_weight changes by 20% at the most; no "
        "less than a batch.",
    )
    rollout_temperature: float = Field(
        1.0, gt=0, description="Temperature of training rollouts, also of the scored policy."
    )
    clip_ratio: float = Field(0.2, gt=0, description="PPO clipping of the probability ratio.")
    log_ratio_bound: float = Field(
        20.0, gt=0, description="Bound of the logarithm of the probability ratio."
    )
    kl_stop: float | None = Field(
        None, gt=0, description="KL from the old policy that ends the passes over a batch."
    )
    critic: Literal["shared", "separate"] = Field(
        "shared",
        description="Value critic: a head on the policy's states, or an adapter of its own.",
    )
    clip_value: float = Field(
        0.2, gt=0, description="Clipping of the value around its old estimate."
    )
    value_learning_rate: float = Field(
        1e-2, gt=0, description="Adam learning rate of the value critic."
    )
    value_epochs: int = Field(10, ge=1, description="Updates of the value critic on a batch.")
    value_warmup: int = Field(
        1, ge=0, description="First steps that fit the value critic and leave the policy alone."
    )
    discount: float = Field(1.0, gt=0, le=1, description="Discount factor of GAE.")
    gae_lambda: float = Field(1.0, ge=0, le=1, description="Lambda of GAE (Schulman et al. 2016).")
    max_grad_norm: float = Field(1.0, gt=0, description="Clipping of the gradient norm.")
    missing_eos_penalty: float = Field(
        0.3, ge=0, description="Taken from the score of a text that did not end."
    )
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What samples the rollouts."
    )
    rollout_batch: int = Field(
        128, ge=1, description="Responses decoded together; sorted by the length of their prompts."
    )
    merge_rollouts: bool = Field(
        True, description="Decode with the adapter merged, where the base has fp32 weights."
    )
    importance_cap: float = Field(
        2.0, ge=1, description="Cap of the importance weights of tokens another engine sampled."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations going backward: less memory, more time."
    )
    compile: bool = Field(False, description="Compile the decoding step (CUDA graphs); for GPUs.")
    checkpoint_every: int = Field(5, ge=1, description="Steps between resumable checkpoints.")


class RLSettings(PPOSettings):
    """PPO on explanations of a recommender's items."""

    slate: int = Field(
        10, ge=1, description="Training requests explain one of the user's top items."
    )
    snapshots: int = Field(
        3, ge=1, description="Adapters kept along the run for the learning curves."
    )
    drift_users: int = Field(
        32, ge=1, description="Protected users whose drift is logged at every step."
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


class SlateSettings(Settings):
    """What is explained in the evaluation."""

    users: int = Field(64, ge=2, description="Held-out users whose explanations are generated.")
    items_per_user: int = Field(2, ge=1, description="Top items explained to each of them.")


class EvaluationSettings(SlateSettings, SimulatorSettings):
    """What is measured on held-out users."""

    patience: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Mean share of users of the second simulator who read on at each position.",
    )
    quality_weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.25, 0.5, 1.0, 2.0),
        description="Weights of explanation quality at which click rates are reported, too.",
    )
    calibration_bins: int = Field(
        10, ge=1, description="Bins of equal width in the reliability of click probabilities."
    )
    bertscore_model: str | None = Field(
        None,
        min_length=1,
        description="Local folder of a model for BERTScore, which needs the package bert-score.",
    )
    bertscore_layer: int = Field(17, ge=1, description="Layer of that model that is compared.")
    bootstrap: int = Field(1000, ge=10, description="Resamples of the user-clustered bootstrap.")
    alpha: float = Field(
        0.05, gt=0, lt=1, description="Risk level of the certificate's bounds for held-out users."
    )
    merge: tuple[Literal["fp32", "bf16", "nf4"], ...] = Field(
        ("fp32", "bf16", "nf4"),
        description="Precisions in which the adapter is also certified after a merge.",
    )
