"""What `collect_bases` costs at the shapes of TinyLlama-1.1B and GPT-J-6B, by a few random blocks.

Out, beside this file: `results.json`. Every case runs in a process of its own, on one thread, with
random bf16 weights and random tokens. Two depths of a shape give the cost of one block; a third one
checks that the cost of a deeper model follows from it, and then that of the whole model does.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
PROMPTS, TOKENS, BATCH = 64, 128, 16
RANK, WINDOW = 256, 4
SHAPES = {
    "TinyLlama-1.1B": {"layers": 22, "width": 2048, "inner": 5632},
    "GPT-J-6B": {"layers": 28, "width": 4096, "inner": 16384},
}
# shape, blocks, options of collect_bases
CASES = {
    "llama 2": ("TinyLlama-1.1B", 2, {"rank": RANK}),
    "llama 3": ("TinyLlama-1.1B", 3, {"rank": RANK}),
    "llama 5": ("TinyLlama-1.1B", 5, {"rank": RANK}),
    "llama 2, energy .999": ("TinyLlama-1.1B", 2, {"energy": 0.999}),
    "llama 2, score": ("TinyLlama-1.1B", 2, {"rank": RANK, "weight": "score"}),
    "gptj 2": ("GPT-J-6B", 2, {"rank": RANK}),
    "gptj 2, last block": ("GPT-J-6B", 2, {"rank": RANK, "scope": "last_block"}),
}


def main() -> None:
    """Run the cases named on the command line, or all, and write results.json."""
    path = HERE / "results.json"
    results = {}
    for name in sys.argv[1:] or CASES:
        shape, blocks, options = CASES[name]
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps([shape, blocks, options])],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = json.loads(done.stdout.splitlines()[-1])
        path.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
        print(name, results[name], flush=True)
    if results.keys() >= CASES.keys():
        for line in whole_models(results):
            print(line)


def whole_models(results: dict[str, dict]) -> list[str]:
    """Costs of the whole models from those of one block, and the check at 5 blocks."""
    # The same forward passes, with and without the moments and the decomposition of one block.
    gptj = difference(results["gptj 2"], results["gptj 2, last block"])
    gptj["cpu_seconds"] += results["gptj 2"]["forward_seconds_per_block"]
    llama = difference(results["llama 3"], results["llama 2"])
    measured = results["llama 5"]["cpu_seconds"]
    predicted = whole("llama", 5, llama, results)["cpu_seconds"]
    lines = [f"llama, 5 blocks: {measured:.0f} CPU s, predicted {predicted:.0f}"]
    for name, shape, block in (
        ("llama", "TinyLlama-1.1B", llama),
        ("gptj", "GPT-J-6B", gptj),
    ):
        layers = SHAPES[shape]["layers"]
        total = whole(name, layers, block, results)
        lines.append(
            f"{shape}: {block['cpu_seconds']:.1f} CPU s and {block['file_mb']:.2f} MB a block; "
            f"{layers} blocks {total['cpu_seconds'] / 60:.1f} CPU min, file {total['file_mb']:.0f} MB"
        )
    return lines


def difference(more: dict, less: dict) -> dict[str, float]:
    """CPU seconds and MB of file that one run takes more than another."""
    return {key: more[key] - less[key] for key in ("cpu_seconds", "file_mb")}


def whole(name: str, layers: int, block: dict, results: dict) -> dict[str, float]:
    """CPU seconds and MB of file of so many blocks, from those of two and of one more block."""
    two = results[f"{name} 2"]
    total = {key: two[key] + (layers - 2) * block[key] for key in block}
    total["cpu_seconds"] += two["forward_seconds_per_block"] * repeated_passes(layers)
    return total


def repeated_passes(layers: int) -> int:
    """Forward passes of single blocks that only lead up to a window."""
    return sum(range(0, layers, WINDOW))


def measure(shape: str, blocks: int, options: dict) -> dict:
    """One case, in this process."""
    import torch

    from shielded_recrl.explainer.lm import prefix_states
    from shielded_recrl.shield.bases import collect_bases
    from shielded_recrl.shield.serving import RankingHead

    torch.set_num_threads(1)
    model = random_model(shape, blocks)
    generator = torch.Generator().manual_seed(0)
    # A Zipf law over a thousand tokens.
    chances = 1 / torch.arange(1, 998, dtype=torch.float64)
    drawn = torch.multinomial(chances, PROMPTS * TOKENS, replacement=True, generator=generator)
    prompts = (3 + drawn).reshape(PROMPTS, TOKENS).tolist()
    if options.get("weight") == "score":
        width = SHAPES[shape]["width"]
        options["head"] = RankingHead(
            torch.randn(10_000, 64, generator=generator),
            torch.randn(64, width, generator=generator),
            1.0,
        )
    began = time.process_time()
    prefix_states(model, prompts, BATCH)
    forward = time.process_time() - began

    before = resident_mb()
    wall, began = time.perf_counter(), time.process_time()
    bases = collect_bases(model, prompts, batch_size=BATCH, layers_at_a_time=WINDOW, **options)
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    with tempfile.TemporaryDirectory() as folder:
        bases.save(Path(folder) / "bases.safetensors")
        size = (Path(folder) / "bases.safetensors").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "cpu_seconds": seconds,
        "wall_seconds": wall,
        "forward_seconds_per_block": forward / blocks,
        "model_mb": sum(w.numel() * w.element_size() for w in model.parameters()) / 2**20,
        "peak_mb": peak,
        "added_mb": peak - before,
        "file_mb": size / 2**20,
        "ranks": {group: f"{b.rank}/{b.width}" for group, b in bases.bases.items()},
        "prompts": PROMPTS,
        "tokens": PROMPTS * TOKENS,
    }


def random_model(shape: str, blocks: int):
    """A frozen bf16 LM of a shape's width with a vocabulary of 1000, so that blocks are its bulk."""
    import torch
    from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig

    width, inner = SHAPES[shape]["width"], SHAPES[shape]["inner"]
    tokens = {"vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2}
    if shape == "GPT-J-6B":
        config = GPTJConfig(
            n_embd=width, n_inner=inner, n_layer=blocks, n_head=16, rotary_dim=64, **tokens
        )
    else:
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=blocks,
            num_attention_heads=32,
            num_key_value_heads=4,
            **tokens,
        )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False).eval()


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main()
