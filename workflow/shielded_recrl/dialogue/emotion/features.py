"""Words and letters of texts as sparse vectors, by hashing: there is no vocabulary to keep.

In: texts. Out: which n-grams of words and which of letters each has, float32 [n, 2 * 2^bits] of ones:
words on the left, letters on the right.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shielded_recrl.dialogue.corpus.dialogues import SLOT

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Stands for whoever or whatever is named: GoEmotions masks persons, dialogues have slots for films.
NAME = "\u25a1"
NAMED = re.compile(rf"\[name\]|{re.escape(SLOT)}", re.IGNORECASE)
# Sooooo, and !!!!!!
STRETCHED = re.compile(r"(.)\1{2,}")
WORD = r"\w+(?:'\w+)?|[^\w\s]+"
WORDS, LETTERS = (1, 2), (2, 5)


def plain(text: str) -> str:
    """A text in small letters, with one sign for all names.

    >>> plain("I LOOOOVE <movie>!!!!! Don&#39;t you?")
    "i looove \u25a1 !!! don't you?"
    """
    text = NAMED.sub(f" {NAME} ", html.unescape(text)).lower().replace("\u2019", "'")
    return " ".join(STRETCHED.sub(r"\1\1\1", text).split())


def has_words(text: str) -> bool:
    """Whether a text says more than names.

    >>> has_words("<movie> <movie>"), has_words("<movie> :)")
    (False, True)
    """
    return bool(plain(text).replace(NAME, "").strip())


def vectors(texts: Sequence[str], bits: int) -> csr_matrix:
    """Ones [n, 2 * 2^bits] where a text has an n-gram of words or, within words, of letters."""
    import numpy as np
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    same = {
        "preprocessor": plain,
        "n_features": 2**bits,
        "norm": None,
        "alternate_sign": False,
        "binary": True,
        "dtype": np.float32,
    }
    words = HashingVectorizer(analyzer="word", token_pattern=WORD, ngram_range=WORDS, **same)
    letters = HashingVectorizer(analyzer="char_wb", ngram_range=LETTERS, **same)
    return hstack([words.transform(texts), letters.transform(texts)], format="csr")
