"""The command `judge`: every kind of response, by every judge, of train and valid alone."""

import math
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from chat_server import completion, listening
from shielded_recrl.dialogue.corpus.dialogues import Dialogues
from shielded_recrl.dialogue.critique.judged import KEYS, columns, load_judged, save_judged
from shielded_recrl.dialogue.judge import main as judge_command
from shielded_recrl.dialogue.judges.base import HEADS
from shielded_recrl.dialogue.response.corrupt import FAULTS
from shielded_recrl.dialogue.settings import JudgeSettings, ResponsePromptSettings
from shielded_recrl.errors import UserError
from shielded_recrl.explainer.init import save_adapter
from shielded_recrl.explainer.pretrain import train_tokenizer
from shielded_recrl.files import read_jsonl
from tiny_dialogues import TinyDialogues, write_dialogues
from tiny_judged import SPOILT, spoil_test
from tiny_world import save_model, tiny_llama, with_adapter

ANSWER = "\n".join(f"{head}: 4" for head in HEADS)
TRAIN_TURNS, VALID_TURNS = 20, 6


def judge(lm: Path, paths: TinyDialogues, folder: Path, name: str = "judged", **settings) -> Path:
    """Run the command with the LM of a folder."""
    out = folder / f"{name}.parquet"
    judge_command(
        inputs=paths.inputs(
            lm / "base", ResponsePromptSettings(prompt_tokens=64), response_tokens=8
        ),
        adapter=lm / "adapter",
        out=out,
        scratch=folder / "scratch",
        settings=JudgeSettings(train_turns=TRAIN_TURNS, valid_turns=VALID_TURNS, **settings),
    )
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with dialogues, an LM, and what two runs judged, the second by the answers of the first."""
    folder = tmp_path_factory.mktemp("judge")
    paths = write_dialogues(folder, 40)
    texts = [turn.text for dialogue in Dialogues.load(paths.data).all for turn in dialogue.turns]
    tokenizer = train_tokenizer(iter(texts), 300)
    model = tiny_llama(len(tokenizer))
    save_model(model, tokenizer, folder / "base")
    save_adapter(with_adapter(model), folder / "adapter")
    with listening() as serving:
        serving.reply = lambda body: (200, {}, completion(ANSWER))
        asking = {"models": ("judge",), "url": serving.url}
        judge(folder, paths, folder, **asking)
        asked = len(serving.asked)
        judge(folder, paths, folder, "again", **asking)
        assert len(serving.asked) == asked > 0
    return folder


@pytest.fixture(scope="module")
def table(made):
    return load_judged(made / "judged.parquet")


def test_every_kind_is_judged(made, table):
    kinds = Counter(table["kind"])
    turns = TRAIN_TURNS + VALID_TURNS
    assert kinds["gold"] == kinds["sampled"] == kinds["corrupted:empty"] == turns
    assert kinds["corrupted:repeated"] == turns
    assert set(kinds) == {"gold", "sampled", *(f"corrupted:{how}" for how in FAULTS)}
    gold = table.filter(kind="gold")
    assert gold["split"].value_counts().sort("split").rows() == [
        ("train", TRAIN_TURNS),
        ("valid", VALID_TURNS),
    ]
    dialogues = Dialogues.load(made / "data")
    for dialogue, turn, text in gold.select("dialogue", "turn", "text").iter_rows():
        assert dialogues.all[dialogue].turns[turn].text == text


def test_turns_are_compared_with_several_foreign_responses(table):
    foreign = table.filter(kind="corrupted:foreign")
    assert len(foreign.filter(split="train")) > 2 * TRAIN_TURNS
    assert len(foreign.filter(split="valid")) > 2 * VALID_TURNS
    assert len(foreign.unique(["dialogue", "turn", "text"])) == len(foreign)
    gold = table.filter(kind="gold").select("dialogue", "turn", gold="text")
    assert not foreign.join(gold, on=["dialogue", "turn"]).filter(text=pl.col("gold")).height


def test_every_judge_judges_what_it_did_not_learn_from(table):
    def nulls(split, *judges):
        part = table.filter(split=split).select(name for one in judges for name in columns(one))
        return set(part.null_count().row(0))

    assert nulls("train", "unseen") == {len(table.filter(split="train"))}
    assert nulls("valid", "unseen") == nulls("valid", "rules", "judge") == {0}
    assert nulls("train", "rules", "judge") == {0}


def test_answers_are_kept_in_the_scratch_folder_and_asked_for_once(made, table):
    said = table.filter(pl.col("text").str.strip_chars() != "")
    answers = read_jsonl(made / "scratch/answers.jsonl")
    assert 0 < len(answers) <= len(said)
    assert (made / "judged.parquet").read_bytes() == (made / "again.parquet").read_bytes()
    assert not list(made.glob("*.jsonl"))


@pytest.mark.parametrize("how", SPOILT)
def test_no_line_of_the_test_split_is_read(made, table, tmp_path, how):
    paths = write_dialogues(tmp_path, 40)
    spoil_test(paths, how)
    changed = tmp_path / "data/turns.parquet"
    assert changed.read_bytes() != (made / "data/turns.parquet").read_bytes()
    expected = tmp_path / "expected.parquet"
    save_judged(expected, table.drop(columns("judge")))
    assert judge(made, paths, tmp_path).read_bytes() == expected.read_bytes()


def test_damaged_tables_are_one_line(tmp_path):
    path = tmp_path / "judged.parquet"
    with pytest.raises(UserError, match=r"no such file; make it with .*judge"):
        load_judged(path)
    rows = [(0, turn, "train", "gold", "Have you seen <movie>?") for turn in range(50)]
    scores = {name: pl.lit(0.5, pl.Float32) for one in ("rules", "unseen") for name in columns(one)}
    table = pl.DataFrame(rows, schema=KEYS, orient="row").with_columns(**scores)
    save_judged(path, table)
    assert load_judged(path).equals(table)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        load_judged(path)
    for wrong, message in (
        (table.drop("kind"), "expected column 'kind'"),
        (table.drop("rules_empathy"), "expected column 'rules_empathy'"),
        (table.with_columns(rules_overall=pl.lit(1.5, pl.Float32)), "no number in \\[0, 1\\]"),
        (table.with_columns(rules_overall=pl.lit(math.nan, pl.Float32)), "no number in"),
        (table.drop(*columns("rules"), *columns("unseen")), "no column of a judge"),
    ):
        wrong.write_parquet(path)
        with pytest.raises(UserError, match=message):
            load_judged(path)
    path.write_text("no parquet")
    with pytest.raises(UserError, match="not a whole parquet file"):
        load_judged(path)
