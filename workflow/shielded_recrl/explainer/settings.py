"""Settings of the explainer stage."""

from typing import Annotated, Literal

from pydantic import Field

from shielded_recrl.hub import Revision
from shielded_recrl.settings import Settings

Precision = Literal["fp32", "bf16", "int8", "nf4"]
LoRARank = Annotated[int, Field(ge=1, description="Rank of the LoRA adapter.")]
LoRAAlpha = Annotated[int, Field(ge=1, description="LoRA scale numerator: scale = alpha / rank.")]


class BaseLMSettings(Settings):
    """Which LM an adapter lies over."""

    base: str = Field("embedded", description="`embedded`, a local folder, or a hub id.")
    revision: Revision = Field(
        None, description="Commit of the hub repository; needed with a hub id."
    )
    precision: Precision = Field(
        "fp32", description="Weights of the base: fp32, bf16, int8 or nf4."
    )


class SmallLMSettings(Settings):
    """A small Llama with its own tokenizer, and its training."""

    vocabulary: int = Field(1024, ge=300, description="Size of the byte-level BPE vocabulary.")
    hidden_size: int = Field(96, ge=8, description="Width of the LM.")
    layers: int = Field(3, ge=1, description="Decoder blocks.")
    heads: int = Field(4, ge=1, description="Attention heads; divides hidden_size.")
    steps: int = Field(700, ge=1, description="Training steps.")
    batch_size: int = Field(16, ge=1, description="Examples in a step.")
    learning_rate: float = Field(4e-3, gt=0, description="Peak AdamW learning rate.")


class PretrainSettings(SmallLMSettings):
    """The embedded base LM: a small Llama with its own tokenizer."""

    request_weight: float = Field(
        0.3, ge=0, description="Loss weight of a request token (next item); explanations have 1."
    )
    prefix_weight: float = Field(0.1, ge=0, description="Loss weight of a history token.")
    canaries: int = Field(
        8,
        ge=0,
        le=10_000,
        description="Secrets planted in the training text, by which the audit measures "
        "memorisation; 0 plants none.",
    )


class PromptSettings(Settings):
    """The text the LM reads: prefix (history), then item and instruction."""

    history_items: int = Field(5, ge=1, description="Most recent titles named in the prefix.")
    prompt_tokens: int = Field(72, ge=16, description="Longest prompt, in tokens.")


class ExplainerSettings(BaseLMSettings, PromptSettings):
    """Base LM, adapter and lengths."""

    explanation_tokens: int = Field(32, ge=1, description="Longest explanation, in tokens.")
    lora_rank: LoRARank = 16
    lora_alpha: LoRAAlpha = 32
    pretrain: PretrainSettings = Field(
        PretrainSettings(), description="Training of the embedded base."
    )
