"""Descriptor -> dataset folder (D 1.5): masks fitted to the images, cleaned, split by photograph, asked about, written.

Stages that take long are done in chunks that are kept, so that a killed run goes on. Every question has its own random
numbers, keyed by seed, image, object and question type: neither workers nor the order of anything changes it.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import pickle
import zlib
from pathlib import Path

import numpy as np

from data_pipelines.partonomy.chunks import run_chunks
from data_pipelines.partonomy.cleaning import clean
from data_pipelines.partonomy.descriptor import Instance
from data_pipelines.partonomy.fitting import fit_image
from data_pipelines.partonomy.pictures import boxed_name, output_names, write_images
from data_pipelines.partonomy.questions import QuestionConfig, QuestionGenerator
from data_pipelines.partonomy.records import QUESTION_TYPES, parse_question, question_file
from data_pipelines.partonomy.samplers import ObjectSampler, PartSampler
from data_pipelines.partonomy.splits import split_photographs
from plum_jax.console import Progress
from plum_jax.errors import UserError

AMBIGUOUS = ("keep", "draw", "drop")
IMAGES_A_CHUNK = 64
QUESTIONS_A_CHUNK = 256  # instances


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything the content of the folder is a function of, apart from the sources."""

    shares: tuple | None  # ((split, share), ...); None where the sources are splits already
    types: tuple[str, ...] = QUESTION_TYPES
    seed: int = 0
    mutations_max: int = 3
    ambiguous: str = "keep"  # several objects of a kind: highlight_box field, a copy with the box drawn, or no question
    mismatch: str = "drop"  # of mask and image size, of fitting.MISMATCH
    graph: str = "seen"  # parts of an object, as of cleaning.clean
    link: bool = False


def build(work, folder, descriptor, splits, split_of_photograph, plan, *, names=(None, None), key, run):
    """Writes images/, question files and dataset.json into `folder` and returns the counts of the report.

    Args:
      work: folder of the chunks.
      descriptor: instances with the path of their image file and their photograph.
      splits: their names, in order. split_of_photograph: {photograph: split}, or None to split by plan.shares.
      names: object names, part names of `clean`.
      key: of `QuestionGenerator`.
      run: ordered `map` of `processes`.
    """
    instances, left_out = _fit(work, descriptor.instances, plan, run)
    cleaned = clean(
        dataclasses.replace(descriptor, instances=instances), object_names=names[0], part_names=names[1], graph=plan.graph
    )
    left_out += cleaned.counts
    instances = cleaned.descriptor.instances
    ambiguous = sum(instance.highlight_box is not None for instance in instances)
    if plan.ambiguous == "drop":
        instances = tuple(instance for instance in instances if instance.highlight_box is None)
        left_out["one of several objects of its kind in the image"] += ambiguous
    if not instances:
        said = ", ".join(f"{number} times {reason}" for reason, number in left_out.most_common())
        raise UserError(f"no instance is left to ask about: {said or 'the sources have none'}; check --images and --format")
    if split_of_photograph:  # what two splits have belongs to the earlier one
        instances = tuple(sorted(instances, key=lambda one: splits.index(split_of_photograph[one.photograph])))
    image_names = output_names([instance.image_path for instance in instances])
    instances = _distinct(instances, image_names, left_out)
    items = _items(instances, image_names, split_of_photograph, plan)
    _write_images(work, folder, instances, items, plan, run)
    descriptor = dataclasses.replace(cleaned.descriptor, instances=instances)
    counts, missing = _ask(work, folder, descriptor, items, splits, plan, key, run)
    return {
        "instances": len(instances),
        "images": len({item["head"]["image_path"] for item in items}),
        "objects": sorted({instance.image_label for instance in instances}),
        "parts": sorted({part for instance in instances for part in instance.segmentations}),
        "ambiguous": ambiguous,
        "multi_instance_possible": sum(instance.multi_instance_possible for instance in instances),
        "left_out": left_out,
        "merged_objects": cleaned.merged_objects,
        "merged_parts": cleaned.merged_parts,
        "splits": counts,
        "no_question": missing,
        "part_graph": cleaned.descriptor.part_graph,
        "instance_graph": cleaned.descriptor.instance_graph,
    }


def _fit(work, instances, plan, run):
    """-> (usable instances, sorted by image and label, Counter of what is left out)."""
    by_image = collections.defaultdict(list)
    for instance in instances:
        by_image[instance.image_path].append(dataclasses.asdict(instance))
    groups = [by_image[path] for path in sorted(by_image)]
    fitted, left_out = [], collections.Counter()
    with Progress(total=len(groups), label="images", unit="image") as bar:
        arguments = (plan.mismatch,)
        for found, counts in run_chunks(
            fit_chunk, groups, arguments, work, "fit", size=IMAGES_A_CHUNK, run=run, bar=bar
        ):  # fmt: skip
            fitted += [_instance(value) for value in found]
            left_out.update(counts)
    return tuple(sorted(fitted, key=lambda one: (one.image_path, one.image_label, one.highlight_box or ()))), left_out


def fit_chunk(groups, mismatch):
    """[[instance as a dictionary] of one image] -> (fitted instances, counts). One chunk of `_fit`."""
    fitted, total = [], collections.Counter()
    for group in groups:
        found, counts = fit_image(Path(), [_instance(value) for value in group], mismatch)
        fitted += [dataclasses.asdict(instance) for instance in found]
        total.update(counts)
    return fitted, total


def _instance(value):
    box = value["highlight_box"]
    return Instance(**{**value, "highlight_box": None if box is None else tuple(box)})


def _distinct(instances, image_names, left_out):
    """Without objects that an equal image of the same name has too."""
    first, kept = {}, []
    for one in instances:
        key = (image_names[one.image_path], one.image_label, one.highlight_box)
        if first.setdefault(key, one.image_path) == one.image_path:
            kept.append(one)
    left_out["object of an equal image of the same name"] += len(instances) - len(kept)
    return tuple(kept)


def _items(instances, image_names, split_of_photograph, plan):
    """For each instance its split and the fields of its entries that no question changes."""
    # Files that became one are one photograph, whatever they were called in the sources.
    photograph = {}
    for instance in instances:
        photograph.setdefault(image_names[instance.image_path], instance.photograph)
    shown = [photograph[image_names[instance.image_path]] for instance in instances]
    if split_of_photograph is None:
        pairs = zip(shown, (instance.image_label for instance in instances), strict=True)
        split_of_photograph = split_photographs(list(pairs), dict(plan.shares), plan.seed)
    items = []
    for instance, photo in zip(instances, shown, strict=True):
        name = image_names[instance.image_path]
        head = {"image_path": f"images/{name}", "image_label": instance.image_label}
        if instance.highlight_box and plan.ambiguous == "draw":
            head["image_path"] = f"images/{boxed_name(name, instance.highlight_box)}"
        elif instance.highlight_box:
            head["highlight_box"] = list(instance.highlight_box)
        if instance.multi_instance_possible:
            head["multi_instance_possible"] = True
        if instance.object_id:
            head["object_id"] = instance.object_id
        items.append({"split": split_of_photograph[photo], "head": head})
    return items


def _write_images(work, folder, instances, items, plan, run):
    jobs = {}
    for instance, item in zip(instances, items, strict=True):
        drawn = plan.ambiguous == "draw" and instance.highlight_box is not None
        name = item["head"]["image_path"].removeprefix("images/")
        jobs.setdefault(name, (instance.image_path, name, instance.highlight_box if drawn else None))
    jobs = list(jobs.values())
    (Path(folder) / "images").mkdir(exist_ok=True)
    with Progress(total=len(jobs), label="linking" if plan.link else "copying", unit="image") as bar:
        for _ in run_chunks(
            write_images, jobs, (str(folder), plan.link), work, "copy", size=IMAGES_A_CHUNK, run=run, bar=bar
        ):  # fmt: skip
            pass


def _ask(work, folder, descriptor, items, splits, plan, key, run):
    """Writes the question files. -> ({split: counts}, {question type: {why an instance has none: number}})."""
    parts = [sorted(instance.segmentations) for instance in descriptor.instances]
    config = QuestionConfig(max_mutations=plan.mutations_max)
    objects = ObjectSampler(descriptor.instance_graph, {instance.image_label for instance in descriptor.instances})
    generator = QuestionGenerator(descriptor.part_graph, PartSampler(parts), objects, config, key)
    pickled = pickle.dumps(generator)
    path = Path(work) / f"generator-{zlib.crc32(pickled):08x}.pickle"
    path.write_bytes(pickled)
    tasks = [(item["head"], names) for item, names in zip(items, parts, strict=True)]
    arguments = (str(path), plan.types, plan.seed)
    missing = {kind: collections.Counter() for kind in plan.types}
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(_QuestionFile(question_file(folder, split))) for split in splits}
        bar = stack.enter_context(Progress(total=len(tasks), label="questions", unit="instance"))
        chunks = run_chunks(ask_chunk, tasks, arguments, work, "ask", size=QUESTIONS_A_CHUNK, run=run, bar=bar)
        asked = itertools.chain.from_iterable(chunks)
        for item, instance, (questions, reasons) in zip(items, descriptor.instances, asked, strict=True):
            files[item["split"]].write(item["head"]["image_path"], instance.segmentations, questions)
            for kind, reason in reasons:
                missing[kind][reason] += 1
    counts = {split: file.counts() for split, file in files.items()}
    return counts, {kind: dict(reasons.most_common()) for kind, reasons in missing.items() if reasons}


@functools.lru_cache(maxsize=1)
def _generator(path):
    return pickle.loads(Path(path).read_bytes())


def ask_chunk(tasks, path, types, seed):
    """[(entry fields, part names)] of instances -> [([(question type, JSON without masks)], [(type, why there is none)])]."""
    generator, made = _generator(path), []
    for head, parts in tasks:
        identity = json.dumps([head["image_path"], head["image_label"], head.get("highlight_box")])
        questions, reasons = [], []
        for kind in types:
            rng = np.random.default_rng([seed, zlib.crc32(identity.encode()), QUESTION_TYPES.index(kind)])
            question, reason = generator.attempt(head["image_label"], parts, kind, rng)
            if question is None:
                reasons.append((kind, reason))
                continue
            entry = {**head, **question}
            parse_question({**entry, "segmentations": {part: [True] for part in parts}}, "plum data questions", len(questions))
            questions.append((kind, json.dumps(entry, ensure_ascii=False)))
        made.append((questions, reasons))
    return made


class _QuestionFile:
    """A JSON array that is written entry by entry, as all questions of a large source do not fit into memory."""

    def __init__(self, path):
        self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)
        self.images, self.instances, self.types = set(), 0, collections.Counter()

    def __enter__(self):
        self.file.write("[")
        return self

    def write(self, image, segmentations, questions):
        masks = json.dumps(segmentations, ensure_ascii=False)
        for kind, text in questions:
            self.file.write(f'{"," if self.types else ""}\n{text[:-1]}, "segmentations": {masks}}}')
            self.types[kind] += 1
        self.images.add(image)
        self.instances += 1

    def __exit__(self, *error):
        self.file.write("\n]\n")
        self.file.close()

    def counts(self):
        types = {kind: self.types[kind] for kind in QUESTION_TYPES if self.types[kind]}
        return {"images": len(self.images), "instances": self.instances, "questions": self.types.total(), "types": types}
