"""Runs a model over multiple-choice questions, image by image: questions -> a `Prediction` each (D 5.1, design 4).

Per image: both vision towers once and the shared start of all rows once. Per question: its own text once. Per choice: the
rest. Masks are decoded only for the answers that a protocol scores: the correct one with its constructed spans (published),
the correct one with the model's own spans (middle), the chosen one with the model's own spans (end to end), and what the model
says when it is only asked (generation). Where answer and spans coincide, they are decoded once.
"""

import concurrent.futures
import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.images import boxed, load_image
from data_pipelines.partonomy.records import TWO_TURN
from plum_jax import generate
from plum_jax.errors import UserError
from plum_jax.evaluation import answers
from plum_jax.evaluation.outcome import Outcome, prediction_of
from plum_jax.evaluation.prediction import GENERATED, GT_ANSWER, GT_SPANS, OWN, Prediction
from plum_jax.evaluation.programs import Programs
from plum_jax.evaluation.rows import SECOND, Buckets, make_groups, second_group
from plum_jax.evaluation.spelling import own_spans
from plum_jax.evaluation.text import choose
from plum_jax.greedy import Readout
from plum_jax.inference import PROMPT_BUCKET, pad_spans
from plum_jax.switches import switch

MEASURES = ("answer_mean", "answer_sum", "full_mean")
UNREADABLE = "image_unreadable"  # Prediction.skipped
WORKERS = 8  # threads at most that read images and write run lengths


class Sizes(NamedTuple):
    """How much runs at once, on all devices together; every batch is padded to these, so that few programs are compiled."""

    images: int = 16
    questions: int = 32
    masks: int = 32  # answers whose masks are decoded together


def _picture(question):
    """What is encoded once: an image with the box that is drawn into it."""
    return question.image_path, question.highlight_box


class Runner:
    """A model and the questions to run it over.

    Args:
      model: inference.Model. questions: {index in the file: records.Question}, or a list of all of them.
      source: their file, for messages. modes: of prediction.MODES, what is wanted of each question.
      sizes: Sizes. devices: jax devices that share the images; None for the first one.

    Raises:
      UserError: an answer does not list its parts.
    """

    def __init__(self, model, questions, source, *, modes=(GT_SPANS, OWN), sizes=None, devices=None):
        self.model, self.source, self.modes = model, source, modes
        self.questions = questions if isinstance(questions, dict) else dict(enumerate(questions))
        self.sizes, self.programs = sizes or Sizes(), Programs(model, devices)
        self.tokenizer, self.data = model.tokenizer, model.config.data
        self.scope = switch(model.config.eval, "eval.span_scope")
        self.everywhere = switch(model.config.eval, "eval.all_span_occurrences")
        # All questions, also when only some are left to do: padded sizes must not depend on where a run was stopped.
        self.groups = {i: make_groups(i, q, self.tokenizer, self.data, source) for i, q in self.questions.items()}
        self.buckets = Buckets(list(self.groups.values()))
        asked = {q.question for q in self.questions.values()} if GENERATED in modes else ()
        self.prompts = {text: model.encode_prompt(text, "question") for text in asked}
        rows = [row for kinds in self.groups.values() for group in kinds.values() for row in group.rows]
        self.longest = max(len(row.encoded.tokens) for row in rows)
        self.by_image = {}
        for i, question in self.questions.items():
            self.by_image.setdefault(_picture(question), []).append(i)

    @property
    def order(self):
        """Indices of the questions in the order in which they are run: all of an image together."""
        return [i for members in self.by_image.values() for i in members]

    def run(self, folder, done=0):
        """Yields the Predictions of one image after the other, in order; a list each.

        Args:
          folder: that image paths are relative to. done: how many of the questions, in order, need not be run again.
        """
        with concurrent.futures.ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as threads:
            waiting = []
            for outcomes in self.chunks(folder, threads, done):
                started = [o if isinstance(o, Prediction) else threads.submit(prediction_of, self.model, o) for o in outcomes]
                yield from self._finished(waiting, done)  # while the devices are at the next chunk
                waiting = started
            yield from self._finished(waiting, done)

    def _finished(self, waiting, done):
        found = [p if isinstance(p, Prediction) else p.result() for p in waiting]
        position = {i: n for n, i in enumerate(self.order)} if found else {}
        by_image = {}
        for prediction in found:
            if position[prediction.index] >= done:
                by_image.setdefault(_picture(self.questions[prediction.index]), []).append(prediction)
        return list(by_image.values())

    def chunks(self, folder, threads, done=0):
        """Yields, for some images at a time, an Outcome per question, or a Prediction where the image cannot be read."""
        paths, first, size = list(self.by_image), 0, self.programs.share(self.sizes.images) * self.programs.count
        while first < len(paths) and sum(len(self.by_image[path]) for path in paths[: first + size]) <= done:
            first += size
        load = lambda chunk: [threads.submit(self._load, boxed(Path(folder) / path, box)) for path, box in chunk]  # noqa: E731
        ahead = load(paths[first : first + size])
        for at in range(first, len(paths), size):
            views = [future.result() for future in ahead]
            ahead = load(paths[at + size : at + 2 * size])
            yield self._chunk(paths[at : at + size], views, size)

    def _load(self, path):
        """-> inference.View, or the UserError that says why there is none."""
        try:
            return self.model.view(load_image(path))
        except UserError as error:
            return error

    def _chunk(self, paths, views, size):
        """Pictures (`_picture`) and what `_load` gave -> what `chunks` yields."""
        share, places = self.programs.share(self.sizes.images), self.programs.places(len(paths))
        slots = [place.device * share + place.index for place in places]
        good = [n for n, view in enumerate(views) if not isinstance(view, UserError)]
        arrays = self.model.stack([views[n] for n in good], [slots[n] for n in good], size)
        sizes = Images(*arrays[2:])
        found = []
        for n, picture in enumerate(paths):
            for i in self.by_image[picture]:
                question = self.questions[i]
                if n in good:
                    found.append(Outcome(i, question, dict(self.groups[i]), places[n], sizes, slots[n]))
                else:
                    found.append(Prediction(i, question.image_path, question.question_type, {}, {}, skipped=UNREADABLE))
        outcomes = [outcome for outcome in found if isinstance(outcome, Outcome)]
        if outcomes:
            tokens, embeddings = self.programs.encode_images(*arrays[:3])
            self._ask(tokens, outcomes)
            self._decode(embeddings, outcomes)
        return found

    def _ask(self, image_tokens, outcomes):
        """Fills in scores, choices and answers (still without masks) of the questions about some images."""
        if {GT_SPANS, GT_ANSWER, OWN} & set(self.modes):
            encoded = outcomes[0].groups["part"].rows[0].encoded
            start = encoded.image_position + 1
            prefix = self.programs.prefix(image_tokens, encoded.tokens[:start])
            images = prefix, image_tokens
            self._score(images, start, [(o, group) for o in outcomes for group in o.groups.values()])
            if OWN in self.modes:
                self._score(images, start, self._second_questions(outcomes))
            for outcome in outcomes:
                self._assemble(outcome)
        if GENERATED in self.modes:
            self._generate(image_tokens, outcomes)

    def _second_questions(self, outcomes):
        """Adds, where the first of two answers was chosen wrongly, the second question after that answer -> [(outcome, group)].

        Where it was chosen correctly, the scores are those after the correct answer.
        """
        found = []
        for outcome in outcomes:
            if outcome.question.question_type not in TWO_TURN:
                continue
            first, second = outcome.groups  # in the order in which they are asked
            if outcome.predicted[first] == outcome.groups[first].correct:
                outcome.scores[SECOND], outcome.predicted[SECOND] = outcome.scores[second], outcome.predicted[second]
                continue
            chosen = outcome.predicted[first]
            group = second_group(outcome.index, outcome.question, chosen, self.tokenizer, self.data, self.source)
            outcome.groups[SECOND] = group
            found.append((outcome, group))
        return found

    def _score(self, images, start, items):
        """Scores the choices of [(outcome, group)] and reads the rows that are wanted of them.

        images: (generate.Prefix, image tokens) of the images that they are about.
        """
        for shape, members in self.buckets.fill([(self.buckets(item[1]), item) for item in items], self.sizes.questions):
            for batch in self.programs.rounds(members, lambda item: item[0].place, self.sizes.questions):
                arrays = self._arrays(batch, shape, start)
                scores = self.programs.score(images[0], arrays)
                values = jax.device_get({name: getattr(scores, name) for name in MEASURES})
                for row, (outcome, group) in batch:
                    few = {name: values[name][row, : len(group.rows)] for name in MEASURES}
                    choose_answer(outcome, group, few, self.model.config.eval)
                self._read(images, arrays, scores, batch, start)

    def _arrays(self, batch, shape, start):
        """[(row, (outcome, group))] -> generate.Questions padded to the bucket `shape`; padding has length 1."""
        (long, short), choices = shape, self.buckets.choices
        total = self.programs.share(self.sizes.questions) * self.programs.count
        q = generate.Questions(
            np.zeros(total, np.int32), np.zeros((total, long), np.int32), np.ones(total, np.int32),
            np.zeros((total, long), bool), np.zeros((total, choices, short), np.int32),
            np.ones((total, choices), np.int32), np.zeros((total, choices, short), bool),
        )  # fmt: skip
        for i, (outcome, group) in batch:
            cut, answer = group.shared, group.rows[0].encoded.answer_range[0]
            tokens = group.rows[0].encoded.tokens[start:cut]
            q.image[i], q.length[i], q.tokens[i, : len(tokens)] = outcome.place.index, len(tokens), tokens
            q.is_answer[i, : len(tokens)] = np.arange(start, cut) >= answer
            for c, row in enumerate(group.rows):
                rest = row.encoded.tokens[cut:]
                q.choice_length[i, c], q.choice_tokens[i, c, : len(rest)] = len(rest), rest
                q.choice_is_answer[i, c, : len(rest)] = np.arange(cut, cut + len(rest)) >= row.encoded.answer_range[0]
        return q

    def _read(self, images, arrays, scores, batch, start):
        """Tags and features of the chosen and the correct row of each part question -> answers with spans."""
        wanted = [(o, g, row, c) for row, (o, g) in batch if g.asks_for == "part" for c in self._wanted(o, g)]
        (prefix, image_tokens), seg = images, self.model.seg
        shift = prefix.hidden.shape[1] - start
        share, most = self.programs.share(self.sizes.questions), self.sizes.questions
        for some in self.programs.rounds(wanted, lambda item: item[0].place, most):
            group, choice = np.zeros((2, share * self.programs.count), np.int32)
            for at, (_, _, row, c) in some:
                group[at], choice[at] = row % share, c
            readout = jax.device_get(self.programs.read(prefix, arrays, scores, group, choice))
            spelled = {}
            if seg is not None:
                rows = [(at, outcome.place, g.rows[c]) for at, (outcome, g, _, c) in some]
                spelled = own_spans(self.model, self.programs, image_tokens, rows, len(group), self.longest)
            for at, (outcome, g, _, c) in some:
                row = Readout(*(field[at] for field in readout))
                own = spelled[at] if spelled else answers.tagged(g.rows[c], row, shift, self.scope)
                given = None
                if c == g.correct:
                    given = answers.constructed(g.rows[c], row, shift, everywhere=self.everywhere, seg=seg)
                self._say(outcome, g, c, own, given)

    def _wanted(self, outcome, group):
        """Choices of a group whose spans are wanted."""
        own = {outcome.predicted[group.kind]} if OWN in self.modes else set()
        given = {group.correct} if group.kind == "part" and {GT_SPANS, GT_ANSWER} & set(self.modes) else set()
        return sorted(own | given)

    def _say(self, outcome, group, choice, own, given):
        """Notes an answer with the model's own spans, and, where it is the correct one, with those that are given."""
        if group.kind == "part" and choice == group.correct:
            if GT_SPANS in self.modes:
                outcome.answers[GT_SPANS] = given
                own.masks = given.masks if own.ranges == given.ranges else own.masks
            if GT_ANSWER in self.modes:
                outcome.answers[GT_ANSWER] = own
        if choice == outcome.predicted[group.kind]:
            outcome.own[group.kind] = own

    def _assemble(self, outcome):
        """The answer end to end: after the model's own first answer, where the parts are asked for second."""
        if OWN in self.modes:
            second = SECOND in outcome.own
            outcome.answers[OWN] = outcome.own[SECOND if second else "part"]

    def _generate(self, image_tokens, outcomes):
        """What the model says to the part question alone, once for an image and a text."""
        asked, config = {}, self.model.config.eval
        for outcome in outcomes:
            asked.setdefault((outcome.place, outcome.question.question), []).append(outcome)
        total = self.programs.share(self.sizes.questions) * self.programs.count
        longest = max(len(prompt.tokens) for prompt in self.prompts.values())
        whole = self.scope == "all" and self.model.seg is None
        for batch in self.programs.rounds(list(asked), lambda item: item[0], self.sizes.questions):
            first = self.prompts[batch[0][1][1]]  # padding asks this, of whatever image: it ends as an answer does
            tokens = np.zeros((total, -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET), np.int32)
            tokens[:, : len(first.tokens)] = first.tokens
            image, position = np.zeros(total, np.int32), np.full(total, first.image_position, np.int32)
            count = np.full(total, len(first.tokens), np.int32)
            for at, (place, text) in batch:
                prompt = self.prompts[text]
                tokens[at], image[at], count[at], position[at] = 0, place.index, len(prompt.tokens), prompt.image_position
                tokens[at, : len(prompt.tokens)] = prompt.tokens
            said, said_count, readout = jax.device_get(self.programs.answer(
                image_tokens, image, tokens, count, position, max_new_tokens=int(config.max_new_tokens),
                end_token=self.model.end_token, whole_rows=whole,
            ))  # fmt: skip
            for at, key in batch:
                before = int(count[at]) + image_tokens.shape[1] - 1 if whole else 0
                row = Readout(*(field[at] for field in readout))
                answer = answers.generated(self.tokenizer, said[at, : said_count[at]], row, before, self.model.seg)
                for outcome in asked[key]:
                    outcome.answers[GENERATED] = answer

    def _decode(self, image_embeddings, outcomes):
        """Decodes the masks of all answers, those with few spans together, so that few ranks are run for nothing."""
        todo = {}
        for outcome in outcomes:
            for said in outcome.answers.values():
                todo.setdefault(id(said.masks), (outcome.place, said.masks))
        some = sorted((item for item in todo.values() if len(item[1].embeds)), key=lambda item: len(item[1].embeds))
        total = self.programs.share(self.sizes.masks) * self.programs.count
        for batch in self.programs.rounds(some, lambda item: item[0], self.sizes.masks):
            image = np.zeros(total, np.int32)
            for at, (place, _) in batch:
                image[at] = place.index
            embeds, valid = pad_spans([masks.embeds for _, (_, masks) in batch], [at for at, _ in batch], total)
            low_res = jax.device_get(self.programs.decode(image_embeddings, image, embeds, valid))
            for at, (_, masks) in batch:
                masks.low_res = low_res[at, : len(masks.embeds)]


class Images(NamedTuple):
    """Sizes of the images that run together."""

    resized_hw: np.ndarray  # int[B, 2]
    original_hw: np.ndarray  # int[B, 2]


def choose_answer(outcome, group, scores, config):
    """Notes the scores {measure: float32[C]} of a group and the choice that follows from them."""
    outcome.scores[group.kind] = {name: [float(x) for x in values] for name, values in scores.items()}
    own, tie = scores[switch(config, "eval.mc_score")], switch(config, "eval.tie")
    outcome.predicted[group.kind] = choose(own, tie=tie, correct=group.correct)
