"""The writing system of a text, from the Unicode names of its letters.

It tells Japanese from English and Russian, not English from German: both are Latin.
"""

import unicodedata
from collections import Counter

SCRIPTS = (
    "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "HANGUL", "HIRAGANA", "KATAKANA", "CJK", "DEVANAGARI", "THAI",
)  # fmt: skip

MIN_KANA_SHARE = 0.1
"""Kana among kana and Han characters from which a text is Japanese; Japanese prose has more than 40 %."""

SHORT_HAN_LETTERS = 16
"""A Japanese answer of fewer letters may have no kana at all: a name, a date."""


def script_shares(text: str) -> dict[str, float]:
    """Share of each script among the letters, largest first; they sum to 1, or nothing is there."""
    letters = Counter(_script(letter) for letter in text if letter.isalpha())
    total = letters.total()
    return {script: count / total for script, count in letters.most_common()}


def writing_of(text: str) -> str | None:
    """The dominant writing: "LATIN", "JAPANESE", "HAN", "CYRILLIC", ...; None for a text without letters."""
    shares = script_shares(text)
    kana = shares.pop("HIRAGANA", 0.0) + shares.pop("KATAKANA", 0.0)
    han = shares.pop("CJK", 0.0)
    if kana + han:
        shares["JAPANESE" if kana >= MIN_KANA_SHARE * (kana + han) else "HAN"] = kana + han
    return max(shares, key=lambda script: shares[script], default=None)


def same_writing(expected: str, answer: str) -> bool:
    """Whether an answer is written as another text is; a text without letters agrees with all."""
    wanted, found = writing_of(expected), writing_of(answer)
    if wanted is None or found is None or wanted == found:
        return True
    short = sum(map(str.isalpha, answer if found == "HAN" else expected)) < SHORT_HAN_LETTERS
    return {wanted, found} == {"HAN", "JAPANESE"} and short


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "OTHER").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ")
    return next((script for script in SCRIPTS if name.startswith(script)), "OTHER")
