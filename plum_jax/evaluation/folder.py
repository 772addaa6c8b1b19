"""A model on one split of a PARTONOMY folder: run, score, and write what came out."""

import collections
import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from plum_jax import __version__, console
from plum_jax.errors import UserError
from plum_jax.evaluation import calibration, partonomy
from plum_jax.evaluation.journal import Journal
from plum_jax.evaluation.part_names import synonyms_of
from plum_jax.evaluation.prediction import GENERATED, GT_ANSWER, GT_SPANS, OWN
from plum_jax.evaluation.question_set import check_readable, questions_of
from plum_jax.evaluation.targets import image_hw
from plum_jax.run_record import sha256_of, write_json
from plum_jax.switches import switch

SWITCHES = (  # of config.eval, written into the results
    "mc_score", "mc_dtype", "tie", "empty_union", "span_scope", "feedback", "grounding", "match", "all_span_occurrences",
)  # fmt: skip
PREDICTING = (  # switches that change what is predicted
    "data.tokenizer_flavour", "data.clip_view", "eval.mc_score", "eval.mc_dtype", "eval.tie", "eval.span_scope",
    "eval.feedback", "eval.all_span_occurrences",
)  # fmt: skip
PROTOCOLS = {"published": GT_SPANS, "middle": GT_ANSWER, "end_to_end": OWN, "generation": GENERATED}
CHEAP = ("published", "end_to_end")  # what quickstart reports: no decoding token by token


def evaluate_folder(
    loaded, folder, split, out, *, question_types=None, max_images=None, calibrate=False, sizes=None, log=sys.stderr,
    protocols=CHEAP, devices=None, changed="refuse", record=None, synonyms=None,
):  # fmt: skip
    """Runs a model over one split and scores it: OUT/predictions.jsonl -> OUT/instances.jsonl -> OUT/results.json.

    Predictions are appended image by image: a run that was stopped continues, and ends with the same files. Questions about
    an image that cannot be read are counted, not scored.

    Args:
      loaded: LoadedModel (or inference.Model). folder, split: a PARTONOMY folder. out: created where missing.
      question_types: only these. max_images: only the first ones, in file order.
      calibrate: fit the mask scores on the result and write calibration.json into the run folder of the checkpoint.
      sizes: runner.Sizes. log: where progress goes; None for silence.
      protocols: of PROTOCOLS. devices: jax devices that share the images; None for the first one.
      changed: "refuse" or "restart" when OUT holds predictions of another model, data or setting.
      synonyms: file of part names that mean the same, for what is compared by rules.
      record: RunRecord to enter once nothing can be refused any more: a refused run leaves that of the run before it alone.

    Returns:
      The dictionary of results.json (design 1), with `summary` (M of design 1) added.

    Raises:
      UserError: broken questions, mostly unreadable images, an unknown question type, predictions of another run in OUT.
    """
    from plum_jax.evaluation.runner import Runner
    from plum_jax.inference import Model

    began = time.monotonic()
    model = loaded if isinstance(loaded, Model) else Model(loaded)
    check_calibrate(model, calibrate)
    source, questions = questions_of(folder, split, question_types, max_images)
    modes = [mode for name, mode in PROTOCOLS.items() if name in protocols]
    runner = Runner(model, questions, source, modes=modes, sizes=sizes, devices=devices)
    about = settings_of(model, source, split, question_types, max_images, protocols)
    journal = Journal(out, about, runner.order, changed)
    switches = {name: switch(model.config.eval, f"eval.{name}") for name in SWITCHES}
    key, synonyms = synonyms_of(synonyms)
    with record or contextlib.nullcontext():
        tally = Tally(partonomy.Scorer(split, source, switches, key), folder, questions)
        _run(runner, folder, journal, tally, f"evaluate {split}", log)
        records = tally.finish()
        results = {
            **_results(records, model, source, split, about, switches, synonyms),
            "seconds": round(time.monotonic() - began, 3),
            "calibration": _calibrate(model, records, calibrate),
        }
        write_jsonl(Path(out) / "instances.jsonl", records)
        write_json(Path(out) / "results.json", results)
    return results


def _run(runner, folder, journal, tally, label, log):
    """Every question into the tally: those that are done from the journal, the others through the model into the journal."""
    tally.add(journal.done)
    total, start = len(runner.questions), len(journal.done)
    if log and start:
        print(f"Going on: {start:,} of {console.counted(total, 'question')} are answered already", file=log)
    bar = console.Progress(total=total, label=label, unit="q", start=start, stream=log) if log else None
    with bar or contextlib.nullcontext():
        for predictions in runner.run(folder, start):
            tally.add(predictions)  # first, as what cannot be scored must not be kept
            journal.add(predictions)
            if bar:
                bar.update(len(predictions))


def _results(records, model, source, split, about, switches, synonyms):
    """results.json but for the time and the calibration."""
    return {
        "benchmark": "partonomy",
        "split": split,
        "checkpoint": {"path": str(model.path), "sha256": model.sha256},
        "data": {"path": str(source), "sha256": about["questions"], "n_instances": len(records)},
        "protocols": partonomy.protocols(records, switches["mc_score"], switches["tie"]),
        "summary": partonomy.summary(records, grounding=switches["grounding"], match=switches["match"]),
        "counts": partonomy.counts(records),
        "settings": {
            **switches, "min_score": model.min_score, "calibrated": model.calibrated,
            **{key: about[key] for key in ("protocols", "question_types", "max_images")}, "synonyms": synonyms,
        },
        "version": __version__,
        "command": " ".join(sys.argv),
    }  # fmt: skip


def settings_of(model, source, split, question_types, max_images, protocols):
    """Everything that decides what is predicted: only a run with the same settings is continued."""
    config = model.config
    curve = dataclasses.asdict(model.calibration) if model.calibrated else None
    return {
        "version": __version__, "checkpoint": model.sha256, "questions": sha256_of(source), "split": split,
        "question_types": question_types, "max_images": max_images,
        "protocols": [name for name in PROTOCOLS if name in protocols],
        **{name: switch(config[name.partition(".")[0]], name) for name in PREDICTING},
        "min_score": model.min_score, "max_new_tokens": int(config.eval.max_new_tokens), "calibration": curve,
    }  # fmt: skip


class Tally:
    """Scores predictions as they come, warns of images that cannot be read, and makes sure that no question is missing.

    Args:
      scorer: partonomy.Scorer. folder: of the images, for messages. questions: {index: Question}, all of the run.
    """

    def __init__(self, scorer, folder, questions):
        self.scorer, self.folder, self.questions = scorer, folder, questions
        self.records, self.faulty = {}, []
        self.images = collections.Counter(question.image_path for question in questions.values())

    def add(self, predictions):
        """UserError when a target mask cannot be read, or when most images could not."""
        for prediction in predictions:
            question = self.questions[prediction.index]
            if prediction.skipped and question.image_path not in self.faulty:
                self._warn(question.image_path)
            self.records[prediction.index] = self.scorer.score(question, prediction, image_hw(question, prediction))

    def _warn(self, image_path):
        self.faulty.append(image_path)
        path, n = Path(self.folder) / image_path, self.images[image_path]
        print(f"warning: {path}: is missing or not a readable image; {console.counted(n, 'question')} skipped", file=sys.stderr)
        check_readable(self.faulty, len(self.images), self.folder, self.scorer.source)

    def finish(self):
        """Records in the order of the file."""
        assert set(self.records) == set(self.questions), "every question is counted once, scored or skipped"
        return [self.records[index] for index in sorted(self.records)]


def check_calibrate(model, fit):
    """UserError when the curve would have no place."""
    if fit and not model.path:
        raise UserError("--calibrate: the model has no run folder to write calibration.json into; give a trained checkpoint")


def _calibrate(model, records, fit):
    """Reports how far mask scores are from the IoU they promise; with `fit`, writes the curve that closes the gap."""
    raw, iou = partonomy.calibration_pairs(records)
    report = {"n_masks": len(raw), "error": calibration.expected_error(model.calibration, raw, iou)}
    if not fit:
        return report
    curve = calibration.fit(raw, iou, model.sha256)
    if curve is None:
        print(f"warning: {len(raw)} masks are too few to calibrate mask scores; they stay raw", file=sys.stderr)
        return report
    model.calibration = curve
    path = calibration.save(curve, model.run_folder)
    return {**report, "path": str(path), "error_after": calibration.expected_error(curve, raw, iou)}


def write_jsonl(path, records):
    """One JSON object a line, under a temporary name until complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, allow_nan=False) + "\n" for record in records)
    os.replace(temporary, path)
