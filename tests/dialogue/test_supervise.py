"""The embedded base LM of responses and its supervised adapter: examples, losses, files."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from shielded_recrl.dialogue import pretrain, supervise
from shielded_recrl.dialogue.corpus.dialogues import SLOT, Dialogues, Turn
from shielded_recrl.dialogue.response.generation import generate, uniform_numbers
from shielded_recrl.dialogue.response.prompts import ResponsePrompts, names_again, spread
from shielded_recrl.dialogue.settings import (
    ResponseBaseSettings,
    ResponsePromptSettings,
    SuperviseSettings,
)
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.base import load_base, load_tokenizer
from shielded_recrl.explainer.lm import load_adapter
from shielded_recrl.explainer.pretrain import Example, train_tokenizer
from shielded_recrl.files import read_jsonl, sha256
from tiny_dialogues import TinyDialogues, write_dialogues
from tiny_world import save_model, tiny_llama

CPU = torch.device("cpu")
PROMPT = ResponsePromptSettings(context_turns=2, prompt_tokens=96, titles=2)
BASE = ResponseBaseSettings(
    vocabulary=400, hidden_size=16, layers=1, heads=2, steps=30, batch_size=8
)
LESSONS = SuperviseSettings(
    lora_rank=4, lora_alpha=8, steps=20, batch_size=8, evaluate_every=5, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> TinyDialogues:
    return write_dialogues(tmp_path_factory.mktemp("dialogues") / "made")


@pytest.fixture(scope="module")
def base(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("base") / "model"
    pretrain.main(data=world.data, out=out, prompt=PROMPT, settings=BASE)
    return out


def supervised(world: TinyDialogues, base: Path, folder: Path, settings=LESSONS, **changes) -> Path:
    """A folder with `adapter` and `supervise.jsonl`."""
    supervise.main(
        inputs=world.inputs(base, **{"prompt": PROMPT} | changes),
        out=folder / "adapter",
        log=folder / "supervise.jsonl",
        settings=settings,
    )
    return folder


@pytest.fixture(scope="module")
def run(world, base, tmp_path_factory) -> Path:
    return supervised(world, base, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def prompts(world, base) -> ResponsePrompts:
    return ResponsePrompts.load(world.data, world.emotion, world.recommendations, base, PROMPT)


def adapted(run: Path, base: Path):
    return load_adapter(load_base(base, "fp32", CPU), run / "adapter")


def test_the_base_reads_slots_as_one_token_and_nothing_but_train_turns(world, base, tmp_path):
    tokenizer = load_tokenizer(base)
    assert len(tokenizer) <= BASE.vocabulary
    assert tokenizer.encode(SLOT) == [tokenizer.convert_tokens_to_ids(SLOT)]
    changed = tmp_path / "data"
    shutil.copytree(world.data, changed)
    test = pl.read_parquet(changed / "dialogues.parquet").filter(pl.col("split") != "train")
    turns = pl.read_parquet(changed / "turns.parquet")
    hidden = pl.col("dialogue").is_in(test["dialogue"].implode()) & ~pl.col("text").str.contains(
        SLOT, literal=True
    )
    turns = turns.with_columns(text=pl.when(hidden).then(pl.lit("Zyzzyva!")).otherwise("text"))
    assert turns["text"].str.contains("Zyzzyva").any()
    turns.write_parquet(changed / "turns.parquet")
    quick = BASE.model_copy(update={"steps": 2})
    digests = []
    for name, data, seed in (("a", world.data, 1), ("b", changed, 1), ("c", world.data, 2)):
        pretrain.main(data=data, out=tmp_path / name, seed=seed, prompt=PROMPT, settings=quick)
        digests.append(sha256(tmp_path / name))
    assert digests[0] == digests[1] != digests[2]


def test_an_example_of_the_base_is_a_context_and_a_response(world, prompts):
    taught = prompts.dialogues.split("train")[:1]
    found = pretrain.examples(taught, prompts, 32, BASE)
    turns = taught[0].turns
    kept = [place for place in (1, 3, 5) if not names_again(turns, place)]
    assert len(found) == len(kept) > 0
    for row, place in zip(found, kept, strict=True):
        text = prompts.tokenizer.decode(row.ids)
        before = "\n".join(
            f"{'Recommender' if turn.role == 'recommender' else 'Seeker'}: {prompts.said(turn)}"
            for turn in turns[max(0, place - 2) : place]
        )
        assert text == f"<s>{before}\nRecommender: {turns[place].text}</s>"
        answer = prompts.response_ids(turns[place].text)
        assert row.weights == (
            0.0,
            *[BASE.context_weight] * (len(row.ids) - len(answer) - 1),
            *[1.0] * len(answer),
        )


def test_lessons_fit_and_name_new_films(prompts):
    taught = supervise.lessons(prompts, "train", 32)
    every = prompts.requests("train")
    assert 0 < len(taught) < len(every)
    for request in taught:
        named = {item for turn in request.context for item in turn.items}
        turn = prompts.dialogues.all[request.dialogue].turns[request.turn]
        assert named.isdisjoint(turn.items)
        assert len(set(turn.items)) == len(turn.items)
        assert len(prompts.response_ids(request.gold)) <= 32
    short = supervise.lessons(prompts, "train", 7)
    assert 0 < len(short) < len(taught)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_prompts_are_those_that_are_served(world, prompts, split):
    """The recommender's films alone: what a person went on to name would make every loss too good."""
    films = pl.read_parquet(world.recommendations).sort("position")
    rows = {key: rows["item"] for key, rows in films.group_by("dialogue", "turn")}
    unaided = 0
    for request in supervise.lessons(prompts, split, 32):
        titles = [prompts.dialogues.title(item) for item in rows[request.dialogue, request.turn]]
        assert list(request.recommended) == titles
        answer = prompts.response_ids(request.gold)
        assert list(supervise.row(prompts, request).ids) == [*prompts.ids(request), *answer]
        named = prompts.dialogues.all[request.dialogue].turns[request.turn].items
        unaided += not {*map(prompts.dialogues.title, named)} <= {*titles[: PROMPT.titles]}
    assert unaided > 0


def test_only_the_response_is_learned(prompts):
    request = supervise.lessons(prompts, "valid", 32)[0]
    found = supervise.row(prompts, request)
    answer = prompts.response_ids(request.gold)
    assert list(found.ids) == [*prompts.ids(request), *answer]
    assert found.weights == (0.0,) * len(prompts.ids(request)) + (1.0,) * len(answer)
    plain = supervise.row(prompts, request, plain=True)
    assert list(plain.ids) == [*prompts.plain_ids(request.context), *answer]


def test_validation_responses_are_spread_evenly():
    assert spread(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread(list("abc"), 5) == ["a", "b", "c"]


def test_the_validation_loss_is_a_mean_over_tokens():
    model = tiny_llama(20)
    rows = [
        Example((1, 2, 3, 4), (0.0, 0.0, 1.0, 1.0)),
        Example((5, 6, 7, 8, 9, 10), (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)),
    ]
    total = 0.0
    for one in rows:
        log = model(torch.tensor([one.ids])).logits[0].log_softmax(-1)
        total -= sum(
            weight * log[place - 1, token].item()
            for place, (token, weight) in enumerate(zip(one.ids, one.weights, strict=True))
            if weight
        )
    assert supervise.validation_loss(model, rows, CPU) == pytest.approx(total / 3, rel=1e-5)


def test_the_log_and_the_adapter_of_its_best_row(world, base, run, prompts, capsys):
    log = read_jsonl(run / "supervise.jsonl")
    assert [line["step"] for line in log] == [0, 5, 10, 15, 20]
    assert log[0]["train_loss"] is None
    assert all(line["train_loss"] > 0 for line in log[1:])
    assert all(line["valid_perplexity"] == math.exp(line["valid_loss"]) for line in log)
    assert [line["valid_perplexity_turns"] is None for line in log] == [False] + [True] * 4
    best = min(log, key=lambda line: line["valid_loss"])
    assert best["valid_loss"] < log[0]["valid_loss"] - 0.1
    held = [supervise.row(prompts, one) for one in supervise.lessons(prompts, "valid", 32)]
    found = supervise.validation_loss(adapted(run, base), held, CPU)
    assert found == pytest.approx(best["valid_loss"], rel=1e-5)
    bare = load_base(base, "fp32", CPU)
    assert supervise.validation_loss(bare, held, CPU) == pytest.approx(log[0]["valid_loss"])
    plain = [
        supervise.row(prompts, one, plain=True) for one in supervise.lessons(prompts, "valid", 32)
    ]
    assert math.exp(supervise.validation_loss(bare, plain, CPU)) == pytest.approx(
        log[0]["valid_perplexity_turns"]
    )


def test_a_seed_gives_the_same_bytes(world, base, run, tmp_path):
    again = supervised(world, base, tmp_path / "again")
    assert sha256(again) == sha256(run)
    other = supervised(world, base, tmp_path / "other", seed=7)
    assert sha256(other / "adapter") != sha256(run / "adapter")


ASKED, RIGHT, WRONG = (3, 4, 5, 6), (7, 8), (9, 10)


def lesson(answer, asked=ASKED) -> Example:
    return Example((*asked, *answer), (0.0,) * len(asked) + (1.0,) * len(answer))


def small_adapter():
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(20), LoraConfig(r=4, target_modules="all-linear"))


def test_training_ends_when_the_validation_stops_falling():
    # What is validated is learned first, then unlearned for the sake of what is trained on.
    taught = [lesson(RIGHT), lesson(WRONG), lesson(WRONG)]
    settings = SuperviseSettings(
        steps=400, batch_size=3, evaluate_every=2, patience=3, learning_rate=1e-2
    )
    model = small_adapter()
    found = supervise.fit(model, taught, [lesson(RIGHT)], settings, 0, CPU)
    losses = [line["valid_loss"] for line in found.log]
    assert found.log[-1]["step"] < settings.steps
    assert found.step == found.log[-1 - settings.patience]["step"] > 0
    assert min(losses) == losses[-1 - settings.patience]
    kept = supervise.validation_loss(model, [lesson(RIGHT)], CPU)
    assert kept == pytest.approx(min(losses), rel=1e-5)


def test_a_base_that_is_not_beaten_is_an_error():
    settings = SuperviseSettings(steps=20, batch_size=2, evaluate_every=5, learning_rate=1e-2)
    model = small_adapter()
    # Where each answer is sure already, the other one can only be unlearned.
    supervise.fit(model, [lesson(RIGHT)], [lesson(RIGHT)], settings, 0, CPU)
    with pytest.raises(UserError, match=r"no validation loss is below the base's [\d.]+; lower"):
        supervise.fit(model, [lesson(WRONG)], [lesson(RIGHT)], settings, 0, CPU)


def test_a_loss_that_is_no_number_leaves_nothing(world, base, tmp_path):
    wild = LESSONS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(UserError, match=r"loss( of step \d+)? is (nan|inf); lower learning_rate"):
        supervised(world, base, tmp_path / "run", wild)
    assert not (tmp_path / "run").exists()


def test_prompts_beyond_the_context_of_the_base_are_refused(world, base, tmp_path):
    long = PROMPT.model_copy(update={"prompt_tokens": 1000})
    with pytest.raises(UserError, match="make 1032, but the base LM reads 1024 at the most"):
        supervised(world, base, tmp_path, prompt=long)


def test_no_response_that_fits_is_named(world, base, tmp_path):
    with pytest.raises(UserError, match="no recommender of the train split answers in 2 tokens"):
        supervised(world, base, tmp_path, response_tokens=2)
    with pytest.raises(UserError, match="no recommender of the train split says anything"):
        pretrain.main(
            data=world.data, out=tmp_path / "m", response_tokens=2, prompt=PROMPT, settings=BASE
        )
    assert not (tmp_path / "m").exists()


def test_missing_recommendations_are_one_line(world, base, tmp_path):
    gone = replace(world, recommendations=tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"none\.parquet: no such file"):
        supervised(gone, base, tmp_path)


def test_heads_that_do_not_divide_the_width_are_named_by_their_key(world, tmp_path):
    odd = BASE.model_copy(update={"heads": 3})
    with pytest.raises(UserError, match=r"dialogue\.response\.pretrain\.heads: 3 heads"):
        pretrain.main(data=world.data, out=tmp_path / "m", prompt=PROMPT, settings=odd)


def foreign_base(kind: str, folder: Path, world: TinyDialogues) -> Path:
    """A base of somebody else, to which `<movie>` is several tokens."""
    dialogues = Dialogues.load(world.data)
    tokenizer = train_tokenizer(pretrain.corpus(dialogues, dialogues.split("train")), 400)
    if kind == "gpt2":
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer),
                n_embd=32,
                n_layer=2,
                n_head=2,
                n_positions=256,
                initializer_range=0.3,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    else:
        model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    return save_model(model, tokenizer, folder)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_any_causal_lm_is_supervised_and_answers(kind, world, tmp_path):
    folder = foreign_base(kind, tmp_path / "base", world)
    run = supervised(world, folder, tmp_path / "run")
    log = read_jsonl(run / "supervise.jsonl")
    assert min(line["valid_loss"] for line in log) < log[0]["valid_loss"] - 0.3
    model = adapted(run, folder)
    prompts = ResponsePrompts.load(world.data, world.emotion, world.recommendations, folder, PROMPT)
    assert len(prompts.tokenizer.encode(SLOT)) > 1
    asked = [prompts.ids(request) for request in prompts.requests("test")[:4]]
    numbers = uniform_numbers(0, 4, 6)
    found = generate(model, prompts.tokenizer, asked, numbers)
    ids = list(asked[2])
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == prompts.tokenizer.eos_token_id:
            break
    said = prompts.tokenizer.decode(ids[len(asked[2]) :], skip_special_tokens=True)
    assert found[2] == said.strip()
    # Merged into the base, as RL takes it up, it says the same.
    assert found == generate(model.merge_and_unload(), prompts.tokenizer, asked, numbers)


def test_a_turn_is_said_with_its_titles(prompts):
    assert prompts.said(Turn("seeker", "I like <movie> <3", (2,))) == "I like Film 2 (1982) (3"
