"""The modes, the checks and the tables of benchmarks/shield_price, on a tiny model."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from shielded_recrl.errors import UserError
from shielded_recrl.explainer.lm import activation, causal_lm
from shielded_recrl.files import read_json

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "shield_price"


@pytest.fixture
def load(monkeypatch):
    """Import a module of the benchmark by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module
    # Other benchmarks have a `run` too.
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def tiny(load):
    """The serving module, its tiny models and a prompt."""
    serving = load("serving")
    shape = serving.SHAPES["tiny"]
    models = serving.build(shape, "fp32", tuple(serving.BUILDERS))
    return serving, models, serving.prompt(shape, 3, seed=1)


def test_quick_run_measures_every_mode_and_variant(load, tmp_path):
    run, before = load("run"), torch.get_num_threads()
    run.main(["--quick", "--part", "serving", "training", "--out", str(tmp_path)])
    assert torch.get_num_threads() == before
    results = read_json(tmp_path / "results.json")
    (setting,), (job,) = results["serving"], results["training"]
    modes, variants = load("serving").MODES, load("training").VARIANTS
    assert {row["mode"] for row in setting["runs"]} == set(modes)
    assert len(setting["runs"]) == 3 * len(modes)
    identical = {name for name, found in setting["modes"].items() if found["identical"]}
    exact = {"separate", "two_models", "activated"}
    assert identical == {"base", *exact, *(f"{name}_last" for name in exact)}
    assert len(job["updates"]) == 3 * len(variants)
    hooks = {name: median_of(job["updates"], name) for name in variants}
    assert hooks["without"] < hooks["projection"] < hooks["projection and penalty"]
    text = (tmp_path / "README.md").read_text()
    assert all(f"| {mode.title} |" in text for mode in modes.values())
    assert (tmp_path / "results.svg").read_text().count("CPU time, base alone = 1") == 1


def median_of(updates: list[dict], variant: str) -> float:
    rows = sorted(row["hooks"] for row in updates if row["variant"] == variant)
    return rows[len(rows) // 2]


@torch.inference_mode()
def test_cached_requests_write_what_a_model_without_cache_writes(tiny):
    serving, models, prompt = tiny
    whole = torch.cat([prompt.prefix, prompt.request], dim=1)
    adapter = {
        "base": "base",
        "always_on": "adapted",
        "merged": "merged",
        "separate": "adapted",
        "two_models": "merged",
        "activated": "activated",
    }
    for name, mode in serving.MODES.items():
        own = adapter[name.removesuffix("_last")]
        own += "_last" if name.endswith("_last") else ""
        served, ids, model = mode.serve(models, prompt, serving.Watch()), whole, models[own]
        for _ in range(prompt.answer):
            awake = [ids.shape[1] - prompt.prefix.shape[1]] * len(ids)
            with activation(model, awake):
                logits = causal_lm(model)(input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
        assert served.tokens.tolist() == ids[:, whole.shape[1] :].tolist(), name
        assert served.cache.get_seq_length() == whole.shape[1] + prompt.answer - 1


def test_a_mode_that_breaks_its_promise_is_not_timed(tiny, monkeypatch):
    serving, models, prompt = tiny
    on = serving.MODES["always_on"]
    with torch.inference_mode():
        assert serving.check(models, prompt, "fp32")["merge_distance"] < 1e-4
        for name, broken in (("separate", on.serve), ("merged", serving.MODES["base"].serve)):
            with monkeypatch.context() as patch:
                patch.setitem(serving.MODES, name, replace(serving.MODES[name], serve=broken))
                with pytest.raises(UserError, match="nothing was timed"):
                    serving.check(models, prompt, "fp32")


def test_weights_of_each_mode(tiny):
    serving, models, prompt = tiny
    with torch.inference_mode():
        found = serving.check(models, prompt, "fp32")["modes"]
    base = found["base"]["weight_bytes"]
    assert base == 4 * models["base"].num_parameters()
    trained = {}
    for suffix in ("", "_last"):
        assert found[f"merged{suffix}"]["weight_bytes"] == base
        assert found[f"two_models{suffix}"]["weight_bytes"] == 2 * base
        weights = models[f"adapted{suffix}"].named_parameters()
        trained[suffix] = sum(weight.numel() for name, weight in weights if "lora_" in name)
        for name in ("always_on", "separate", "activated"):
            assert found[f"{name}{suffix}"]["weight_bytes"] == base + 4 * trained[suffix]
    assert trained[""] == serving.SHAPES["tiny"].layers * trained["_last"]
    shape = serving.SHAPES["tiny"]
    length = shape.prefix + shape.request + shape.answer - 1
    assert found["base"]["cache_bytes"] == 4 * 2 * 3 * length * shape.hidden * shape.layers


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory needs Linux")
def test_peak_memory_holds_the_weights(load):
    serving = load("serving")
    shape = replace(serving.SHAPES["tiny"], hidden=1024, vocabulary=16_000)
    peak = serving.peak_memory(shape, "fp32", 1, "base")
    assert 65e6 < peak < 165e6


def test_ratios_compare_with_the_base(load):
    run, serving = load("run"), load("serving")

    def row(mode: str, turn: int, seconds: float) -> dict:
        clock = dict.fromkeys(serving.PHASES, 0.0) | {"ranking": seconds / 4, "decoding": seconds}
        return {"mode": mode, "round": turn, "cpu": clock, "wall": clock}

    setting = {
        "modes": {"base": {}, "separate": {}},
        "runs": [
            *(row("separate", turn, seconds) for turn, seconds in enumerate((6.0, 3.0, 80.0))),
            *(row("base", turn, seconds) for turn, seconds in enumerate((2.0, 3.0, 4.0))),
        ],
    }
    base, separate = run.modes(setting)
    assert (base["ratio"], base["spread"], base["cpu"]) == (1.0, (1.0, 1.0), 3.75)
    assert (separate["ratio"], separate["wall_ratio"]) == (2.0, 2.0)
    assert separate["spread"] == (2.0, 11.5)
    assert separate["phases"]["decoding"] == 6.0


def test_overhead_is_the_hooks_beside_a_step_without_them(load):
    run = load("run")
    job = {
        "job": {"epochs": 2},
        "rollouts": [6.0, 5.0, 7.0],
        "updates": [
            {"variant": name, "round": turn, "cpu": cpu + 0.1 * turn, "hooks": hooks}
            for name, cpu, hooks in (
                ("without", 1.9, 0.0),
                ("projection", 2.0, 0.05),
                ("projection and penalty", 3.9, 2.0),
            )
            for turn in range(3)
        ],
    }
    plain, projection, penalty = run.overheads(job)
    assert (plain["hooks"], plain["added"]) == (0.0, 0.0)
    assert projection["hooks"] == pytest.approx(0.025)
    assert projection["added"] == pytest.approx(0.05)
    # Two steps of 2 s and rollouts of 6 s.
    assert projection["whole"] == pytest.approx(0.01)
    assert penalty["added"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick"], "give --out"),
        (["--setting", "7B", "fp32", "1", "5"], "expected one of tiny, embedded, 110M"),
        (["--setting", "tiny", "fp8", "1", "5"], "expected one of fp32, bf16"),
        (["--training", "tiny", "1"], "a number from 2"),
        (["--render", "--out", "/nowhere"], "no such file"),
    ],
)
def test_wrong_options_are_one_line(load, arguments, message):
    with pytest.raises(UserError, match=message):
        load("run").main(arguments)


def test_a_setting_measured_again_takes_its_place_and_the_rest_stays(load, tmp_path):
    run = load("run")
    run.main(["--quick", "--part", "serving", "training", "--out", str(tmp_path)])
    first = read_json(tmp_path / "results.json")
    for batch, places in (("1", [2, 1]), ("2", [2, 1])):
        again = ["--setting", "tiny", "fp32", batch, "2", "--part", "serving"]
        run.main([*again, "--out", str(tmp_path)])
        results = read_json(tmp_path / "results.json")
        assert [setting["batch"] for setting in results["serving"]] == places
        assert results["training"] == first["training"]
    assert results["serving"][0] != first["serving"][0]
    assert {row["round"] for row in results["serving"][0]["runs"]} == {0, 1}
