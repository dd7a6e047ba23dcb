"""The characters of a request's texts: what is written alike is the same, and all can be seen.

Two texts that look the same are other tokens if one has a no-break space, a soft hyphen or another
normal form of Unicode, so that an edit of one changes nothing about the other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from fedit_app.facts.joint import SPACELESS, script
from fedit_app.support.errors import FedEditError

_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile("[\u00a0\u2007\u202f]")
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202c\u2060-\u2064\u2066-\u206f\ufeff]"
)
_JOINERS = re.compile("[\u200c\u200d]")
_ZERO_WIDTH_SPACE = "\u200b"

# Scripts in which a joiner makes no difference to the reader; elsewhere, and in emoji, it does.
_UNJOINED = frozenset(
    "LATIN GREEK CYRILLIC ARMENIAN GEORGIAN HEBREW HANGUL CJK HIRAGANA KATAKANA FULLWIDTH "
    "HALFWIDTH BOPOMOFO COMBINING".split()
)
_NO_WORD_SPACES = frozenset("THAI LAO KHMER MYANMAR".split())

_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f")
_KINDS = {"Cc": "a control character", "Cs": "half of a surrogate pair", "Co": "for private use"}
_REFUSED = {
    "\u202d": "which hides the order of the text",
    "\u202e": "which hides the order of the text",
    "\u3164": "which cannot be seen",
    "\uffa0": "which cannot be seen",
    "\ufff9": "a mark of another program",
    "\ufffa": "a mark of another program",
    "\ufffb": "a mark of another program",
    "\ufffc": "in place of an object",
    "\ufffd": "in place of one that could not be read",
}

# Letters of other scripts that look like Latin ones.
_LOOK_ALIKES = frozenset(
    "АВЕЅІЈКМНОРСТУХԌԚԜавеѕіјкорсухһԁԛԝӏ"  # noqa: RUF001
    "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧανορυχι"  # noqa: RUF001
)
_WORD = re.compile(r"\w+")


def clean(text: str, changes: list[str] | None = None) -> str:
    """A text with plain spaces and line breaks, without invisible characters, in NFC.

    A joiner stays where it changes what is seen: in emoji, in Arabic and in Indian scripts. A
    zero-width space stays between words of scripts without spaces.

    Args:
        text: the text.
        changes: is given the kind of each change, such as "no-break space".

    Raises:
        FedEditError: it holds a character that means nothing in a text, such as a control
            character; names its code point and quotes nothing.
    """
    if text.isascii() and text.isprintable():
        return text
    said = [] if changes is None else changes
    text = _replaced(_BREAKS, "\n", "line break", text, said)
    text = _replaced(_SPACES, " ", "no-break space", text, said)
    text = _without_hidden(text, said)
    _refuse(text)
    composed = unicodedata.normalize("NFC", text)
    if composed != text:
        said.append("other normal form")
    return composed


def _replaced(pattern: re.Pattern[str], new: str, kind: str, text: str, said: list[str]) -> str:
    text, count = pattern.subn(new, text)
    said += [kind] * count
    return text


def _without_hidden(text: str, said: list[str]) -> str:
    """The text without characters that change nothing that a reader sees."""
    kept = [
        char
        for at, char in enumerate(text)
        if not _HIDDEN.match(char) and not _JOINERS.match(char) or _meant(text, at)
    ]
    said += ["invisible character"] * (len(text) - len(kept))
    return "".join(kept)


def _meant(text: str, at: int) -> bool:
    """Whether an invisible character does something where it stands."""
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if not before or not after:
        return False
    if text[at] == _ZERO_WIDTH_SPACE:
        return {script(before), script(after)} <= _NO_WORD_SPACES
    if not _JOINERS.match(text[at]):
        return False
    kind = unicodedata.category(before)
    letter = kind[0] in "LM" and not (kind == "Mn" and script(before) == "VARIATION")
    if letter:
        return script(before) not in _UNJOINED
    return text[at] == "\u200d" and unicodedata.category(after) in ("So", "Sk")


def _refuse(text: str) -> None:
    for char in _FLAG.sub("", text):
        kind = unicodedata.category(char)
        why = _REFUSED.get(char) or _KINDS.get(kind)
        if kind == "Cn" and (ord(char) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(char) <= 0xFDEF):
            why = "which is no character"
        if 0xE0000 <= ord(char) <= 0xE007F:
            why = "which cannot be seen"
        if why and char not in "\n\t":
            raise FedEditError(f"has {code_point(char)}, {why}; write it without")


def places_of(words: str, text: str) -> list[int]:
    """Where words stand in a text, but not inside another word: where each place begins."""
    found = [match.start() for match in re.finditer(re.escape(words), text)]
    ends = ((at, at + len(words)) for at in found)
    return [
        at
        for at, end in ends
        if not (_one_word(text[at - 1 : at + 1]) or _one_word(text[end - 1 : end + 1]))
    ]


def _one_word(pair: str) -> bool:
    """Whether two characters are inside a word, in a script that separates words by spaces."""
    scripts = {script(char) for char in pair}
    return len(pair) == 2 and pair.isalnum() and not scripts & (SPACELESS | {"HANGUL"})


def look_alikes(text: str) -> Iterator[str]:
    """The Cyrillic and Greek letters that stand in a word with Latin ones and look like these."""
    if text.isascii():
        return
    for word in _WORD.findall(text):
        if any(script(char) == "LATIN" for char in word):
            yield from (char for char in word if char in _LOOK_ALIKES)


def code_point(char: str) -> str:
    """A character as U+XXXX."""
    return f"U+{ord(char):04X}"
