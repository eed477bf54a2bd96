"""What somebody meant by a word that nobody knows."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_NAMES = 12
"""So many names are told where none is near; a list of hundred helps nobody."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is spelled most like it, whatever the case; None where none is near."""
    by_lower = {each.lower(): each for each in known}
    near = get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """What was meant, where a known word is near, and then what there is; for the end of a sentence."""
    names = list(known)
    near = nearest(word, names)
    there = f"did you mean {near}? There" if near else "there"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{there} {'is' if len(names) == 1 else 'are'} {', '.join(names[:MOST_NAMES]) or 'none'}{more}"
