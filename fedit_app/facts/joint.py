"""What stands between a prompt and its target: a space, or nothing where the script has none."""

from __future__ import annotations

import re
import unicodedata
from typing import NewType

Continuation = NewType("Continuation", str)
"""A target with what joins it to its prompt: what is appended to the prompt as it is."""

SPACELESS = frozenset(
    "CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA HALFWIDTH FULLWIDTH BOPOMOFO IDEOGRAPHIC YI "
    "THAI LAO KHMER MYANMAR TIBETAN".split()
)
"""Scripts without spaces between words, as `script` names them."""

# After these even a word of another script follows without a space.
_EAST_ASIAN = SPACELESS - frozenset("THAI LAO KHMER MYANMAR TIBETAN".split())

_HYPHENS = "-\u2010\u2011\u2012\u2013\u2014"
_STICKING = "/\\_@#"
_QUOTES = "\"'`\u201e\u201a"
_PUNCTUATION = re.compile(r"[,;:!?%…،؛؟。、，；：！？・]|\.(?!\w)|['’]s\b")


def joint(before: str, after: str) -> str:
    """What separates two texts in running text: one space, or nothing.

    Nothing where the first one ends in white space, an opening quote or bracket, a slash, or a
    hyphen behind a word; where the second one begins with punctuation, as in ", who", or closes a
    bracket; and within Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan, which put no
    spaces between words.

    Args:
        before: the prompt; not empty.
        after: the target; not empty.
    """
    glued = _ends_open(before, after) or _goes_on(before, after) or _spaceless(before, after)
    return "" if glued else " "


def _ends_open(before: str, after: str) -> bool:
    """Whether what follows the first text follows it without a space."""
    last, free = before[-1], len(before) == 1 or _opens(before[-2])
    category = unicodedata.category(last)
    if last.isspace() or last in _STICKING:
        return True
    if last in _QUOTES or category in ("Pi", "Pf"):
        return free  # a quote behind a word closes
    if last in _HYPHENS:
        return not free  # a dash behind a space is one between words
    return category == "Ps" or (category == "Sc" and after[0].isdigit())


def _opens(char: str) -> bool:
    """Whether a quote behind this character opens."""
    return char.isspace() or unicodedata.category(char) in ("Ps", "Pi", "Pd")


def _goes_on(before: str, after: str) -> bool:
    """Whether the second text begins with what stands close to the word before it."""
    if unicodedata.category(after[0]) == "Pe":
        brackets = (unicodedata.category(char) for char in reversed(before))
        return next((kind for kind in brackets if kind in ("Ps", "Pe")), "Pe") == "Ps"
    return bool(_PUNCTUATION.match(after))


def _spaceless(before: str, after: str) -> bool:
    """Whether the script has no space at this place."""
    last = next((char for char in reversed(before) if char.isalnum()), before[-1])
    if script(before[-1]) in _EAST_ASIAN:
        return script(after[0]) != "HANGUL"
    return script(last) in SPACELESS and script(after[0]) in SPACELESS


def script(char: str) -> str:
    """The first word of a character's Unicode name, which is that of its script in most cases.

    Such as LATIN, CJK or DIGIT; empty without a name.
    """
    return unicodedata.name(char, "").partition(" ")[0]
