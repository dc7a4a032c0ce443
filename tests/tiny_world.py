"""A tiny dataset, base LM, adapter and ranker states: what the tests of shield and rl run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import polars as pl
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.explainer.settings import PromptSettings
from shielded_recrl.shield.serving import Serving
from shielded_recrl.shield.settings import RoleSettings

TEMPLATES = Path(__file__).resolve().parents[1] / "resources" / "prompts"
PROMPT = PromptSettings(history_items=3, prompt_tokens=40)
ROLES = RoleSettings(protected_users=5, heldout_users=7)
CATEGORIES = ("Mystery", "Travel", "Romance")
USERS, ITEMS, RANKER_WIDTH = 24, 20, 8
INTERACTIONS = {
    "user": pl.Int32,
    "item": pl.Int32,
    "timestamp": pl.Int64,
    "order": pl.Int32,
    "weight": pl.Float32,
}


@dataclass(frozen=True)
class World:
    """Paths of the inputs, and the settings they are read with."""

    data: Path
    base: Path
    adapter: Path
    ranker: Path
    templates: Path = TEMPLATES
    prompt: PromptSettings = PROMPT
    roles: RoleSettings = ROLES
    explanation_tokens: int = 6
    roles_seed: int = 3

    def serving(self) -> Serving:
        return Serving.load(
            self.data, self.base, self.templates, self.prompt, self.roles, self.roles_seed
        )


def call(main: Callable[..., None], **given) -> None:
    """Call a command by its flags, whether it takes them itself or with its `inputs`."""
    kind = get_type_hints(main)["inputs"]
    shared = {one.name: given.pop(one.name) for one in fields(kind) if one.name in given}
    main(inputs=kind(**shared), **given)


def make_world(folder: Path) -> World:
    """Write every input of the shield and rl commands."""
    world = World(
        data=write_dataset(folder / "data"),
        base=folder / "model",
        adapter=folder / "adapter",
        ranker=folder / "states.safetensors",
    )
    titles = pl.read_parquet(world.data / "items.parquet")["title"].to_list()
    texts = [f"Liked: {title} Next: {title} (Travel) Why: Give {title} a try." for title in titles]
    tokenizer = train_tokenizer(iter(texts), 300)
    save_model(
        tiny_llama(
            len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        tokenizer,
        world.base,
    )
    save_adapter(with_adapter(tiny_llama(len(tokenizer)), moved=0.0), world.adapter)
    rng = np.random.default_rng(1)
    states = {
        name: rng.normal(size=(rows + 1, RANKER_WIDTH)).astype(np.float32)
        for name, rows in (("items", ITEMS), ("valid_users", USERS), ("test_users", USERS))
    }
    for array in states.values():
        array[0] = 0
    save_file(states, world.ranker)
    return world


def write_dataset(folder: Path) -> Path:
    """24 users with 6 train, 1 validation and 2 test items out of 20."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = {"train": [], "valid": [], "test": []}
    for user in range(1, USERS + 1):
        for order, item in enumerate(rng.permutation(ITEMS)[:9].tolist()):
            split = "train" if order < 6 else "valid" if order < 7 else "test"
            rows[split].append((user, item + 1, order, order, 1.0))
    for split, values in rows.items():
        pl.DataFrame(values, schema=INTERACTIONS, orient="row").write_parquet(
            folder / f"{split}.parquet"
        )
    pl.DataFrame(
        {
            "item": range(1, ITEMS + 1),
            "source_id": [f"s{i}" for i in range(1, ITEMS + 1)],
            "title": [f"Harbor Road {i}" for i in range(1, ITEMS + 1)],
            "text": [""] * ITEMS,
            "categories": [[CATEGORIES[i % 3]] for i in range(1, ITEMS + 1)],
            "popularity": [1] * ITEMS,
        },
        schema_overrides={"item": pl.Int32, "popularity": pl.Int32},
    ).write_parquet(folder / "items.parquet")
    pl.DataFrame(
        {"user": range(1, USERS + 1), "source_id": [f"u{i}" for i in range(1, USERS + 1)]},
        schema_overrides={"user": pl.Int32},
    ).with_columns(group=pl.lit(None, dtype=pl.String)).write_parquet(folder / "users.parquet")
    return folder


def tiny_llama(
    vocabulary: int = 300, width: int = 32, layers: int = 2, seed: int = 0, **config
) -> LlamaForCausalLM:
    """A frozen random Llama, with weights large enough that its distributions are far from flat."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=256,
            initializer_range=0.3,
            tie_word_embeddings=False,
            **config,
        )
    )
    return model.requires_grad_(False).eval()


def with_adapter(
    model: LlamaForCausalLM,
    rank: int = 4,
    moved: float = 0.1,
    seed: int = 0,
    targets: str | list[str] = "all-linear",
):
    """A PEFT model with LoRA on linear layers; lora_B is normal of standard deviation `moved`."""
    torch.manual_seed(seed)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules=targets,
            task_type="CAUSAL_LM",
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, moved, generator=generator) if moved else weight.zero_()
    return adapted.eval()


def save_model(model: LlamaForCausalLM, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompts(count: int, shortest: int, longest: int, vocabulary: int = 300, seed: int = 0):
    """Random token ids of mixed lengths, special ids left out."""
    rng = np.random.default_rng(seed)
    return [
        tuple(rng.integers(3, vocabulary, size=rng.integers(shortest, longest + 1)).tolist())
        for _ in range(count)
    ]
