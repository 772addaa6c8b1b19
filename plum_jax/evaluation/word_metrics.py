"""Right or wrong in words: TextVQA, GQA and POPE as they define it, and the substring metric of the reference (D 5.7)."""

import collections

from plum_jax.evaluation.answer_words import normalise_answer
from plum_jax.evaluation.text import precision_recall_f1

AGREEING = 3  # annotators other than oneself that make an answer fully right
NO = ("No", "not", "no")
YES = ("Yes", "yes")


def soft_accuracy(answer, references):
    """TextVQA: mean over the annotators of min(1, how many of the others gave this answer / 3), after normalising both.

    Singh et al., "Towards VQA Models That Can Read", CVPR 2019; the definition is that of VQA (Antol et al., ICCV 2015).
    """
    said = collections.Counter(map(normalise_answer, references))
    count, total = said[normalise_answer(answer)], len(references)
    alike, others = min(1.0, max(count - 1, 0) / AGREEING), min(1.0, count / AGREEING)
    return (count * alike + (total - count) * others) / total


def exact_match(answer, reference):
    """GQA (Hudson and Manning, CVPR 2019): the same text, after lower case and without white space and full stop at the end.

    The official script compares as it is; answers of chat models are brought into this form first, as LLaVA does.
    """
    return answer.strip().rstrip(".").strip().lower() == reference.strip().lower()


def contains(answer, references):
    """The score of the reference: `soft_accuracy`, or 1 where that is 0 and a normalised reference stands in the answer.

    With one or two references (GQA's answer and full answer, POPE's label) it is that containment alone: "no" is in "snow"
    (D 5.7, D38 of D 7.3).
    """
    soft = soft_accuracy(answer, references) if len(references) >= AGREEING else 0.0
    normal = normalise_answer(answer)
    return soft or float(any(normalise_answer(reference) in normal for reference in references))


def yes_or_no(answer):
    """POPE (Li et al., EMNLP 2023): "no" when the first sentence has one of the words No, not, no, else "yes"."""
    words = _first_sentence(answer)
    return "no" if any(word in NO for word in words) else "yes"


def is_clear(answer):
    """Whether the first sentence has a word of yes or no at all; POPE counts one without as yes."""
    return any(word in (*NO, *YES) for word in _first_sentence(answer))


def _first_sentence(answer):
    return answer.partition(".")[0].strip().replace(",", "").split(" ")


def yes_no_summary(pairs):
    """[(said, right, clear)] with "yes" or "no" -> the numbers of POPE; "yes" is the positive class."""
    total = len(pairs)
    hits = sum(said == right for said, right, _ in pairs)
    said_yes = sum(said == "yes" for said, _, _ in pairs)
    right_yes = sum(right == "yes" for _, right, _ in pairs)
    both = sum(said == right == "yes" for said, right, _ in pairs)
    return {
        "accuracy": hits / total if total else None,
        **precision_recall_f1(both, said_yes, right_yes),
        "yes_ratio": said_yes / total if total else None,
        "n_questions": total,
        "n_neither_yes_nor_no": sum(not clear for _, _, clear in pairs),
    }
