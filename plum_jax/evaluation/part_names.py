"""When two part names are the same: exactly, or by rules (D 5.4). No model decides it.

Exact is the published comparison, of stripped lower-case strings. By rules, articles, number, hyphens and spaces make no
difference either, nor does the choice among names that a file of synonyms puts together.
"""

import re

from data_pipelines.partonomy.questions import canonical
from plum_jax.evaluation.text import normalise

HYPHENS = re.compile(r"[\s_\-\u2010-\u2015]+")
EDGES = " \t\n.,;:!?\"'()"


def exact(name):
    """The published form of a name."""
    return normalise(name)


def by_rules(name, synonyms=None):
    """'The Table-Legs.' -> 'table leg'.

    Args:
      synonyms: data_pipelines.partonomy.synonyms.SynonymKey, or None.
    """
    plain = HYPHENS.sub(" ", name.strip(EDGES)).strip()
    return (synonyms or canonical)(plain)


class PartLookup:
    """Finds the part that a phrase names: the same name exactly, else by rules the first one in sorted order."""

    def __init__(self, parts, synonyms=None):
        self.synonyms = synonyms
        self.exact, self.rules = {}, {}
        for part in sorted(parts):
            self.exact.setdefault(exact(part), part)
            self.rules.setdefault(by_rules(part, synonyms), part)

    def __call__(self, phrase, rules=True):
        """-> a part, or None. `rules=False` wants the same name exactly."""
        found = self.exact.get(exact(phrase))
        return self.rules.get(by_rules(phrase, self.synonyms)) if found is None and rules and phrase.strip(EDGES) else found


def matches(predicted, reference, key=exact):
    """How many predicted names are among the references, names compared by `key`. The published count: repeated names count
    again (D 5.4)."""
    wanted = {key(name) for name in reference}
    return sum(key(name) in wanted for name in predicted)


def distinct_matches(predicted, reference, key=exact):
    """-> (matches, predictions, references), every name counted once: what free text is scored by, where repeating a name
    must not help."""
    said, wanted = ({key(name) for name in names} for names in (predicted, reference))
    return len(said & wanted), len(said), len(wanted)


def add_synonyms_flag(parser):
    """--synonyms, of the commands that score."""
    parser.add_argument(
        "--synonyms", metavar="FILE", help="YAML list of groups of part names that mean the same: - [tire, tyre]"
    )


def synonyms_of(path):
    """File of --synonyms -> (SynonymKey, {"path", "sha256"} for results.json); None -> (None, None). UserError: a bad file."""
    if path is None:
        return None, None
    from data_pipelines.partonomy.synonyms import read_synonyms
    from plum_jax.run_record import sha256_of

    return read_synonyms(path), {"path": str(path), "sha256": sha256_of(path)}
