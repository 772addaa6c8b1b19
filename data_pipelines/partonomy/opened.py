"""The questions of a run and their images: a folder of question files, or what `plum data build` made of one."""

import json
from pathlib import Path

from data_pipelines import arrayrecord
from data_pipelines.explanatory import stored_questions
from data_pipelines.partonomy.records import question_file, read_questions
from plum_jax.errors import UserError
from plum_jax.paths import check_local

LOCAL = "copy it with gcloud storage rsync -r, or mount the bucket with gcsfuse"


def open_questions(folder, split):
    """-> QuestionFolder or QuestionBuild. The question file wins where a folder has both; UserError where it has neither."""
    check_local(folder, LOCAL)
    folder = Path(folder)
    if not question_file(folder, split).is_file():
        here = (folder / "build.json").is_file()
        built = folder if here else arrayrecord.find_built(folder, "explanatory", split)
        if built:
            return QuestionBuild(built, split)
    return QuestionFolder(folder, split)


def has_questions(folder):
    """Whether it is a folder of question files, which can also be evaluated on."""
    return any(Path(folder).glob("partonomy_qa_pairs_*.json"))


class QuestionFolder:
    """A folder with partonomy_qa_pairs_<split>.json.

    Attributes:
      path: the file that says what the data are. asked: [(Question, name of its image)], in file order.
      parts: part names of dataset.json, None without that file.
    """

    def __init__(self, folder, split):
        self.folder, self.path = folder, question_file(folder, split)
        self.asked = [(question, question.image_path) for question in read_questions(self.path)]
        about = folder / "dataset.json"
        self.parts = _parts_of(about) if about.is_file() else None

    def image(self, name):
        """Name of an image -> what `load_image` reads."""
        return self.folder / name


def _parts_of(path):
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: has no readable list of parts ({error!r}); run plum data make again") from error


class QuestionBuild:
    """A build of questions, with the attributes of `QuestionFolder`. Its questions are read once, images when they are met."""

    def __init__(self, folder, split):
        self.records = arrayrecord.ArrayRecordSource(folder, split=split)
        self.path, self.asked, self._places = self.records.folder / "build.json", [], {}
        if self.records.facts["source"] != "explanatory":
            family = self.records.family
            raise UserError(f"{folder}: is a build of {family}, not of questions; train on it with config.data.sources")
        for number in range(len(self.records)):
            _, _, record = self.records.stored(number)
            self._places.setdefault(record["image"], number)
            self.asked += [(question, record["image"]) for question in stored_questions(record)]
        self.parts = self.records.parts

    def image(self, name):
        return self.records.record(self._places[name])["image"]
