"""What became of the records that were drawn: counts by data set and reason, and the first messages about bad ones."""

import collections
import dataclasses
import json

MOST_MESSAGES = 3  # that are kept of one data set and reason


@dataclasses.dataclass
class Account:
    """Adds up over rows, batches, workers and hosts with `add`.

    `counts` is {(family, data set): Counter} of: "draws"; "skipped: REASON", records that could not be read and became
    padding; "shrunk", images larger than the canvas; "conversations" and "spans" that were kept, "masks" that are targets;
    "tokens" cut off the ends; "lost conversations: REASON", "lost spans: REASON" and "lost masks: REASON".
    `messages` is {(data set, reason): the first few sentences about skipped records}.
    """

    counts: dict = dataclasses.field(default_factory=dict)
    messages: dict = dataclasses.field(default_factory=dict)

    def of(self, family, dataset):
        """The Counter of a data set."""
        return self.counts.setdefault((family, dataset), collections.Counter())

    def skip(self, family, dataset, key, reason, message):
        """One record could not be read."""
        self.of(family, dataset)[f"skipped: {reason}"] += 1
        kept = self.messages.setdefault((dataset, reason), [])
        if len(kept) < MOST_MESSAGES:
            kept.append(f"{key}: {message}")

    def add(self, other):
        """Adds another account to this one, in place."""
        for (family, dataset), counter in other.counts.items():
            self.of(family, dataset).update(counter)
        for key, messages in other.messages.items():
            kept = self.messages.setdefault(key, [])
            kept.extend(messages[: MOST_MESSAGES - len(kept)])

    def to_json(self):
        """Text that `from_json` reads: how the accounts of several hosts meet."""
        counts = [[*about, counter] for about, counter in self.counts.items()]
        return json.dumps({"counts": counts, "messages": [[*key, kept] for key, kept in self.messages.items()]})

    @classmethod
    def from_json(cls, text):
        values = json.loads(text)
        counts = {(family, dataset): collections.Counter(counter) for family, dataset, counter in values["counts"]}
        return cls(counts, {(dataset, reason): kept for dataset, reason, kept in values["messages"]})

    def total(self, what):
        """Sum over the data sets of `what`, or of everything that starts with it when it ends in a colon."""
        return sum(
            number
            for counter in self.counts.values()
            for name, number in counter.items()
            if name == what or (what.endswith(":") and name.startswith(what))
        )

    def summary(self):
        """For JSON: {"families": {family: counts}, "datasets": {data set: counts}, "messages": {"data set, reason": [...]}}."""
        families = collections.defaultdict(collections.Counter)
        for (family, _), counter in self.counts.items():
            families[family].update(counter)
        return {
            "families": {family: dict(sorted(families[family].items())) for family in sorted(families)},
            "datasets": {dataset: dict(sorted(c.items())) for (_, dataset), c in sorted(self.counts.items())},
            "messages": {f"{dataset}, {reason}": list(m) for (dataset, reason), m in sorted(self.messages.items())},
        }

    def lines(self):
        """For people: one line for each family, and the first messages about bad records."""
        draws = max(self.total("draws"), 1)
        for family, counter in self.summary()["families"].items():
            share = 100 * counter["draws"] / draws
            rest = ", ".join(f"{name} {number:,}" for name, number in counter.items() if name != "draws")
            yield f"{family:12} {counter['draws']:,} draws ({share:.1f} %): {rest}"
        for (dataset, reason), messages in sorted(self.messages.items()):
            yield f"{dataset}, bad {reason}: {messages[0]}"
