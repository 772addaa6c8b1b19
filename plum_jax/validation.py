"""Validation during training: the code of `plum evaluate` on some images of a held-out split, and held-out text.

Training for masks costs reading, so masks and reading are always shown together. Nothing here draws a random number or touches
the training data: a run with validation makes the same updates as one without.
"""

import json
import math
import sys
import time
from typing import NamedTuple

from plum_jax.errors import UserError
from plum_jax.logger import SPARSE, read_metrics
from plum_jax.paths import Mirror, absolute, as_path
from plum_jax.preemption import nothing_to_save
from plum_jax.processes import first, first_says, several

MASKS = {  # metric -> its name in the line that is printed
    "gmiou_macro": "gmIoU", "gmiou_micro": "per mask", "gmiou_macro_published": "published", "false_mask_rate": "false",
}  # fmt: skip
READING = {"part_accuracy": "parts", "object_accuracy": "object", "span_f1": "span F1"}
TEXT = {"text_loss": "text loss"}  # of config.eval.text_sources
FOLDER = "validation"  # of W/eval/STEP


class Settings(NamedTuple):
    """config.eval and config.checkpoint, as far as they are about validation."""

    every: int
    folder: str
    split: str
    images: int
    question_types: tuple
    metric: str
    mode: str
    text: bool  # whether there is held-out text

    @property
    def metrics(self):
        """Names of what a validation measures."""
        return (*MASKS, *READING, *(TEXT if self.text else ()))

    @property
    def columns(self):
        """Those of metrics.csv; none without validation."""
        return tuple(SPARSE + name for name in self.metrics) if self.every else ()


def settings_of(config):
    """Settings of a config; a config from before validation existed has none."""
    part, best = config.get("eval", {}), config.get("checkpoint", {})
    return Settings(
        every=part.get("every", 0),
        folder=part.get("folder", "") or config.data.folder,
        split=part.get("split", "val"),
        images=part.get("images", 0),
        question_types=tuple(part.get("question_types", ())),
        metric=best.get("best_metric", "gmiou_macro"),
        mode=best.get("best_mode", "max"),
        text=bool(part.get("text_sources", ())),
    )


def check_validation(config):
    """UserError for settings of validation that cannot work, or data that is not there; before anything is written."""
    s = settings_of(config)
    if s.every < 0:
        raise UserError(f"config.eval.every: {s.every} is negative; set it to a number of steps, or 0 for no validation")
    if s.mode not in ("max", "min"):
        raise UserError(f"config.checkpoint.best_mode: {s.mode!r} is not known; use max or min")
    if s.metric not in s.metrics:
        hint = " (text_loss needs config.eval.text_sources)" if s.metric in TEXT else ""
        raise UserError(f"config.checkpoint.best_metric: {s.metric!r} is not measured{hint}; use {', '.join(s.metrics)}")
    if not s.every:
        return
    if s.every % config.train.log_every:
        raise UserError(
            f"config.eval.every: {s.every} is not a multiple of config.train.log_every ({config.train.log_every}); make it one"
        )
    if s.images < 0:
        raise UserError(f"config.eval.images: {s.images} is negative; set it to a number of images, or 0 for all")
    if not s.folder:
        raise UserError("config.eval.folder: is empty; give a folder with question files, or set config.eval.every to 0")
    if s.folder == config.data.folder and s.split == config.data.train_split:
        raise UserError(f"config.eval.split: {s.split!r} is what is trained on; give a split that is held out, such as val")
    if s.text and config.eval.text_batches < 1:
        raise UserError(f"config.eval.text_batches: {config.eval.text_batches} is not a positive number; set it to 1 or more")
    from plum_jax.evaluation.question_set import questions_of

    if first():
        questions_of(s.folder, s.split, s.question_types or None, s.images or None)


def due(config, step):
    """Whether a step is one of those that are scored: every so many, and the last."""
    every = settings_of(config).every
    return every > 0 and (step % every == 0 or step == config.train.steps)


def pending(config, workdir, step):
    """Whether a saved step should have been scored but was not: the run was stopped between the two."""
    if not step or not due(config, step):
        return False
    row = next((row for row in read_metrics(workdir) if row["step"] == step), {})
    return all(math.isnan(row.get(column, math.nan)) for column in settings_of(config).columns)


class Validation:
    """Scores steps of a run, writes what it finds into the run folder, and says which checkpoint is the best.

    Of several processes the first answers the questions, on its own devices, while the others wait; all read the text.

    Args:
      config, workdir, tokenizer, mesh: of the run. frozen: parameters that are not trained.
      logger: MetricLogger with the columns of `settings_of(config)`.
      leave: of Preemption, or None.
    """

    def __init__(self, config, workdir, tokenizer, mesh, frozen, logger, leave=None):
        self.config, self.workdir, self.tokenizer, self.mesh = config, as_path(workdir), tokenizer, mesh
        self.frozen, self.logger, self.settings, self.leave = frozen, logger, settings_of(config), leave
        self.text = TextLoss(config, tokenizer, mesh) if self.settings.every and self.settings.text else None

    def due(self, step):
        """Whether a step is one of those that are scored."""
        return due(self.config, step)

    def __call__(self, step, params):
        """Scores a step whose checkpoint is complete. All processes must call it.

        Args:
          params: trained parameters, on the devices.

        Returns:
          (the line for the first process to print, seconds that it took).
        """
        from plum_jax.params import merge

        began = time.monotonic()
        params = merge(params, self.frozen)
        summary, counts = self._benchmark(step, params)
        values = {name: math.nan if summary.get(name) is None else summary[name] for name in (*MASKS, *READING)}
        if self.text is not None:
            values["text_loss"] = self.text(params)
        self.logger.amend(step, {SPARSE + name: values[name] for name in self.settings.metrics})
        best = self.choose_best()
        return line(step, values, counts, best), time.monotonic() - began

    def choose_best(self):
        """Writes best.json from the scores in metrics.csv and the checkpoints that are there -> what it holds.

        The first process does: it alone removes checkpoints.
        """
        from plum_jax.checkpoint import choose_best

        if not self.settings.every or not first():
            return {}
        column = SPARSE + self.settings.metric
        values = {row["step"]: row.get(column, math.nan) for row in read_metrics(self.workdir)}
        return choose_best(self.workdir, values, self.settings.metric, self.settings.mode)

    def _benchmark(self, step, params):
        """-> (summary of results.json, its counts); from W/eval/STEP/validation when this checkpoint was scored there."""
        from plum_jax.sharding import to_first_process

        asked, found = self._scored(step) if first() else (None, None)
        found = first_says("scored", found)
        if not found:
            params = to_first_process(params, self.mesh) if several() else params
            found = first_says("score", self._score(step, params, asked) if first() else None)
        return found

    def _scored(self, step):
        """-> (what is asked of a step, as in asked.json; what `_benchmark` returns where it was answered before, or None)."""
        from plum_jax.evaluation.question_set import question_path
        from plum_jax.run_record import sha256_of

        s, out = self.settings, self.workdir / "eval" / str(step) / FOLDER
        asked = {
            "checkpoint": sha256_of(absolute(self.workdir) / "checkpoints" / str(step)),
            "questions": sha256_of(question_path(s.folder, s.split)),
            "eval": {**s._asdict(), "question_types": list(s.question_types)},
        }
        results = _read(out / "results.json")
        if _read(out / "asked.json") != json.loads(json.dumps(asked)) or not results:
            return asked, None
        return asked, (results["summary"], results["counts"])

    def _score(self, step, params, asked):
        """What `_benchmark` returns, by the parameters on devices of this process alone."""
        import jax

        from plum_jax.evaluation.folder import evaluate_folder
        from plum_jax.inference import Model
        from plum_jax.loading import LoadedModel
        from plum_jax.run_record import write_json

        s, mirror = self.settings, Mirror(self.workdir / "eval" / str(step) / FOLDER)
        checkpoint = absolute(self.workdir) / "checkpoints" / str(step)
        loaded = LoadedModel(self.config, params, self.tokenizer, str(checkpoint), asked["checkpoint"], step)
        with nothing_to_save(self.leave), jax.set_mesh(jax.tree.leaves(params)[0].sharding.mesh):
            results = evaluate_folder(
                Model(loaded, calibrate=False), s.folder, s.split, mirror.local, question_types=list(s.question_types) or None,
                max_images=s.images or None, log=sys.stderr, changed="restart",
            )  # fmt: skip
        write_json(mirror.local / "asked.json", asked)
        mirror.close()
        return results["summary"], results["counts"]


def _read(path):
    """{} for a file that is missing or was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def line(step, values, counts, best):
    """'Validation at step 200: masks gmIoU 0.412, ... | reading parts 0.650, ... | best gmiou_macro 0.412 (step 200)'."""

    def shown(names):
        found = {label: values[name] for name, label in names.items() if name in values}
        return ", ".join(f"{label} -" if math.isnan(value) else f"{label} {value:.3f}" for label, value in found.items())

    found = (
        f"Validation at step {step:,} ({counts['scored']} questions): masks {shown(MASKS)} | reading {shown(READING | TEXT)}"
    )
    return found + (f" | best {best['metric']} {best['value']:.3f} (step {best['step']:,})" if best else "")


class TextLoss:
    """Language loss per token on the first batches of config.eval.text_sources, the same at every validation."""

    def __init__(self, config, tokenizer, mesh):
        import jax

        from data_pipelines.mixture import Mixture
        from data_pipelines.pipeline import batches
        from data_pipelines.sources import grounded_pair
        from plum_jax.models.plum import PlumConfig, bind, build
        from plum_jax.objective import forward
        from plum_jax.sharding import put_batch

        held_out = config.copy_and_resolve_references()
        held_out.seed = 0  # the same text for every seed of the run
        held_out.data.update(sources=config.eval.text_sources, folder="", grounded=(), micro_batches=1, workers=0)
        held_out.data.grounded = grounded_pair(held_out.data)
        held_out.loss.update(reference=0.0, shape_weight=0.0, bce=0.0, patch=0.0)  # with weight 0 they are not computed
        hosts = dict(host=jax.process_index(), hosts=jax.process_count())
        stream = batches(held_out, tokenizer, source=Mixture(held_out, tokenizer), **hosts)
        self.batches = [put_batch(next(stream), mesh, held_out.data.micro_batches) for _ in range(config.eval.text_batches)]
        graphdef, _ = build(PlumConfig.from_dict(config.model))

        @jax.jit
        def sums(params, micro):
            batch = jax.tree.map(lambda x: x[0], micro)
            return forward(bind(graphdef, params), batch, held_out, None, None)[0]["language"]

        self.sums = sums

    def __call__(self, params):
        import jax

        found = jax.device_get([self.sums(params, micro) for micro in self.batches])
        weight = sum(float(weight) for _, weight in found)
        return sum(float(total) for total, _ in found) / weight if weight else math.nan
