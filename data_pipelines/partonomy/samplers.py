"""Where wrong answers come from: parts that go together (D 3.6) and objects that resemble each other (D 3.7). Offline NumPy.

The reference uses scikit-learn and a sentence encoder; here smoothed co-occurrence and character n-grams, in sorted order,
so that the result depends on nothing but the data and the generator that is passed in.
"""

import collections
import math

import numpy as np


class PartSampler:
    """Draws a part to add to a list of parts: mostly a related one, else one that tends to occur with the list.

    Args:
      instances: the part names of every instance of the data.
      predictor_weight: share of draws that ignore which parts are related.
      temperature: of the softmax over the predictor's log-odds.
      smoothing: added to both counts of the log-odds.
    """

    def __init__(self, instances, *, predictor_weight=0.1, temperature=1.5, smoothing=1.0):
        self.vocabulary = sorted({part for parts in instances for part in parts})
        self.index = {part: k for k, part in enumerate(self.vocabulary)}
        self.predictor_weight, self.temperature = predictor_weight, temperature
        together, total = np.zeros((len(self.vocabulary),) * 2), np.zeros(len(self.vocabulary))
        for start in range(0, len(instances), 4096):  # counts are whole numbers: the sum does not depend on the cut
            present = np.zeros((min(4096, len(instances) - start), len(self.vocabulary)))
            for row, parts in enumerate(instances[start : start + 4096]):
                present[row, [self.index[p] for p in parts]] = 1.0
            together += present.T @ present
            total += present.sum(0)
        self.log_odds = np.log((together + smoothing) / (total[:, None] - together + smoothing))  # [given, predicted]
        self.prior = np.log((total + smoothing) / (len(instances) - total + smoothing))
        constant = total == len(instances)  # present everywhere: nothing to predict, as in the reference
        self.log_odds[:, constant] = self.prior[constant] = 0.0

    def sample(self, existing, related, excluded, rng):
        """One part name that is not excluded, or None when there is none. `related` is in a fixed order."""
        near = [p for p in related if p in self.index and p not in excluded]
        if near and rng.random() >= self.predictor_weight:
            return near[rng.integers(len(near))]
        cumulative = np.cumsum(self.predict(existing, excluded))
        if not cumulative[-1] > 0:
            return None
        return self.vocabulary[int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))]

    def predict(self, existing, excluded):
        """Probabilities float64[vocabulary] of the parts that go with `existing`, 0 for excluded ones."""
        given = [self.index[p] for p in existing if p in self.index]
        logits = (self.log_odds[given].sum(0) if given else self.prior) / self.temperature
        logits[[self.index[p] for p in excluded if p in self.index]] = -np.inf
        weight = np.exp(logits - max(logits.max(), -1e300))
        return weight / max(weight.sum(), 1e-300)


class ObjectSampler:
    """Draws wrong objects: siblings of the same parent, or any others where there are too few, similar names first.

    Args:
      instance_graph: {parent: [object names]}.
      labels: object names that occur in the data.
      temperature: of the softmax over name similarity in 0..1; infinite makes it uniform, as the reference's in effect is
        (D12).
    """

    def __init__(self, instance_graph, labels, *, temperature=0.1):
        self.labels = sorted(labels)
        self.column = {label: k for k, label in enumerate(self.labels)}
        self.temperature = temperature
        parent = {child: name for name in sorted(instance_graph) for child in instance_graph[name]}
        self.siblings = {
            a: [b for b in self.labels if b != a and a in parent and parent.get(b) == parent[a]] for a in self.labels
        }
        self.similarity = dict(zip(self.labels, name_similarity(self.labels), strict=True))

    def sample(self, label, count, rng):
        """`count` different object names other than `label`; fewer when the data has fewer. In random order."""
        candidates = self.siblings.get(label, [])
        if len(candidates) < count:
            candidates = [other for other in self.labels if other != label]
        scores = np.zeros(len(candidates))
        if label in self.similarity:
            scores += self.similarity[label][[self.column[c] for c in candidates]] / self.temperature
        # Adding Gumbel noise and taking the largest is sampling without replacement.
        order = np.argsort(-(scores + rng.gumbel(size=len(scores))), kind="stable")
        return [candidates[k] for k in order[:count]]


def name_similarity(names, low=2, high=4):
    """Cosine similarity float64[n, n] of TF-IDF weighted character n-grams of `low` to `high` letters."""
    grams = []
    for name in names:
        text = f" {name.lower()} "
        grams.append(collections.Counter(text[i : i + n] for n in range(low, high + 1) for i in range(len(text) - n + 1)))
    documents = collections.Counter(gram for counts in grams for gram in counts)
    column = {gram: k for k, gram in enumerate(sorted(documents))}
    matrix = np.zeros((len(names), len(column)))
    for row, counts in enumerate(grams):
        for gram, count in counts.items():
            matrix[row, column[gram]] = count * (math.log((1 + len(names)) / (1 + documents[gram])) + 1)
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    return matrix @ matrix.T
