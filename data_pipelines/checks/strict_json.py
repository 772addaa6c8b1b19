"""JSON in which a key stands twice: Python's reader keeps the last value without a word."""

import json


class StrictDecoder(json.JSONDecoder):
    """A decoder that remembers the keys that stood twice in one object since `repeated` was called last."""

    def __init__(self):
        self._repeated = set()
        super().__init__(object_pairs_hook=self._build)

    def _build(self, pairs):
        built = dict(pairs)
        if len(built) < len(pairs):
            seen = set()
            self._repeated.update(key for key, _ in pairs if key in seen or seen.add(key))
        return built

    def repeated(self):
        """Sorted keys; forgets them."""
        found, self._repeated = sorted(self._repeated), set()
        return found
