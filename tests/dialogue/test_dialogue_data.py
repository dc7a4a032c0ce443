"""Raw dialogues one at a time, films and their categories, and the tables as others read them."""

import json

import polars as pl
import pytest

from shielded_recrl.dialogue.corpus import films
from shielded_recrl.dialogue.corpus.dialogues import (
    SCHEMAS,
    SLOT,
    Dialogue,
    Dialogues,
    Target,
    Turn,
    targets,
)
from shielded_recrl.dialogue.corpus.films import Catalogue, Film, Genres, film, key
from shielded_recrl.dialogue.corpus.language import shares
from shielded_recrl.dialogue.corpus.quarantine import Damaged, Quarantine
from shielded_recrl.dialogue.corpus.redial import MAX_LINE, Answer, Said, clean, parse
from shielded_recrl.dialogue.settings import DialoguePrepareSettings
from shielded_recrl.errors import UserError
from shielded_recrl.files import SEAL, sealed

BOUNDS = DialoguePrepareSettings()
YES, NO = {"suggested": 1, "seen": 1, "liked": 1}, {"suggested": 1, "seen": 0, "liked": 0}
# ids of films of the catalogue; 30 is only in the dialogue's own list.
KNOWN = {"10", "20"}


def raw(**changes) -> dict:
    row = {
        "conversationId": "7",
        "initiatorWorkerId": 1,
        "respondentWorkerId": 2,
        "movieMentions": {"10": "Heat (1995)", "20": None, "30": "Alien  (1979)"},
        "initiatorQuestions": {"10": YES},
        "respondentQuestions": {"10": NO, "30": NO},
        "messages": [
            said(1, "Hi,   I loved @10"),
            said(1, "and @20."),
            said(2, "Then watch @30!"),
            said(1, "Rock &amp; roll, thank you"),
        ],
    } | changes
    return {name: value for name, value in row.items() if value is not ...}


def said(worker, text) -> dict:
    return {"senderWorkerId": worker, "text": text, "timeOffset": 0, "messageId": 5}


def read(**changes):
    return parse(json.dumps(raw(**changes)).encode(), KNOWN, BOUNDS)


class TestADialogue:
    def test_whole(self):
        found = read()
        assert found.id == "7"
        assert found.turns == (
            Said("seeker", "Hi, I loved <movie> and <movie>.", ("10", "20")),
            Said("recommender", "Then watch <movie>!", ("30",)),
            Said("seeker", "Rock & roll, thank you", ()),
        )
        assert found.names == {"10": "Heat (1995)", "30": "Alien (1979)"}

    def test_the_seekers_answers_count_first(self):
        assert read().answers == {"10": Answer(1, 1, 1), "30": Answer(1, 0, 0)}

    def test_lists_stand_for_nothing(self):
        talk = [said(1, "Hi there"), said(2, "Have you seen @10 ?")]
        empty = {"movieMentions": [], "initiatorQuestions": [], "respondentQuestions": []}
        found = read(messages=talk, **empty)
        assert (found.names, found.answers) == ({}, {})
        assert found.turns[1].movies == ("10",)

    def test_other_keys_are_passed_over(self):
        talk = [{"senderWorkerId": w, "text": t, "entity": [], "turn_id": 0} for w, t in TALK]
        assert read(messages=talk).turns[0].text == "Hi there"

    @pytest.mark.parametrize("spelled", ["<movie>", "&lt;movie&gt;", "<MOVIE>", "<<movie>>"])
    def test_a_spelled_slot_names_no_film(self, spelled):
        found = read(messages=[said(1, f"Hi {spelled} @10"), said(2, "Hello")])
        assert found.turns[0].text.count(SLOT) == 1
        assert found.turns[0].movies == ("10",)
        assert SLOT not in clean(spelled)

    @pytest.mark.parametrize(
        ("reason", "changes"),
        [
            ("missing key", {"messages": ...}),
            ("missing key", {"movieMentions": ...}),
            ("missing key", {"movieMentions": None}),
            ("missing key", {"respondentQuestions": ...}),
            ("missing key", {"initiatorWorkerId": ...}),
            ("missing key", {"messages": [{"text": "Hi"}]}),
            ("missing key", {"messages": [{"senderWorkerId": 1, "text": None}]}),
            ("missing key", {"initiatorQuestions": {"10": {"seen": 1, "liked": 1}}}),
            ("wrong type", {"messages": {"0": "Hi"}}),
            ("wrong type", {"messages": ["Hi"]}),
            ("wrong type", {"messages": [said(1, 3)]}),
            ("wrong type", {"messages": [said([1], "Hi")]}),
            ("wrong type", {"initiatorWorkerId": True}),
            ("wrong type", {"movieMentions": ["10"]}),
            ("wrong type", {"initiatorQuestions": {"10": 1}}),
            ("answer out of range", {"initiatorQuestions": {"10": YES | {"liked": 3}}}),
            ("answer out of range", {"initiatorQuestions": {"10": YES | {"seen": "yes"}}}),
            ("answer out of range", {"initiatorQuestions": {"10": YES | {"seen": True}}}),
            ("no messages", {"messages": []}),
            ("empty turn", {"messages": [said(1, "Hi"), said(2, " \n\u0000"), said(1, "?")]}),
            ("one speaker only", {"messages": [said(1, "Hi"), said(1, "Nobody?")]}),
            ("one speaker only", {"respondentWorkerId": "1"}),
            ("unknown speaker", {"messages": [said(1, "Hi"), said(3, "Me too")]}),
            ("unknown film", {"messages": [said(1, "Hi"), said(2, "See @99")]}),
            ("unknown film", {"movieMentions": {"30": None}}),
            ("unknown film", {"initiatorQuestions": {"99": YES}}),
            ("too long", {"messages": [said(1 + n % 2, "Hi") for n in range(1001)]}),
            ("too long", {"messages": [said(1, "Hi " * 20_000), said(2, "Hi")]}),
            ("half a character", {"messages": [said(1, "\ud83d"), said(2, "Hi")]}),
            ("half a character", {"movieMentions": {"\udc00": "Heat"}}),
            ("line too long", {"comment": "x" * MAX_LINE}),
            (
                "not English",
                {
                    "messages": [
                        said(1, "Hola, busco una pelicula de accion con un buen final"),
                        said(2, "Has visto @10? Es muy buena"),
                    ]
                },
            ),
            ("not English", {"messages": [said(1, "Привет"), said(2, "Hi")]}),
        ],
    )
    def test_damaged(self, reason, changes):
        with pytest.raises(Damaged) as found:
            read(**changes)
        assert found.value.reason == reason
        assert found.value.conversation == ("7" if reason not in BEFORE_ITS_ID else None)

    @pytest.mark.parametrize(
        ("reason", "line"),
        [
            ("broken JSON", b'{"conversationId": '),
            ("broken JSON", b"[1, 2]"),
            ("broken JSON", b"[" * 200_000),
            ("broken JSON", b'{"conversationId": ' + b"1" * 5000 + b"}"),
            ("not UTF-8", b'{"conversationId": "\xff"}'),
            ("missing key", b"{}"),
        ],
    )
    def test_no_dialogue(self, reason, line):
        with pytest.raises(Damaged) as found:
            parse(line, KNOWN, BOUNDS)
        assert found.value.reason == reason


TALK = ((1, "Hi there"), (2, "Hello"), (1, "Do you know @10"))
BEFORE_ITS_ID = ("half a character", "line too long")


@pytest.mark.parametrize(
    "texts",
    [
        ["Bonjour, je cherche un bon film pour ce soir", "Avez-vous vu celui-la ? C'est super"],
        [
            "Hallo, ich suche einen guten Film, was war dein Liebling?",
            "So einen will ich dir sagen",
        ],
        ["Hallo, ik zoek een goede film", "Wat is er in de bioscoop? Hij was heel goed"],
        ["Ciao, cerco un bel film da vedere con la famiglia", "Hai visto questo? e divertente"],
        ["namaste, mujhe ek achhi movie chahiye", "aapne yeh movie dekhi hai? bahut achhi hai"],
        ["hai, saya mencari film yang bagus untuk malam ini", "sudah nonton film ini? lucu"],
    ],
)
def test_other_languages_in_ascii_are_far_from_english(texts):
    assert shares(texts).english < BOUNDS.min_english - 0.05


# Each has as many common English words as a real English dialogue may have.
MIXED = {
    "one side each": [
        "Hi, I am looking for a good thriller with a twist, something like <movie>",
        "namaste, aapne <movie> dekhi hai kya? bahut achhi hai",
        "No, I have not seen it. Is it a new movie? I think that I would like it",
        "haan, ek ladki ke baare mein hai jo kho jaati hai",
    ],
    "half and half": [
        "Hello bhai, kya haal hai? I am looking for a romantic movie",
        "mujhe lagta hai you should watch <movie> , it is the best love story",
        "I have seen that one, bahut achhi thi. Something like that chahiye",
        "then <movie> dekho, Tom Hanks is great usme",
        "ok I will watch that with my wife, thanks yaar",
    ],
    "a few words": [
        "hi, I am good yaar. I want to watch a good comedy movie tonight",
        "have you seen <movie> ? bahut funny hai",
        "no not yet, kaisi hai? who is in it?",
        "it is really good, aap ko pasand aayegi",
        "ok thanks, I will watch it",
    ],
    "Spanish": [
        "Hola, I am looking for una película de acción",
        "have you seen <movie> ? es muy buena",
        "no, pero I like that actor, what else is there?",
        "you should watch <movie> con tu familia, it is very funny",
        "gracias, I will watch it",
    ],
}


@pytest.mark.parametrize("kind", MIXED)
def test_english_mixed_with_another_language_is_told_by_that_languages_words(kind):
    found = shares(MIXED[kind])
    assert found.english > BOUNDS.min_english
    assert found.foreign > BOUNDS.max_foreign + 0.02
    talk = [said(1 + place % 2, text) for place, text in enumerate(MIXED[kind])]
    with pytest.raises(Damaged, match="not English") as damage:
        read(messages=talk)
    assert "of its words are of another language" in damage.value.detail


@pytest.mark.parametrize(
    "texts",
    [
        [
            "Have you seen any Bollywood film? I really liked Kabhi Khushi Kabhie Gham",
            "Yes! Kuch Kuch Hota Hai is my favorite. Is Shah Rukh Khan in that one, too?",
        ],
        [
            "I saw Como agua para chocolate and loved it, what else is there?",
            "You will like El laberinto del fauno, it is by Guillermo del Toro. Gracias, bye!",
        ],
        ["I loved La La Land", "Me too. I also like Les Miserables and Das Boot, it's about war"],
        ["Hi", "Hola", "gracias"],
    ],
)
def test_foreign_titles_typed_out_are_english_still(texts):
    found = shares(texts)
    assert found.english > BOUNDS.min_english
    assert found.foreign <= BOUNDS.max_foreign


class TestFilms:
    def test_one_film_under_several_ids_is_one_item(self):
        catalogue = Catalogue()
        catalogue.add(
            {"5": "Heat  (1995)", "6": "The Fast & the Furious (2001)", "7": "HEAT (1995)"}
        )
        catalogue.add({"5": "Another (1990)", "8": "Heat", "9": "Fast and the Furious, The (2001)"})
        assert catalogue.item == {"5": 1, "6": 2, "7": 1, "8": 3, "9": 2}
        table = catalogue.table(Genres(), {1: 4})
        assert table.schema == SCHEMAS["items"]
        assert table.rows()[0] == (1, ["5", "7"], "Heat", 1995, [], 4)
        assert table.rows()[2] == (3, ["8"], "Heat", None, [], 0)

    def test_titles_of_signs_and_of_other_scripts_stay_apart(self):
        assert (
            len({key(film(name)) for name in ("$ (1971)", "!!! (1971)", "七人の侍", "羅生門")}) == 4
        )

    def test_categories_of_the_year_or_the_next(self):
        genres = Genres()
        genres.add(Film("Titanic", 1997), ("Drama",))
        genres.add(Film("Titanic", 1953), ("Action",))
        genres.add(Film("Zootopia", 2016), ("Comedy",))
        found = [Film("Titanic", 1997), Film("titanic", 1952), Film("Titanic", 2012)]
        assert list(map(genres.of, found)) == [("Drama",), ("Action",), ()]
        assert genres.of(Film("Titanic", None)) == ()
        assert genres.of(Film("Zootopia", None)) == ("Comedy",)

    def test_movielens_spells_otherwise(self, tmp_path):
        path = tmp_path / "movies.csv"
        path.write_text(
            "movieId,title,genres\n"
            '1,"Matrix, The (1999)",Action|Sci-Fi\n'
            "2,Seven (a.k.a. Se7en) (1995),Mystery\n"
            "3,Nothing (2000),(no genres listed)\n"
            "\n"
            "4,too,many,fields\n"
        )
        quarantine = Quarantine()
        genres, rows = films.read_genres(path, "movies.csv", quarantine)
        assert rows == 4
        assert genres.of(film("The Matrix (1999)")) == ("Action", "Sci-Fi")
        assert genres.of(film("Se7en (1995)")) == genres.of(film("Seven (1995)")) == ("Mystery",)
        assert genres.of(film("Nothing (2000)")) == ()
        assert [(row["row"], row["reason"]) for row in quarantine.rows] == [(6, "too many fields")]

    def test_the_first_name_of_an_id_counts(self, tmp_path):
        path = tmp_path / "movies_with_mentions.csv"
        path.write_bytes(
            b"\xef\xbb\xbfmovieId,movieName,nbMentions\r\n"
            b'10,"O Brother, Where Art Thou%3F (2000)",3\r\n10,Other,1\r\nx,Bad id,1\r\n11,,1\r\n'
        )
        quarantine = Quarantine()
        names, rows = films.read_names(path, "movies", quarantine)
        assert (rows, list(names)) == (4, ["10"])
        assert film(names["10"]) == ("O Brother, Where Art Thou?", 2000)
        assert quarantine.counts["movies"] == {"no film id or no name": 2}

    def test_another_header(self, tmp_path):
        path = tmp_path / "movies.csv"
        path.write_text("id,name\n1,Heat\n")
        with pytest.raises(UserError, match="movieId"):
            films.read_names(path, "movies.csv", Quarantine())


TABLES = {
    "dialogues": [(0, "a", "train"), (1, "b", "test")],
    "turns": [
        (0, 0, "recommender", "<movie>?"),
        (0, 1, "seeker", "I like <movie>"),
        (0, 2, "recommender", "<movie>, <movie> or <movie>"),
        (1, 0, "seeker", "Hi"),
        (1, 1, "recommender", "Hi"),
    ],
    "mentions": [
        (0, 2, 2, 3, True),
        (0, 0, 0, 1, False),
        (0, 1, 0, 2, False),
        (0, 2, 0, 3, False),
        (0, 2, 1, 1, True),
    ],
    "feedback": [(0, 1, True, 1, 1), (0, 3, True, 0, 0)],
    "items": [
        (1, ["10"], "Heat", 1995, ["Crime"], 2),
        (2, ["20", "21"], "Alien", None, [], 1),
        (3, ["30"], "Up", 2009, [], 2),
    ],
}


@pytest.fixture
def folder(tmp_path):
    for name, rows in TABLES.items():
        with sealed(tmp_path / f"{name}.parquet") as partial:
            table = pl.DataFrame(rows, schema=SCHEMAS[name], orient="row")
            table.write_parquet(partial, metadata=SEAL)
    return tmp_path


class TestLoading:
    def test_dialogues(self, folder):
        found = Dialogues.load(folder)
        turns = (
            Turn("recommender", "<movie>?", (1,)),
            Turn("seeker", "I like <movie>", (2,)),
            Turn("recommender", "<movie>, <movie> or <movie>", (3, 1, 3)),
        )
        assert found.all[0] == Dialogue(0, "train", turns, {1: 1, 3: 0})
        assert [dialogue.index for dialogue in found.split("test")] == [1]
        assert found.n_items == 3
        assert [found.title(item) for item in (1, 2)] == ["Heat (1995)", "Alien"]

    def test_targets_have_a_context(self, folder):
        assert targets(Dialogues.load(folder).all) == [
            Target(0, 2, 3, False, 0),
            Target(0, 2, 1, True, 1),
            Target(0, 2, 3, True, 0),
        ]

    def test_targets_repeat_where_the_table_says_so(self, folder):
        mentions = pl.read_parquet(folder / "mentions.parquet").sort("turn", "position")
        said = mentions.filter(pl.col("turn") == 2)["is_repeat"].to_list()
        assert [target.is_repeat for target in targets(Dialogues.load(folder).all)] == said

    def test_neither_padding_nor_what_is_not_there_has_a_title(self, folder):
        found = Dialogues.load(folder)
        for item in (0, 4):
            with pytest.raises(ValueError, match="not within 1 and 3"):
                found.title(item)
        with pytest.raises(ValueError, match="'dev' is none of train, valid, test"):
            found.split("dev")

    def test_a_missing_table(self, folder):
        (folder / "turns.parquet").unlink()
        with pytest.raises(
            UserError, match=r"turns\.parquet: no such file; make it with .*prepare"
        ):
            Dialogues.load(folder)

    def test_a_bit_has_flipped(self, folder):
        path = folder / "turns.parquet"
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"turns\.parquet: damaged"):
            Dialogues.load(folder)

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet"])
    def test_no_parquet(self, folder, content):
        (folder / "items.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"items\.parquet: not a whole parquet"):
            Dialogues.load(folder)

    def test_another_table(self, folder):
        pl.DataFrame({"item": [1]}).write_parquet(folder / "items.parquet")
        with pytest.raises(
            UserError, match=r"items\.parquet: expected column 'item' of type Int32"
        ):
            Dialogues.load(folder)
