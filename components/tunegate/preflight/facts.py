"""Whether completions look like facts to be learned by heart, told by their words alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Fewer completions say nothing.
ENOUGH = 50

#: A fact is told in at most so many words.
SHORT_WORDS = 60

#: Of the words of a fact, so many are names or numbers, and so many names.
DENSE, NAMED = 0.3, 0.12

#: In so many completions there is a number or a date.
NUMBERED = 0.3

#: German writes every noun like a name. It is told by its articles: from this share of the words on, nothing is said.
_GERMAN, _GERMAN_SHARE = (
    frozenset({"der", "die", "das", "den", "dem", "des", "und", "ist", "nicht", "ein", "eine"}),
    0.06,
)

#: Two completions that share more than this of their names and numbers (Jaccard, on average) are one form, filled in.
ALIKE = 0.4

_WORD = re.compile(r"[^\W_]+(?:['’.,-][^\W_]+)*")
_SENTENCE_END = '.!?:;•*-\n"“('
_CODE = ("{", "[", "<", "```")


def fact_share(completions: Sequence[str]) -> float:
    """Which share of the completions are short statements full of names and numbers, none like another.

    Tool calls and code are no prose, long answers explain, chat and arithmetic hold few names, labels repeat.

    Args:
        completions: a sample of the answers, or texts, that a model shall learn.

    Returns:
        The share, or 0 where the completions are few, repeat each other, hold hardly any number, or are in German.
    """
    if len(completions) < ENOUGH or _capitalises_nouns(completions):
        return 0.0
    facts = [told for text in completions if (told := _fact(text))]
    numbered = sum(any(word[0].isdigit() for word in told) for told in facts)
    if not facts or numbered < NUMBERED * len(completions) or _likeness(facts) > ALIKE:
        return 0.0
    return len(facts) / len(completions)


def _capitalises_nouns(completions: Sequence[str]) -> bool:
    words = [match.group().casefold() for text in completions for match in _WORD.finditer(text)]
    return sum(word in _GERMAN for word in words) > _GERMAN_SHARE * len(words)


def _likeness(facts: Sequence[Sequence[str]]) -> float:
    """How much of their names and numbers two facts share, averaged over neighbours and over pairs far apart."""
    said = [set(told) for told in facts]
    pairs = [
        (one, other)
        for shift in (1, len(said) // 2)
        for one, other in zip(said, said[shift:] + said[:shift], strict=True)
    ]
    return sum(len(one & other) / len(one | other) for one, other in pairs) / len(pairs)


def _fact(text: str) -> list[str]:
    """The names and numbers of a short dense statement; none for any other text."""
    if any(text.lstrip().startswith(mark) for mark in _CODE):
        return []
    found = list(_WORD.finditer(text))
    if not found or len(found) > SHORT_WORDS:
        return []
    numbers = [match.group() for match in found if match.group()[0].isdigit()]
    names = [match.group() for index, match in enumerate(found) if _is_name(text, found, index)]
    dense = len(names) + len(numbers) >= DENSE * len(found) and len(names) >= NAMED * len(found)
    return names + numbers if names and dense else []


def _is_name(text: str, found: Sequence[re.Match[str]], index: int) -> bool:
    """A capitalised word; where a sentence begins, only one that another capitalised word follows."""
    word = found[index].group()
    if not word[0].isupper() or len(word) == 1:
        return False
    before = text[: found[index].start()].rstrip(" \t")
    if before and before[-1] not in _SENTENCE_END:
        return True
    following = found[index + 1].group() if index + 1 < len(found) else ""
    return following[:1].isupper() and len(following) > 1
