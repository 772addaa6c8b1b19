"""Every place of the part names in a row of tokens: the spans that the published evaluation scores (D 4.1.5).

Its collation searches the text from the first answer on for each name, the longest first, and marks all places, not the first
one only: also those inside the object's name ("wheel" in "wheel loader"), in earlier answers and in a second question. Masks
are then paired with the parts by position, so that each such place shifts all pairs behind it. Ours are known by construction.
"""

import re

import numpy as np

ASSISTANT = "ASSISTANT:"


def places(text, names):
    """[(start, end, name)] in text order. A place begins after white space and does not end inside a word; none begins where
    a longer name has been found. What is behind the first "ASSISTANT:" counts."""
    start = text.find(ASSISTANT)
    if start < 0:
        return []
    taken, found = np.zeros(len(text), bool), []
    for name in sorted(dict.fromkeys(names), key=len, reverse=True):
        for match in re.compile(rf"(?<=\s){re.escape(name)}(?![^\W_])").finditer(text, start + len(ASSISTANT)):
            if not taken[match.start()]:
                taken[match.start() : match.end()] = True
                found.append((*match.span(), name))
    return sorted(found)


def token_ranges(encoded, names):
    """[((start, end) tokens, name)] of a conversation.Encoded; a space before a place belongs to its first token."""
    found = []
    for start, end, name in places(encoded.text, names):
        inside = np.flatnonzero((encoded.offsets[:, 0] < end) & (encoded.offsets[:, 1] > start - 1))
        found.append(((int(inside[0]), int(inside[-1]) + 1), name))
    return found
