"""The questions of a run: which file, which of its questions, and whether their images are there."""

from pathlib import Path

from plum_jax.errors import UserError


def question_path(folder, split):
    """The question file of a split. UserError when the folder has none."""
    from data_pipelines.partonomy.records import question_file

    path = question_file(folder, split)
    if not path.is_file():
        have = sorted(p.stem.rpartition("_")[2] for p in Path(folder).glob("partonomy_qa_pairs_*.json"))
        fix = f"it has the splits {', '.join(have)}" if have else "make one with plum data make --out DIR"
        raise UserError(f"{path}: no such question file; {fix}")
    return path


def questions_of(folder, split, types, max_images):
    """-> (question file, {index in it: question} of some types about the first images). UserError when there are none, or
    when most images are missing."""
    from data_pipelines.partonomy.records import read_questions

    source = question_path(folder, split)
    questions = select(dict(enumerate(read_questions(source))), types, max_images, source)
    paths = dict.fromkeys(question.image_path for question in questions.values())
    check_readable([path for path in paths if not (Path(folder) / path).is_file()], len(paths), folder, source)
    return source, questions


def check_readable(faulty, total, folder, source):
    """UserError when more than half of the images are faulty: then the folder is at fault, not an image."""
    if 2 * len(faulty) > total:
        raise UserError(
            f"{Path(folder) / faulty[0]}: is missing or not a readable image, like {len(faulty)} of the {total} images that "
            f"{source} names; restore the images, then begin again with --restart"
        )


def select(questions, types, max_images, source):
    """{index: question} -> those of some types about the first images. UserError for a type that the file does not have."""
    if max_images is not None and max_images < 1:
        raise UserError(f"--max-images {max_images}: is too small; give 1 or more")
    have = sorted({q.question_type for q in questions.values()})
    for name in types or ():
        if name not in have:
            raise UserError(f"{source}: has no questions of type {name!r}; it has {', '.join(have)}")
    questions = {i: q for i, q in questions.items() if types is None or q.question_type in types}
    if max_images is not None:
        paths = set(list(dict.fromkeys(q.image_path for q in questions.values()))[:max_images])
        questions = {i: q for i, q in questions.items() if q.image_path in paths}
    if not questions:
        raise UserError(f"{source}: holds no question to score; check the split and --max-images")
    return questions
