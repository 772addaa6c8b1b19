"""What a check finds: errors and warnings, each with the file and the entry, so many of a kind and then their number."""

import collections

MOST = 500  # of a kind: a missing folder of images is one fault, not half a million


class Findings:
    """`error` and `warning` take the kind of fault (what is counted together), the file, the entry or None, and a text."""

    def __init__(self):
        self.counts = {"error": collections.Counter(), "warning": collections.Counter()}
        self._found = {"error": [], "warning": []}
        self._files = {}

    def error(self, kind, file, entry, text):
        self._add("error", kind, file, entry, text)

    def warning(self, kind, file, entry, text):
        self._add("warning", kind, file, entry, text)

    def _add(self, level, kind, file, entry, text):
        self._files.setdefault(file, len(self._files))
        self.counts[level][kind] += 1
        if self.counts[level][kind] <= MOST:
            self._found[level].append({"file": file, "entry": entry, "problem": printable(text)})

    def sorted(self, level):
        """[{"file", "entry", "problem"}] by file and number of the entry, the files and other entries in the order they were
        found; at the end how many of each kind were left out."""

        def place(numbered):
            number, found = numbered
            entry = found["entry"]
            return self._files[found["file"]], entry is not None, entry if isinstance(entry, int) else number

        more = [
            {"file": None, "entry": None, "problem": f"{count - MOST:,} more of this kind: {kind}"}
            for kind, count in self.counts[level].items()
            if count > MOST
        ]
        return [found for _, found in sorted(enumerate(self._found[level]), key=place)] + more


def printable(text):
    """Control characters and halves of surrogate pairs, which a file may hold and a terminal obeys, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
