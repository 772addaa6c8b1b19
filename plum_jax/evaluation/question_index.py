"""Which question of a file a prediction is about: by its place, or by image, type and text."""

import collections
import posixpath

from plum_jax.evaluation.schema import Invalid, show

SHOWN = 5  # of the questions that fit, in a message


class QuestionIndex:
    """The questions of a file by what other models know of them.

    Image paths need not be equal: /data/partonomy/images/a.jpg is images/a.jpg where no other image of the file ends so.
    """

    def __init__(self, questions):
        self.questions = questions
        self._by_text, self._paths = collections.defaultdict(list), collections.defaultdict(set)
        for i, question in enumerate(questions):
            for text in {question.question.strip(), (question.object_question or question.question).strip()}:
                self._by_text[question.image_path, question.question_type, text].append(i)
            self._paths[posixpath.basename(question.image_path)].add(question.image_path)

    def image(self, path):
        """The image path of the file that `path` means. Raises Invalid when there is none, or more than one."""
        steps = _steps(path)
        same = self._paths.get(steps[-1] if steps else "", set())
        if path in same:
            return path
        found = [name for name in sorted(same) if _is_end(_steps(name), steps)]
        if len(found) != 1:
            what = f"may be {' or '.join(found[:SHOWN])}" if found else "is no image of the question file"
            raise Invalid(f"$.image_path is {show(path)}, which {what}; give the image_path of the question file")
        return found[0]

    def matching(self, path, question_type, text):
        """Indices of the questions about an image, of a type, that ask this for the parts or the object."""
        return self._by_text.get((self.image(path), question_type, text.strip()), [])

    def find(self, entry):
        """Entry of the documented form -> index. Raises Invalid when it names no question, or not exactly one."""
        if "index" in entry:
            return self._at(entry)
        found = self.matching(entry["image_path"], entry["question_type"], entry["question"])
        if not found:
            about = f"{entry['question_type']} question about {entry['image_path']}"
            raise Invalid(f"$.question is {show(entry['question'])}, which is no {about}; copy it from the question file")
        if "image_label" in entry:
            named = [i for i in found if self.questions[i].image_label == entry["image_label"]]
            if not named:
                labels = ", ".join(sorted({show(self.questions[i].image_label) for i in found}))
                raise Invalid(f"$.image_label is {show(entry['image_label'])}; give {labels}, as the question file does")
            found = named
        if len(found) > 1:
            same = ", ".join(map(str, found[:SHOWN]))
            raise Invalid(f"$.question is the text of the questions {same}; add image_label, or give index")
        return found[0]

    def _at(self, entry):
        """By place; whatever else the entry says of the question must agree, as another file has other questions there."""
        index = entry["index"]
        if index >= len(self.questions):
            last = len(self.questions) - 1
            raise Invalid(f"$.index is {index}; the question file ends with question {last}, give the file it was made from")
        question = self.questions[index]
        if "image_path" in entry and self.image(entry["image_path"]) != question.image_path:
            self._disagree(index, "image_path", entry)
        for field in ("question_type", "image_label"):
            if entry.get(field, getattr(question, field)) != getattr(question, field):
                self._disagree(index, field, entry)
        asked = [text.strip() for text in (question.question, question.object_question) if text]
        if entry.get("question", asked[0]).strip() not in asked:
            self._disagree(index, "question", entry)
        return index

    def _disagree(self, index, field, entry):
        have = show(getattr(self.questions[index], field))
        raise Invalid(
            f"$.{field} is {show(entry[field])}, but question {index} has {have}; give the file that it was made from"
        )


def _steps(path):
    return [step for step in path.replace("\\", "/").split("/") if step not in ("", ".")]


def _is_end(one, other):
    """Whether the shorter of two paths is the end of the longer."""
    n = min(len(one), len(other))
    return n > 0 and one[-n:] == other[-n:]
