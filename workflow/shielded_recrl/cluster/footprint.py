"""How much memory a study asks of one GPU, estimated before anything runs.

In: the sizes of a causal LM and the settings of a variant. Out: bytes, part by part.

An estimate for choosing a machine: what frameworks hold beside it is a constant and a share, and
bases count as the largest they can be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from shielded_recrl.explainer.settings import Precision

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from shielded_recrl.config import Config

GB = 1e9
# CUDA context, kernels and the work space of cuBLAS; then what the allocator cannot use.
CONTEXT, SLACK = 1.0 * GB, 1.1
# A weight of a linear layer: nf4 adds an fp32 scale to each 64, int8 one to each row.
LINEAR = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
# LoRA and Adam in fp32: the weight, its gradient and two moments.
TRAINED = 16
# Prompts of a score-matching minibatch and of a pass that generates, as the stages set them.
PENALTY_BATCH, GENERATION_BATCH = 32, 128


class Shape(NamedTuple):
    """Sizes of a causal LM.

    Attributes:
        linear: weights of the linear layers of its decoder blocks, which quantisation shrinks.
        other: all other weights: embeddings, head, norms.
        lora: LoRA weights in all blocks for each unit of rank: inputs plus outputs of each layer.
        layers: decoder blocks.
        hidden: width d of the states.
        keys: width of the keys of a block, over all their heads.
        feedforward: inner width of a block's MLP.
        vocabulary: tokens.
    """

    linear: int
    other: int
    lora: int
    layers: int
    hidden: int
    keys: int
    feedforward: int
    vocabulary: int


class Job(NamedTuple):
    """What of a variant's settings memory depends on.

    Attributes:
        precision: of the base.
        rank: of the LoRA adapter.
        adapters: adapters that are trained: two where the value critic has its own.
        blocks: decoder blocks that are adapted.
        prompt, response: longest prompt and response, in tokens.
        micro_batch: sequences in one forward and backward pass.
        batch: sequences of a step on this GPU.
        rollouts: responses that training decodes together.
        protected: prompts a score-matching penalty keeps; 0 without one.
        bases: whether the shield reads bases.
        checkpointing: whether activations are computed again going backward.
        merges: precisions in which the merged model is certified.
    """

    precision: Precision
    rank: int
    adapters: int
    blocks: int
    prompt: int
    response: int
    micro_batch: int
    batch: int
    rollouts: int
    protected: int
    bases: bool
    checkpointing: bool
    merges: tuple[Precision, ...]


def weight_bytes(shape: Shape, precision: Precision) -> float:
    """A base LM as it is served; what is not quantised is in bf16 then."""
    return LINEAR[precision] * shape.linear + (4 if precision == "fp32" else 2) * shape.other


def trained_bytes(shape: Shape, job: Job) -> float:
    """Adapters with gradients and Adam's moments."""
    return TRAINED * job.adapters * job.rank * shape.lora * job.blocks / shape.layers


def bases_bytes(shape: Shape, job: Job) -> float:
    """Bases in fp32, of the inputs of q/k/v, o, gate/up and down; none is wider than half of d."""
    return job.bases * job.blocks * 4 * (3 * shape.hidden**2 + shape.feedforward**2) / 2


def kept_bytes(shape: Shape, job: Job, tokens: int) -> float:
    """Activations that a pass over as many tokens keeps for its backward pass.

    In each adapted block: norms, q, k, v, attention, residuals and the inner states of the MLP, and
    in fp32 what enters each LoRA layer.
    """
    d, size = shape.hidden, _size(job.precision)
    block = size * (8 * d + 4 * shape.keys + 4 * shape.feedforward)
    block += 0 if size == 4 else 4 * (6 * d + shape.feedforward)
    return tokens * ((job.blocks * size * d + block) if job.checkpointing else job.blocks * block)


def training_bytes(shape: Shape, job: Job) -> float:
    """What a step of PPO keeps: its states, and one pass of the policy or of the penalty.

    A logit counts as its own and its gradient's value, in fp32 again for the softmax.
    """
    d, size = shape.hidden, _size(job.precision)
    length = job.prompt + job.response
    states = job.batch * length * d * (size + 4) + job.protected * job.prompt * d * size
    logits = job.micro_batch * (job.response + 1) * shape.vocabulary * (2 * size + 16)
    policy = kept_bytes(shape, job, job.micro_batch * length) + logits
    asked = min(job.protected, PENALTY_BATCH) * job.prompt
    return states + max(policy, kept_bytes(shape, job, asked))


def decoding_bytes(shape: Shape, job: Job, rows: int) -> float:
    """Keys and values of as many responses, one block of the prompts' pass, and the last logits."""
    size = _size(job.precision)
    cache = (job.prompt + job.response) * 2 * shape.layers * shape.keys * size
    block = job.prompt * size * (5 * shape.hidden + 3 * shape.feedforward)
    return rows * (cache + block + 24 * shape.vocabulary)


def merging_bytes(shape: Shape, job: Job) -> float:
    """Certifying merged models: the base in fp32, then base and merged model in each precision."""
    if not job.merges:
        return 0.0
    pairs = (2 * weight_bytes(shape, precision) for precision in job.merges)
    return max(weight_bytes(shape, "fp32"), *pairs)


def peak_bytes(shape: Shape, job: Job) -> float:
    """The most that any job of a variant holds on one GPU."""
    train = trained_bytes(shape, job) + bases_bytes(shape, job)
    train += max(training_bytes(shape, job), decoding_bytes(shape, job, job.rollouts))
    work = max(train, decoding_bytes(shape, job, GENERATION_BATCH), merging_bytes(shape, job))
    return CONTEXT + SLACK * (weight_bytes(shape, job.precision) + work)


def _size(precision: Precision) -> int:
    return 4 if precision == "fp32" else 2


def job_of(config: Config, variant: str, shape: Shape) -> Job:
    """What memory depends on in a variant of a config."""
    settings = config.variant(variant)
    explainer, shield, rl = settings.explainer, settings.shield, settings.rl
    batch = rl.micro_batch * rl.gradient_accumulation // max(1, config.resources.gpu)
    return Job(
        precision=explainer.precision,
        rank=explainer.lora_rank,
        adapters=1 + (rl.critic == "separate"),
        blocks=shape.layers if shield.scope == "all" else 1,
        prompt=explainer.prompt_tokens,
        response=explainer.explanation_tokens,
        micro_batch=min(rl.micro_batch, batch),
        batch=batch,
        rollouts=min(rl.rollout_batch, batch),
        protected=config.ranking.protected_users if shield.penalty else 0,
        bases=shield.kind in ("nullspace", "random"),
        checkpointing=rl.gradient_checkpointing,
        merges=() if shield.kind in ("separate", "activated") else config.evaluation.merge,
    )


def shape_of(config: PretrainedConfig) -> Shape:
    """Sizes of the model of a transformers config; its weights are never made.

    Raises:
        ValueError: transformers has no causal LM of that config.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from shielded_recrl.explainer.lm import blocks

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = blocks(model).values()
    linears = [
        part for block in layers for part in block.modules() if isinstance(part, torch.nn.Linear)
    ]
    linear = sum(part.weight.numel() for part in linears)
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        linear=linear,
        other=sum(weight.numel() for weight in model.parameters()) - linear,
        lora=sum(part.in_features + part.out_features for part in linears),
        layers=len(layers),
        hidden=text.hidden_size,
        keys=width * (getattr(text, "num_key_value_heads", None) or heads),
        feedforward=max(part.out_features for part in linears),
        vocabulary=text.vocab_size,
    )
