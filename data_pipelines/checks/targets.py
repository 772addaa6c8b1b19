"""What a path is that is given to `plum data check`, `stats` or `show`: questions, COCO files, or a root of data sets."""

import dataclasses
from pathlib import Path

from data_pipelines.checks.families import find_datasets
from data_pipelines.folders import check_regular
from data_pipelines.question_files import PATTERN
from plum_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Target:
    """`kind`: "questions" (files of a folder), "coco" (files) or "root" (data sets by name)."""

    kind: str
    folder: Path
    files: tuple[Path, ...] = ()
    datasets: tuple[str, ...] = ()


def find_target(paths, dataset=None):
    """Paths of the command line -> Target. With a `dataset` the one path is a root that holds it, raw or built.

    UserError where there is nothing to read.
    """
    paths = [Path(path) for path in paths]
    if dataset is not None and (len(paths) > 1 or not paths[0].is_dir()):
        raise UserError(f"{paths[0]}: is no folder; give the root that holds {dataset}")
    if dataset is not None:
        return Target("root", paths[0], datasets=(dataset,))
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such folder or file; give a folder of questions, a COCO file, or a root of data sets")
    files = [path for path in paths if not path.is_dir()]
    if len(files) < len(paths) and len(paths) > 1:
        raise UserError("several folders at once; give one, or several COCO files that are splits of one data set")
    return _files(files) if files else _folder(paths[0])


def _files(paths):
    firsts = {_first_character(path) for path in paths}
    if firsts == {"["}:
        folders = {path.parent for path in paths}
        if len(folders) > 1:
            raise UserError("question files of several folders; give files of one folder, whose images they share")
        return Target("questions", folders.pop(), tuple(paths))
    if firsts == {"{"}:
        return Target("coco", paths[0].parent, tuple(paths))
    names = ", ".join(map(str, paths))
    raise UserError(f"{names}: is neither a COCO file nor a file of questions (a JSON object or array); give one of these")


def _first_character(path):
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode("ascii", "replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file that can") from error


def _folder(folder):
    try:
        files = sorted(path for path in folder.iterdir() if PATTERN.match(path.name))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); change its permissions") from error
    if files:
        return Target("questions", folder, tuple(files))
    datasets = find_datasets(folder)
    if datasets:
        return Target("root", folder, datasets=tuple(datasets))
    if next(folder.glob("plum_*/*/*/build.json"), None) or (folder / "build.json").exists():
        raise UserError(f"{folder}: is a build; its shards are compared with their checksums by plum data verify {folder}")
    raise UserError(
        f"{folder}: no *_qa_pairs_*.json there and none of the folders of docs/data (ade20k, coco, vlpart, refer_seg, ...); "
        "give a dataset folder, a COCO file with --images, or make one with plum data make"
    )
