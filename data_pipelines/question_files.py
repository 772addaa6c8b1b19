"""The question files of a PARTONOMY folder by split, and the questions in them that can be read."""

import re
from pathlib import Path

from data_pipelines.partonomy.records import load_entries, parse_question
from plum_jax.errors import UserError

PATTERN = re.compile(r"^(?P<name>.+_qa_pairs(_(?P<split>[^_]+))?)\.json$")
WHOLE = "whole"  # the split of a file that names none, as of PARTONOMY-Core


def question_files(folder):
    """-> [paths], sorted by name. UserError when it is no folder or holds no question file."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give the folder that holds the question files")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the question files")
    paths = sorted(path for path in folder.iterdir() if PATTERN.match(path.name))
    if not paths:
        raise UserError(f"{folder}: no *_qa_pairs_*.json there; give a dataset folder, or make one with plum data make")
    return paths


def split_of(path):
    """partonomy_qa_pairs_val.json -> "val"."""
    return PATTERN.match(Path(path).name)["split"] or WHOLE


def readable_questions(path):
    """-> ([(index of the entry, Question)], how many entries cannot be read). UserError when the file cannot be."""
    questions, left_out = [], 0
    for index, entry in enumerate(load_entries(path)):
        try:
            questions.append((index, parse_question(entry, path, index)))
        except UserError:
            left_out += 1
    return questions, left_out
