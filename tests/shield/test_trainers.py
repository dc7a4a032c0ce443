"""The shield inside transformers.Trainer and TRL's RLOOTrainer."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import Trainer, TrainingArguments

from shielded_recrl.explainer.lm import adapter_parameters, prefix_states
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.shield.adapter import lora_a
from shielded_recrl.shield.ranking_shield import RankingShield
from tiny_world import prompts, tiny_llama, with_adapter

WIDTH = 64
PROTECTED = prompts(3, 5, 8, seed=1)
TEXTS = prompts(24, 12, 12, seed=3)
READ = torch.randn(WIDTH, 20, generator=torch.Generator().manual_seed(0)) / WIDTH**0.5


def head(hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ READ


def drift(model, base) -> float:
    before, after = prefix_states(base, PROTECTED), prefix_states(model.eval(), PROTECTED)
    return (head(after) - head(before)).abs().max().item()


def make_shield(**options) -> RankingShield:
    return RankingShield.fit(tiny_llama(width=WIDTH), PROTECTED, head, **options)


def trainer(folder, model, shield, steps: int, seen: list[int] | None = None) -> Trainer:
    """Adam with weight decay, clipping, and gradients summed over two batches."""

    def collate(rows):
        if seen is not None:
            seen.append(len(rows))
        ids = torch.tensor([row["ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=steps,
            save_steps=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            weight_decay=0.1,
            max_grad_norm=1.0,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=1,
            dataloader_pin_memory=False,
        ),
        train_dataset=[{"ids": list(row)} for row in TEXTS],
        data_collator=collate,
        callbacks=[] if shield is None else [shield.callback()],
    )


def fresh():
    return with_adapter(tiny_llama(width=WIDTH), moved=0.0)


@pytest.mark.parametrize("penalty", [0.0, 5.0])
def test_transformers_trainer_with_accumulation_and_resume(tmp_path, penalty):
    options = {"energy": 1.0, "penalty": penalty}
    base = tiny_llama(width=WIDTH)
    straight, shield, seen = fresh(), make_shield(**options), []
    start = {name: weight.detach().clone() for name, weight in lora_a(straight).items()}
    trainer(tmp_path / "straight", straight, shield, 6, seen).train()
    assert seen[:12] == [2] * 12
    assert shield.step == 6
    assert shield.leakage() < 1e-6
    assert drift(straight, base) < 1e-5
    for name, weight in lora_a(straight).items():
        assert not torch.allclose(weight, start[name], atol=1e-3)

    # Stop at 4, and go on from its checkpoint with new objects.
    trainer(tmp_path / "run", fresh(), make_shield(**options), 4).train()
    resumed, shield = fresh(), make_shield(**options)
    again = trainer(tmp_path / "run", resumed, shield, 6)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert again.state.global_step == shield.step == 6
    assert shield.leakage() < 1e-6
    assert drift(resumed, base) < 1e-5
    for name, weight in adapter_parameters(resumed).items():
        torch.testing.assert_close(weight, adapter_parameters(straight)[name], atol=1e-4, rtol=0)

    # The checkpoint is a plain PEFT folder.
    loaded = PeftModel.from_pretrained(
        tiny_llama(width=WIDTH), tmp_path / "run" / "checkpoint-6"
    ).eval()
    assert drift(loaded, base) < 1e-5
    assert drift(loaded.merge_and_unload(), base) < 1e-4


def test_the_same_trainer_without_the_shield_drifts(tmp_path):
    model = fresh()
    trainer(tmp_path, model, None, 6).train()
    assert drift(model, tiny_llama(width=WIDTH)) > 0.1


def test_training_twice_hooks_once(tmp_path):
    shield, model = make_shield(energy=1.0), fresh()
    trains = trainer(tmp_path, model, shield, 2)
    trains.train()
    trains.train()
    assert shield.step == 2
    assert drift(model, tiny_llama(width=WIDTH)) < 1e-5


def reward_diversity(completions, **_) -> list[float]:
    """More different characters are better."""
    return [float(len(set(text))) for text in completions]


def rloo(folder, model, tokenizer, callbacks, **extra):
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    texts = ["Liked: Harbor Road", "Next: Harbor Road", "Why: Give it", "Liked: a try"]
    return RLOOTrainer(
        model=model,
        reward_funcs=reward_diversity,
        args=RLOOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=6,
            max_steps=3,
            beta=0.05,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            logging_steps=1,
        ),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        callbacks=callbacks,
        **extra,
    )


def plain_config() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapped", [True, False], ids=["peft-model", "peft-config"])
def test_rloo_trainer(tmp_path, wrapped):
    """Whether TRL is given a PEFT model, which it adds a frozen copy to, or makes one itself."""
    pytest.importorskip("trl")
    tokenizer = train_tokenizer(
        iter([f"Liked: Harbor Road {i} Next: Why: Give it a try." for i in range(30)]), 300
    )
    shape = {"vocabulary": len(tokenizer), "width": WIDTH}
    base = tiny_llama(**shape)
    protected = [tuple(tokenizer(text)["input_ids"]) for text in ("Liked: Harbor", "Next: Road 7")]

    def scores(model):
        return head(prefix_states(model.eval(), protected))

    drifts = {}
    for shielded in (True, False):
        shield = RankingShield.fit(tiny_llama(**shape), protected, head, energy=1.0)
        torch.manual_seed(0)
        model = with_adapter(tiny_llama(**shape), moved=0.0) if wrapped else tiny_llama(**shape)
        extra = {} if wrapped else {"peft_config": plain_config()}
        trains = rloo(
            tmp_path, model, tokenizer, [shield.callback()] if shielded else None, **extra
        )
        start = {name: weight.detach().clone() for name, weight in lora_a(trains.model).items()}
        trains.train()
        if shielded:
            assert shield.step == trains.state.global_step == 3
            assert shield.leakage() < 1e-6
        assert trains.model.active_adapters == ["default"]
        moved = [
            (weight - start[name]).abs().max() for name, weight in lora_a(trains.model).items()
        ]
        assert min(moved) > 1e-3
        drifts[shielded] = (scores(trains.model) - scores(base)).abs().max().item()
    assert drifts[True] < 1e-5
    assert drifts[False] > 0.1
