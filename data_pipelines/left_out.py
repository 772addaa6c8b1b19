"""Records that a source does not use: all of them counted by reason, the first ones of each reason with a message."""

import collections

MOST_MESSAGES = 1000  # for each reason: a missing folder of images is one fault, not half a million


class LeftOut:
    """`counts`: Counter {reason: number}. `faults`: [(key, reason, message)], at most MOST_MESSAGES for each reason."""

    def __init__(self):
        self.counts, self.faults = collections.Counter(), []

    def add(self, key, reason, message):
        self.counts[reason] += 1
        if self.counts[reason] <= MOST_MESSAGES:
            self.faults.append((key, reason, message))

    def __str__(self):
        """ "3 image file missing, 1 no answer"; "nothing" for none."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common()) or "nothing"
