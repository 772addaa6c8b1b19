"""config.model.grounding "seg_token": a <seg> token behind every phrase that has a mask, in place of tagged words.

The baseline that PLUM is compared with (LISA, arXiv 2308.00692): the answer is "... parts: wheel<seg>, and cab<seg>.", and the
last hidden state of a <seg> goes through the projector to the mask decoder. There is no span tagger; everything else is the
same. A span is then a phrase with the <seg> behind it.
"""

import numpy as np

BEGIN, INSIDE = 1, 2
PUNCTUATION = ",.:;!?"


def label_phrases(is_seg, offsets, text):
    """Which words each <seg> of an answer is about: those since the last punctuation or <seg>, without a leading "and".

    A model with <seg> tokens does not say this itself; masks are scored by name, so it has to be read from the text. A <seg>
    without a word before it, such as the second of two, is about nothing.

    Args:
      is_seg: bool[T]. offsets: [(start, end)] characters of each token, empty ones for <seg>. text: the answer.

    Returns:
      int8[T] BIO labels; the last token of every span is its <seg>.
    """
    labels, first, floor = np.zeros(len(is_seg), np.int8), 0, 0
    for t in np.flatnonzero(is_seg).tolist():
        end = offsets[t - 1][1] if t else 0
        start, end = phrase(text, floor, end)
        words = [i for i in range(first, t) if offsets[i][0] < end and offsets[i][1] > start]
        if words:
            labels[words[0] : t + 1] = INSIDE
            labels[words[0]] = BEGIN
            floor = end
        first = t + 1
    return labels


def phrase(text, floor, end):
    """-> (start, end) of the phrase that ends before character `end`, and begins at `floor` or later."""
    said = text[floor:end].rstrip(f"{PUNCTUATION} ")
    rest = said[max(said.rfind(mark) for mark in PUNCTUATION) + 1 :].lstrip()
    return floor + len(said) - len(rest.removeprefix("and ")), floor + len(said)


def as_spans(readout, is_seg, said):
    """Readout of R answers with <seg> tokens -> the same in the form that a tagger gives it: labels of phrases, and at every
    token of a span what the <seg> at its end has, so that a mean over the span is just that.

    Args:
      readout: greedy.Readout of NumPy arrays [R, T, ...]. is_seg: bool[R, T]. said: [(text, offsets of its tokens)].
    """
    labels, confidence, features = (np.array(field) for field in readout)
    for row, (text, offsets) in enumerate(said):
        labels[row] = 0
        labels[row, : len(offsets)] = label_phrases(is_seg[row, : len(offsets)], offsets, text)
        at = 0
        for t in reversed(range(len(offsets))):
            at = t if is_seg[row, t] else at
            if labels[row, t]:
                confidence[row, t], features[row, t] = confidence[row, at], features[row, at]
    return readout._replace(labels=labels, confidence=confidence, features=features)
