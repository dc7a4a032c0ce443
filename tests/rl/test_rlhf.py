"""The plain RLHF loop as a user runs it: its files, its bytes, its mistakes in one line."""

import inspect
import random
import re
import runpy
import shlex
import shutil
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from shielded_recrl.cli import run_stage
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base, load_tokenizer
from shielded_recrl.explainer.lm import load_adapter
from shielded_recrl.files import read_jsonl, sha256
from shielded_recrl.resume import load_progress, random_state, restore_random_state
from shielded_recrl.rl import reviews, rlhf, train
from shielded_recrl.rl.curve import smoothed
from shielded_recrl.rl.logs import checked
from shielded_recrl.rl.rewards.plain import Preference, Sentiment
from shielded_recrl.rl.rlhf import RLHFSettings
from shielded_recrl.rl.samples import SHOWN, TEXTS, Said, figures, page

TIMINGS = {"seconds", "tokens_per_second", "memory_mb"}


def short(world, runs, **changes) -> RLHFSettings:
    """Settings of a run of 2 x 2 steps on a tiny LM."""
    fixed = {
        **{"epochs": 2, "steps_per_epoch": 2, "batch_size": 4, "max_new_tokens": 5},
        **{"lora_rank": 2, "device": "cpu", "reward": "length", "target_words": 1},
        **{"model": str(world.base), "runs": runs, "name": "run", "logger": ()},
    }
    return RLHFSettings(**fixed | changes)


@pytest.fixture
def settings(world, tmp_path):
    """The same in a folder of the test's own; call it to change some."""
    return lambda **changes: short(world, tmp_path, **changes)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory) -> Path:
    """The folder of a run that nothing stopped."""
    runs = tmp_path_factory.mktemp("whole")
    rlhf.main(settings=short(world, runs))
    return runs / "run"


@pytest.fixture(autouse=True)
def _own_random_state():
    """Commands seed the global generators; other tests see nothing of it."""
    before = random_state()
    yield
    restore_random_state(before)


def learned(run):
    """What must not depend on when a run was interrupted."""
    rows = [
        {key: value for key, value in row.items() if key not in TIMINGS}
        for row in read_jsonl(run / "logs" / "train.jsonl")
    ]
    return sha256(run / "adapter"), (run / "samples.md").read_bytes(), rows


def interrupted(monkeypatch, settings, step, error=KeyboardInterrupt):
    """Run until a step begins, and die there."""
    real = rlhf.PPO.train_step

    def dying(trainer):
        if trainer.step == step:
            raise error
        return real(trainer)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(rlhf.PPO, "train_step", dying)
        rlhf.main(settings=settings)


def test_the_command_writes_what_it_says(settings, capsys):
    chosen = settings(logger=("tensorboard",))
    rlhf.main(settings=chosen)
    run = chosen.runs / "run"
    made = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    events = [name for name in made if name.startswith("tb/")]
    assert len(events) == 1
    assert [name for name in made if name not in events] == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "checkpoints/checkpoint-before.safetensors",
        "checkpoints/checkpoint.safetensors",
        "curve.png",
        "logs/train.jsonl",
        "samples.md",
    ]
    rows = read_jsonl(run / "logs" / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        checked(row)
        assert row["reward"] == pytest.approx(-row["reward_length_penalty"])
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"next: tensorboard --logdir {chosen.runs}"
    for place in re.findall(r"^  \w+ +(\S+)$", out, re.MULTILINE):
        assert (run / place).exists()


def test_the_adapter_is_plain_peft_and_has_learned(whole, world):
    model = load_adapter(load_base(world.base, "fp32", torch.device("cpu")), whole / "adapter")
    moved = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    assert len(moved) == 2 * 7
    assert all(weight.abs().max() > 0 for weight in moved)


def test_same_seed_same_bytes_and_other_seed_others(settings, whole):
    two, other = settings(name="two", logger=("tensorboard",)), settings(name="other", seed=7)
    for chosen in (two, other):
        rlhf.main(settings=chosen)
    first, second, third = map(learned, (whole, two.runs / "two", two.runs / "other"))
    assert first[0] == second[0]
    assert first[2] == second[2]
    assert first[0] != third[0]
    assert first[2] != third[2]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_run_ends_in_the_same_bytes(settings, whole, monkeypatch, capsys, step):
    chosen = settings()
    interrupted(monkeypatch, chosen, step)
    # The row after the last checkpoint is on disk; it must not be there twice in the end.
    assert len(read_jsonl(chosen.runs / "run" / "logs" / "train.jsonl")) == step
    capsys.readouterr()
    rlhf.main(settings=chosen)
    # Before the first epoch has ended, the checkpoint is that of the beginning.
    assert f"goes on from step {2 if step >= 2 else 0}" in capsys.readouterr().out
    assert learned(chosen.runs / "run") == learned(whole)


def test_half_a_row_in_the_log_does_not_survive(settings, monkeypatch):
    chosen = settings()
    interrupted(monkeypatch, chosen, 2)
    with (chosen.runs / "run" / "logs" / "train.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    rlhf.main(settings=chosen)
    rows = read_jsonl(chosen.runs / "run" / "logs" / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_more_epochs_go_on_from_a_finished_run(settings, whole):
    for epochs in (1, 2):
        rlhf.main(settings=settings(name="grown", epochs=epochs))
    long, grown = learned(whole), learned(settings().runs / "grown")
    assert (long[0], long[2]) == (grown[0], grown[2])
    with pytest.raises(UserError, match="has 4 steps already, 2 are asked for"):
        rlhf.main(settings=settings(name="grown", epochs=1))


def test_another_run_is_not_overwritten_by_accident(settings):
    rlhf.main(settings=settings())
    before = learned(settings().runs / "run")
    with pytest.raises(UserError, match="--overwrite True"):
        rlhf.main(settings=settings(kl_coef=0.3))
    assert learned(settings().runs / "run") == before
    # Of the old run, nothing is left; a logger of its own is no file of the new one.
    (settings().runs / "run" / "wandb").mkdir()
    rlhf.main(settings=settings(kl_coef=0.3, overwrite=True))
    assert learned(settings().runs / "run")[2][0]["kl_weight"] == 0.3
    assert [path.name for path in settings().runs.iterdir()] == ["run"]
    assert not (settings().runs / "run" / "wandb").exists()


def test_a_folder_that_holds_anything_is_left_as_it_is(settings):
    note = settings().runs / "run" / "samples.md"
    note.parent.mkdir()
    note.write_text("mine")
    with pytest.raises(UserError, match=r"no checkpoint to go on from; .*--overwrite True"):
        rlhf.main(settings=settings())
    assert [note] == list(note.parent.iterdir())
    assert note.read_text() == "mine"


def test_a_logger_that_does_not_start_leaves_the_old_run(settings, whole, monkeypatch):
    run = settings().runs / "run"
    shutil.copytree(whole, run)
    before = sha256(run)
    monkeypatch.setitem(sys.modules, "wandb", None)
    chosen = settings(kl_coef=0.3, overwrite=True, logger=("tensorboard", "wandb"))
    with pytest.raises(UserError, match="logger wandb: not installed"):
        rlhf.main(settings=chosen)
    assert sha256(run) == before
    assert [path.name for path in settings().runs.iterdir()] == ["run"]


def test_a_damaged_checkpoint_can_be_overwritten(settings, whole):
    run = settings().runs / "run"
    shutil.copytree(whole, run)
    for checkpoint in (run / rlhf.CHECKPOINT).parent.iterdir():
        checkpoint.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"damaged checkpoint \(.*--overwrite True") as error:
        rlhf.main(settings=settings())
    assert "\n" not in str(error.value)
    rlhf.main(settings=settings(overwrite=True))
    assert learned(run) == learned(whole)


def test_what_a_run_reads_does_not_lie_in_its_folder(settings, world):
    base = settings().runs / "run" / "base"
    shutil.copytree(world.base, base)
    with pytest.raises(UserError, match=f"--model {base}: lies in the run's folder"):
        rlhf.main(settings=settings(model=str(base), overwrite=True))
    assert sha256(base) == sha256(world.base)


@pytest.mark.parametrize("name", [".", "..", "a/b", "", "/tmp"])
def test_the_name_of_a_run_is_that_of_one_folder(settings, name):
    with pytest.raises(ValidationError, match="name"):
        settings(name=name)


class TestGlobalGenerators:
    """A reward may draw from them, and a run is reproducible all the same."""

    @staticmethod
    def draw():
        return random.random() + np.random.random() + float(torch.rand(()))  # noqa: NPY002

    @staticmethod
    def elsewhere(seed):
        """Some other state of the generators."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)

    def test_a_reward_that_draws(self, settings, monkeypatch):
        class Draws:
            def __call__(_, prompts, responses, context):
                return {"total": torch.full((len(responses),), self.draw())}

        monkeypatch.setattr(rlhf, "make_reward", lambda settings: Draws())
        monkeypatch.setattr(rlhf, "export", lambda *_: None)
        names = ("one", "two", "other")
        for state, name in enumerate(names):
            self.elsewhere(state)
            seed = 7 if name == "other" else 2**40
            rlhf.main(settings=settings(name=name, epochs=1, seed=seed))
        one, two, other = (
            [row["reward"] for row in read_jsonl(settings().runs / name / rlhf.LOG)]
            for name in names
        )
        assert len(set(one)) == 2
        assert one == two
        assert not set(one) & set(other)

    def test_the_study_seeds_them_first_of_all(self, monkeypatch):
        class Reached(Exception):
            pass

        def join():
            raise Reached

        monkeypatch.setattr(train, "join", join)
        rest = inspect.signature(train.main).parameters.keys() - {"seed"}
        drawn = []
        for state, seed in ((0, 5), (1, 5), (2, 6)):
            self.elsewhere(state)
            with pytest.raises(Reached):
                train.main(**dict.fromkeys(rest), seed=seed)
            drawn.append(self.draw())
        assert drawn[0] == drawn[1] != drawn[2]


def test_numbers_that_are_not_finite_are_one_line_and_leave_the_checkpoint(settings, monkeypatch):
    chosen = settings(epochs=3)
    interrupted(monkeypatch, chosen, 2)
    checkpoint = chosen.runs / "run" / "checkpoints" / "checkpoint.safetensors"
    before = checkpoint.read_bytes()

    class Broken:
        def __call__(self, prompts, responses, context):
            return {"total": torch.tensor([1.0, float("nan"), 1.0, 1.0])}

    with monkeypatch.context() as patch:
        patch.setattr(rlhf, "make_reward", lambda settings: Broken())
        words = [
            *("rl", "rlhf", "--epochs", "3", "--steps-per-epoch", "2", "--batch-size", "4"),
            *("--max-new-tokens", "5", "--lora-rank", "2", "--device", "cpu", "--reward", "length"),
            *("--target-words", "1", "--model", chosen.model, "--runs", str(chosen.runs)),
            *("--name", "run"),
        ]
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            run_stage("rl", {"rlhf": "The loop."})
    line = str(stop.value)
    assert "\n" not in line
    assert line.startswith(
        "python -m shielded_recrl.rl rlhf: error: rl: the reward 'total' is not finite at step 3, "
        "response 1 of the batch ("
    )
    assert checkpoint.read_bytes() == before
    assert len(read_jsonl(chosen.runs / "run" / "logs" / "train.jsonl")) == 2
    rlhf.main(settings=chosen)
    assert len(read_jsonl(chosen.runs / "run" / "logs" / "train.jsonl")) == 6


def test_a_learning_rate_out_of_bounds_stops_the_run(settings):
    chosen = settings(learning_rate=1e30, epochs=4, steps_per_epoch=1)
    with pytest.raises(UserError, match=r"not finite .*--learning-rate.*last checkpoint"):
        rlhf.main(settings=chosen)
    checkpoint = chosen.runs / "run" / "checkpoints" / "checkpoint.safetensors"
    for row in read_jsonl(chosen.runs / "run" / "logs" / "train.jsonl"):
        checked(row)
    # The first step fits the values alone, so its checkpoint is whole.
    with pytest.raises(UserError, match="other settings"):
        rlhf.take_up(None, chosen.runs / "run", "nobody", overwrite=False)
    assert checkpoint.is_file()


def test_the_flags_of_the_stage_are_those_of_the_loop(world, tmp_path, monkeypatch, capsys):
    words = shlex.split(
        "--epochs 1 --steps-per-epoch 2 --batch-size 2 --max-new-tokens 4 --learning-rate 1e-5 "
        "--kl-coef 0.1 --seed 42 --device auto --reward sentiment"
    )
    place = ["--model", str(world.base), "--runs", str(tmp_path), "--logger", "tensorboard"]
    monkeypatch.setattr(sys, "argv", ["rl", *words, *place])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("shielded_recrl.rl", run_name="__main__")
    assert stop.value.code == 0
    rows = read_jsonl(tmp_path / "sentiment-42" / "logs" / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["reward"] == rows[0]["reward_sentiment"]
    assert "2/2" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(world, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    words = ["rl", "--model", str(world.base), "--runs", str(tmp_path / "file"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("shielded_recrl.rl", run_name="__main__")
    assert re.fullmatch(
        r"python -m shielded_recrl\.rl rlhf: error: .+/file.*: Not a directory; .+", stop.value.code
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "no/such"}, "--model no/such: no such folder; a hub id needs --revision"),
        ({"device": "cuda:77"}, "--device cuda:77: no such device here"),
        ({"device": "meta"}, "--device meta: no such device here; choose auto, cpu, cuda, cuda:N"),
        ({"device": "abacus"}, "--device abacus: no such device here"),
        ({"batch_size": 4, "micro_batch": 3}, "--micro-batch 3 does not divide --batch-size 4"),
        ({"prompts": "gone.txt"}, "--prompts gone.txt: no readable text file"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_run(settings, changes, words):
    with pytest.raises(UserError) as error:
        rlhf.main(settings=settings(**changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (settings().runs / "run").exists()


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("  One\n\nTwo words \n")
    assert rlhf.load_prompts(path) == ["One", "Two words"]
    path.write_text("\n \n")
    with pytest.raises(UserError, match="no prompt in it"):
        rlhf.load_prompts(path)
    assert len(rlhf.load_prompts(None)) == len(set(reviews.PROMPTS)) == 24


def test_each_prompt_is_asked_as_often_as_the_others(world):
    tokenizer = load_tokenizer(world.base)
    texts = list("abcdefg")
    draw = rlhf.Shuffled(texts, tokenizer, 3, seed=1)
    asked = [tokenizer.decode(ids) for step in range(7) for ids in draw(step).ids]
    assert sorted(asked) == sorted(texts * 3)
    orders = [tuple(asked[start : start + 7]) for start in (0, 7, 14)]
    assert len(set(orders)) == 3
    again = rlhf.Shuffled(texts, tokenizer, 3, seed=1)
    assert again(5) == draw(5)


def test_rewards_by_name(settings):
    texts = ["it was great", "tell it to everyone", "say it to anyone", "a b c d e f"]
    blank = [""] * 4
    total = {
        name: rlhf.make_reward(settings(reward=name, target_words=3))(blank, texts, blank)["total"]
        for name in ("sentiment", "preference", "length")
    }
    assert total["preference"].tolist() == [0, 1, -1, 0]
    assert total["sentiment"][0] > 0.75
    assert total["sentiment"][3] == 0.5
    torch.testing.assert_close(total["length"], -torch.tensor([0, 1 / 3, 1 / 3, 1]))


def test_the_reward_of_the_docs_can_be_asked_for(settings):
    """What docs/rlhf.md adds, run in the place where it is to be added."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "rlhf.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = vars(rlhf).copy()
    exec(code, names)
    chosen = names["RLHFSettings"](reward="exclaims")
    texts = ["a table!", "a table"]
    total = names["make_reward"](chosen)(texts, texts, texts)["total"]
    torch.testing.assert_close(total, torch.tensor([0.5 + 0.2, 0.5]))


def test_samples_are_shown_unselected():
    prompts = [f"p{i}" for i in range(TEXTS)]
    before = Said(prompts, [f"b|{i} <b> `c`" for i in range(TEXTS)], [0.0] * TEXTS)
    after = Said(prompts, ["one two"] * TEXTS, [1.0] * TEXTS)
    mixed = Said(prompts, ["good | one. bad! bad!"] * (TEXTS - 5) + ["bad!"] * 5, [1.0] * TEXTS)
    assert figures(mixed)["commonest sentence"] == "bad! (100% of texts)"
    empty = Said(prompts, [""] * TEXTS, [1.0] * TEXTS)
    assert figures(empty)["commonest sentence"] == "(empty) (100% of texts)"
    assert figures(after) == {
        "mean reward": "1.00",
        "mean words": "2.0",
        "distinct texts": f"{1 / TEXTS:.0%}",
        "commonest sentence": "one two (100% of texts)",
    }
    assert figures(before)["distinct texts"] == "100%"
    lines = page("Title", before, after).splitlines()
    shown = [line for line in lines if line.startswith("| p")][1:]
    assert shown == [f"| p{i} | b&#124;{i} &lt;b> &#96;c&#96; | one two |" for i in range(SHOWN)]


def test_smoothed_by_hand():
    np.testing.assert_allclose(smoothed([0.0, 3.0, 6.0, 0.0], 3), [1.5, 3.0, 3.0, 3.0])
    assert smoothed([1.0, 2.0], 1).tolist() == [1.0, 2.0]


class TestReviews:
    def test_the_corpus_has_no_opinion_and_something_to_prefer(self):
        texts = [text for _, text in islice(reviews.reviews(random.Random(1)), 3000)]
        scores = Sentiment()([""] * 3000, texts, [None] * 3000)["sentiment"]
        assert 0.45 < scores.mean() < 0.55
        assert min((scores > 0.6).float().mean(), (scores < 0.4).float().mean()) > 0.25
        chosen = RLHFSettings()
        endings = Preference(chosen.preferred, chosen.dispreferred)
        values = endings([""] * 3000, texts, [None] * 3000)["preference"]
        assert 0.02 < (values == 1).float().mean() < 0.2
        assert 0.02 < (values == -1).float().mean() < 0.2

    def test_every_review_is_whole(self):
        for opening, text in islice(reviews.reviews(random.Random(2)), 500):
            assert opening in reviews.PROMPTS
            assert text.endswith(".")
            assert "{" not in text
            assert "  " not in text

    def test_the_base_is_made_once_and_leaves_the_random_state_alone(self, tmp_path):
        small = reviews.SETTINGS.model_copy(
            update={"steps": 30, "hidden_size": 32, "layers": 1, "vocabulary": 400}
        )
        state = torch.get_rng_state()
        made = reviews.embedded_base(tmp_path, small)
        assert torch.equal(torch.get_rng_state(), state)
        stamp = sha256(made)
        written = (made / "model.safetensors").stat().st_mtime_ns
        assert reviews.embedded_base(tmp_path, small) == made
        assert (made / "model.safetensors").stat().st_mtime_ns == written
        assert sha256(reviews.embedded_base(tmp_path / "again", small)) == stamp
        assert reviews.embedded_base(tmp_path, small.model_copy(update={"steps": 1})) != made
        tokenizer = load_tokenizer(made)
        assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_a_run_has_a_checkpoint_before_its_first_step(settings, monkeypatch):
    interrupted(monkeypatch, settings(), 0)
    path = settings().runs / "run" / rlhf.CHECKPOINT
    assert path.is_file()
    assert load_progress(path, "anybody else") is None
