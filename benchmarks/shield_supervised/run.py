"""What supervised explanation training does to a ranking that reads the same LM, by shield.

A toy world, made from a seed: users with a taste over genres, histories of titles, and a Llama
(hidden size 128, 4 layers) trained briefly on such texts. A read-out fitted by ridge regression
ranks 200 items from the state at the prefix's last token. Then LoRA (r = 8, all linear layers)
learns a new style of explanation, under each shield in turn.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro
from peft import LoraConfig, get_peft_model
from toy import RECOMMEND, VOCABULARY, Catalogue, User, examples, make_catalogue, make_users, prefix
from transformers import LlamaConfig, LlamaForCausalLM

from shielded_recrl.explainer.lm import adapter_parameters, last_block_linears, prefix_states
from shielded_recrl.files import write_json
from shielded_recrl.shield.drift import drift
from shielded_recrl.shield.ranking_shield import RankingShield
from shielded_recrl.shield.serving import RankingHead

PROTECTED, HELDOUT, READ_OUT, TESTED = 200, 200, 400, 200

# What acts on the optimizer (RankingShield.fit, its gradients alone, a penalty alone, or nothing).
ROWS = {
    "none": (None, {}),
    "gradient projection only, energy .99": ("gradient", {"energy": 0.99}),
    "nullspace, energy .99": ("fit", {"energy": 0.99}),
    "nullspace, energy .999": ("fit", {"energy": 0.999}),
    "nullspace, complete span": ("fit", {"energy": 1.0}),
    "score-weighted .99, penalty 10": ("fit", {"energy": 0.99, "weight": "score", "penalty": 10.0}),
    "penalty 10 alone": ("penalty", {"penalty": 10.0}),
    "last block, no shield": (None, {"scope": "last_block"}),
    "last block, complete span": ("fit", {"energy": 1.0, "scope": "last_block"}),
    "ranker": ("fit", {"energy": 1.0, "kind": "ranker"}),
    "random, ranks of .99": ("fit", {"energy": 0.99, "kind": "random"}),
    "activated": (None, {"activated": True}),
}


def train(model, optimizer, catalogue, steps: int, batch: int, new: float, seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    for _ in range(steps):
        ids, labels = examples(catalogue, make_users(catalogue, batch, rng), new, rng)
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()


def pretrained(catalogue: Catalogue, steps: int, seed: int) -> LlamaForCausalLM:
    """A base LM that knows the old style, and the new one only from every tenth text."""
    torch.manual_seed(seed)
    config = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=4, pad_token_id=0, **config)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    train(model, optimizer, catalogue, steps, 16, 0.1, seed + 1000)
    return model.requires_grad_(False).eval()


def fit_head(model, catalogue: Catalogue, users: list[User]) -> RankingHead:
    """Ridge regression of a history's mean factors on the state; scores get unit variance."""
    hidden = prefix_states(model, [prefix(catalogue, user) for user in users])
    tastes = np.stack([catalogue.factors[user.history].mean(axis=0) for user in users])
    gram = hidden.T @ hidden + len(users) * 0.01 * torch.eye(hidden.shape[1])
    weight = torch.linalg.solve(gram, hidden.T @ torch.from_numpy(tastes)).T
    head = RankingHead(torch.from_numpy(catalogue.factors), weight, 1.0)
    return replace(head, gamma=1 / float(head(hidden).std(dim=1).mean()))


def run_row(base, head, catalogue, prompts, row: str, steps: int, rate: float, seed: int):
    """Train one adapter; the model, its share of held directions, and its leakage."""
    how, options = ROWS[row]
    torch.manual_seed(seed)
    last_block = options.get("scope") == "last_block"
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=last_block_linears(base) if last_block else "all-linear",
        alora_invocation_tokens=[RECOMMEND] if "activated" in options else None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(copy.deepcopy(base), config).eval()
    optimizer = torch.optim.Adam(adapter_parameters(model).values(), lr=rate)
    shares, leakage = [], lambda: 0.0
    if how == "penalty":
        shield = RankingShield(None, prompts, head, kind="none", **options)
        shield.attach(model)
        shield.hook(optimizer)
    elif how is not None:
        shield = RankingShield.fit(model, prompts, head, **options)
        shares = [basis.rank / basis.width for basis in shield.bases.modules.values()]
        shield.attach(model)
        leakage = shield.leakage
        if how == "fit":
            shield.hook(optimizer)
        else:
            optimizer.register_step_pre_hook(lambda *_: shield.constraint.project_gradients())
    train(model, optimizer, catalogue, steps, 8, 1.0, seed)
    return model, float(np.mean(shares)) if shares else None, leakage()


def main(
    out: Path,
    seed: int = 0,
    steps: int = 200,
    pretraining: int = 600,
    learning_rate: float = 1e-3,
    rows: tuple[str, ...] = tuple(ROWS),
) -> None:
    """Run every row for one seed and add it to results.json.

    Args:
        out: results.json.
        seed: seed of world, base LM and adapters.
        steps: Adam steps of an adapter, on 8 texts each.
        pretraining: AdamW steps of the base LM, on 16 texts each.
        learning_rate: of the adapters.
        rows: names of the rows.
    """
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(rng)
    sizes = (PROTECTED, HELDOUT, READ_OUT, TESTED)
    protected, heldout, readers, tested = (make_users(catalogue, n, rng) for n in sizes)
    prompts = {
        who: [prefix(catalogue, user) for user in users]
        for who, users in (("protected", protected), ("heldout", heldout))
    }
    test = examples(catalogue, tested, 1.0, rng)
    base = pretrained(catalogue, pretraining, seed)
    head = fit_head(base, catalogue, readers)

    def scores(model) -> dict[str, np.ndarray]:
        return {
            who: head(prefix_states(model, ids)).double().numpy() for who, ids in prompts.items()
        }

    @torch.no_grad()
    def loss(model) -> float:
        return float(model(input_ids=test[0], labels=test[1]).loss)

    before, start = scores(base), loss(base)
    for row in rows:
        began = time.process_time()
        model, share, leakage = run_row(
            base, head, catalogue, prompts["protected"], row, steps, learning_rate, seed
        )
        run = {"seed": seed, "loss_start": start, "loss": loss(model), "leakage": leakage}
        run |= {"rank_share": share, "cpu_seconds": time.process_time() - began}
        record(out, row, run | drifts(before, scores(model)))
        if row == "none":
            with model.disable_adapter():
                record(out, "adapter off", run | drifts(before, scores(model)))


def drifts(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, dict]:
    return {
        who: drift(before[who], after[who], resamples=10, seed=0)
        | {"bit_identical": bool(np.array_equal(before[who], after[who]))}
        for who in before
    }


def record(out: Path, row: str, run: dict) -> None:
    """Add one run to results.json, in place of an earlier one of the same seed."""
    runs = json.loads(out.read_text()) if out.is_file() else {}
    kept = [old for old in runs.get(row, []) if old["seed"] != run["seed"]]
    runs[row] = sorted([*kept, run], key=lambda run: run["seed"])
    write_json(out, runs)
    figures = [f"loss {run['loss_start']:.3f} -> {run['loss']:.3f}"] + [
        f"{who} {run[who]['max_score_change']:.2g}, tau {run[who]['kendall_tau']:.3f}"
        for who in ("protected", "heldout")
    ]
    print(f"{row}: {'; '.join(figures)}; {run['cpu_seconds']:.0f} CPU s", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
