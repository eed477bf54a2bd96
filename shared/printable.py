"""Strangers' text, made fit for a terminal and for one line of a log."""

MARK = "\N{REPLACEMENT CHARACTER}"
LONGEST = 200
"""Characters of a text that are shown unless somebody asks for more."""


def printable(text: str, longest: int = LONGEST) -> str:
    """The text on one line: control characters and those that turn the direction of writing become a mark."""
    return "".join(each if each.isprintable() else MARK for each in text[:longest])
