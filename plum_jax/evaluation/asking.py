"""Runs a model on the questions of the other benchmarks, image by image, and yields `Prediction`s.

Per image both vision towers run once for all its questions (CLIP alone where no mask is asked for), and the rows of several
images are batched. Teacher-forced rows are one forward pass behind the shared prefix of an image; open ones are decoded
greedily. Every batch is padded to one size, so that few programs are compiled and results do not depend on the batch.
"""

import concurrent.futures
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.conversation import IMAGE, encode
from data_pipelines.conversation import Span as TextSpan
from data_pipelines.images import load_image
from plum_jax import coco, generate
from plum_jax.errors import UserError
from plum_jax.evaluation.asked import MASK
from plum_jax.evaluation.prediction import GENERATED, GT_SPANS, Answer, Prediction, Span
from plum_jax.evaluation.programs import Place, Programs
from plum_jax.evaluation.spans import decode_spans, named_spans
from plum_jax.inference import PROMPT_BUCKET, characters, pad_spans, pool, token_offsets
from plum_jax.switches import switch

TOKEN_BUCKET = 32
BAD_IMAGE, BAD_QUESTION = "image_unreadable", "question_unusable"


class Sizes(NamedTuple):
    """How much runs at once, on all devices together; every batch is padded to these, so that few programs are compiled."""

    images: int = 8
    rows: int = 16


class Row(NamedTuple):
    """A question about an image of a batch, as tokens."""

    index: int
    place: Place  # of the image among the devices
    slot: int  # of the image in the arrays of all devices
    question: object  # Asked
    encoded: object  # conversation.Encoded


class Images(NamedTuple):
    """The images of a batch, on the devices."""

    tokens: jax.Array  # [B, P, D]
    embeddings: jax.Array | None  # [B, g, g, W]; None where no mask is asked for
    resized_hw: np.ndarray  # int[B, 2]
    original_hw: np.ndarray  # int[B, 2]


def run(model, root, questions, sizes=None, done=frozenset(), *, devices=None, log=sys.stderr):
    """Yields lists of Prediction, those of an image together and in file order of the images.

    Args:
      model: inference.Model. root: that image paths are relative to. questions: [(index, Asked)].
      done: indices that are answered already. Their batches are run again where others of the batch are not: what a question
        gets must not depend on where a run was stopped.
      devices: jax devices that share the images; None for the first one.
      log: where sentences about bad images and questions go; None for silence.
    """
    sizes, images = sizes or Sizes(), list(_by_image(questions).items())
    asker = _Asker(model, sizes, devices, log)
    chunks = [images[i : i + asker.n_images] for i in range(0, len(images), asker.n_images)]
    chunks = [chunk for chunk in chunks if not all(index in done for _, items in chunk for index, _ in items)]
    with concurrent.futures.ThreadPoolExecutor(2) as readers:
        load = lambda chunk: [readers.submit(asker.view, Path(root) / path) for path, _ in chunk]  # noqa: E731
        ahead = load(chunks[0]) if chunks else []
        for number, chunk in enumerate(chunks):
            futures, ahead = ahead, load(chunks[number + 1]) if number + 1 < len(chunks) else []
            for predictions in asker.ask([items for _, items in chunk], futures):
                left = [prediction for prediction in predictions if prediction.index not in done]
                if left:
                    yield left


def order(questions):
    """[(index, Asked)] -> the indices in the order in which `run` answers them: all of an image together."""
    return [index for items in _by_image(questions).values() for index, _ in items]


def _by_image(questions):
    by_image = {}
    for index, question in questions:
        by_image.setdefault(question.image_path, []).append((index, question))
    return by_image


class _Asker:
    """Asks the questions of a few images at a time."""

    def __init__(self, model, sizes, devices, log):
        self.model, self.sizes, self.log, self.programs = model, sizes, log, Programs(model, devices)
        self.n_images, self.n_rows = (self.programs.share(n) * self.programs.count for n in sizes)
        self.whole = switch(model.config.eval, "eval.span_scope") == "all"

    def view(self, path):
        """Path -> inference.View. UserError for an unreadable image."""
        return self.model.view(load_image(path))

    def ask(self, asked, futures):
        """[[(index, Asked)] an image], futures of their views -> [[Prediction] an image]."""
        places, share = self.programs.places(len(asked)), self.n_images // self.programs.count
        views, forced, free, answers, skipped = {}, [], [], {}, {}
        for place, items, future in zip(places, asked, futures, strict=True):
            slot = place.device * share + place.index
            try:
                views[slot] = future.result()
            except UserError as error:
                self._say(error)
                skipped.update({index: BAD_IMAGE for index, _ in items})
                continue
            for index, question in items:
                try:
                    given, prompt = self._encode(question)
                except UserError as error:
                    self._say(f"{question.id}: {error}")
                    skipped[index] = BAD_QUESTION
                    continue
                forced += [] if given is None else [Row(index, place, slot, question, given)]
                free.append(Row(index, place, slot, question, prompt))
        if free:
            images = self._images(views, any(row.question.kind == MASK for row in free))
            answers = {GT_SPANS: self._forced(images, forced), GENERATED: self._free(images, free)}
        found = lambda index: {mode: of[index] for mode, of in answers.items() if index in of}  # noqa: E731
        return [
            [Prediction(i, q.image_path, q.dataset, {}, found(i), skipped=skipped.get(i)) for i, q in items] for items in asked
        ]

    def _say(self, message):
        if self.log:
            print(f"left out: {message}", file=self.log)

    def _encode(self, question):
        """-> (Encoded with the given answer or None, Encoded that is open for an answer)."""
        prompt, given = self.model.encode_prompt(question.prompt), None
        if question.kind == MASK and question.given is not None:
            data = self.model.config.data
            given = encode(
                [(f"{IMAGE}\n{question.prompt}", question.given)], self.model.tokenizer, data.template,
                [TextSpan(0, *question.span)], flavour=switch(data, "data.tokenizer_flavour"),
            )  # fmt: skip
        return given, prompt

    def _images(self, views, with_masks):
        """{slot: inference.View} -> Images, black elsewhere; without masks SAM does not run."""
        clip, sam, resized_hw, original_hw = self.model.stack(views.values(), views, self.n_images)
        if not with_masks:
            return Images(self.programs.image_tokens(clip), None, resized_hw, original_hw)
        return Images(*self.programs.encode_images(clip, sam, resized_hw), resized_hw, original_hw)

    def _forced(self, images, rows):
        """Rows with given answers -> {index: Answer} whose spans are the given ones."""
        if not rows:
            return {}
        start, answers = rows[0].encoded.image_position + 1, {}
        prefix = self.programs.prefix(images.tokens, rows[0].encoded.tokens[:start])
        shift = prefix.hidden.shape[1] - start  # token -> position in the spliced row, behind the image
        within = np.tile(np.arange(self.n_rows // self.programs.count, dtype=np.int32), self.programs.count)
        for batch in self._batches(rows):
            arrays = _arrays(batch, self.n_rows, start)
            scores = self.programs.score(prefix, arrays)
            readout = jax.device_get(self.programs.read(prefix, arrays, scores, within, np.zeros_like(within)))
            embeds = [pool(readout.features[at][shift:], decode_spans(row.encoded.bio)) for at, row in batch]
            for (_, row), low_res in zip(batch, self._decode(images, batch, embeds), strict=True):
                answers[row.index] = Answer(row.question.given, self._given_spans(row, low_res, images))
        return answers

    def _batches(self, rows):
        """Lists of (row in the batch, Row), each row on the device of its image."""
        return self.programs.rounds(rows, lambda row: row.place, self.sizes.rows)

    def _decode(self, images, batch, embeds):
        """Per row of a batch float32[n, W] -> per row float32[n, 4g, 4g]."""
        if not max(map(len, embeds)):
            return [()] * len(batch)
        image = np.zeros(self.n_rows, np.int32)
        for at, row in batch:
            image[at] = row.place.index
        padded, valid = pad_spans(embeds, [at for at, _ in batch], self.n_rows)
        low_res = jax.device_get(self.programs.decode(images.embeddings, image, padded, valid))
        return [low_res[at, : len(e)] for (at, _), e in zip(batch, embeds, strict=True)]

    def _given_spans(self, row, low_res, images):
        spans = []
        for low in low_res:
            mask, raw = self.model.mask(low, 1.0, images, row.slot)
            score, _ = self.model.judge(mask, raw)
            a, b = row.question.span  # a given span counts however unsure its mask is
            status = "ok" if mask.any() else "empty_mask"
            spans.append(Span(row.question.given[a:b], coco.encode(mask), (a, b), None, score, raw, status))
        return tuple(spans)

    def _free(self, images, rows):
        """Open rows -> {index: Answer}: what the model said, with masks where one is asked for."""
        found = {}
        for batch in self._batches(rows):
            prompts = _prompts(batch, self.n_rows)
            generated, count, readout = jax.device_get(self.programs.answer(
                images.tokens, *prompts, max_new_tokens=int(self.model.config.eval.max_new_tokens),
                end_token=self.model.end_token, whole_rows=self.whole,
            ))  # fmt: skip
            before = prompts.count + images.tokens.shape[1] - 1 if self.whole else np.zeros_like(prompts.count)
            said = [token_offsets(self.model.tokenizer, generated[at, : count[at]]) for at, _ in batch]
            tagged = [
                self._tagged(row, readout.labels[at, : before[at] + count[at]], offsets)
                for (at, row), (_, offsets) in zip(batch, said, strict=True)
            ]
            embeds = [pool(readout.features[at], ranges) for (at, _), ranges in zip(batch, tagged, strict=True)]
            low_res = self._decode(images, batch, embeds)
            for n, (at, row) in enumerate(batch):
                ranges = [(a - before[at], b - before[at]) for a, b in tagged[n]]
                sure = [float(readout.confidence[at, a:b].mean()) for a, b in tagged[n]]
                found[row.index] = self._answer(row, *said[n], ranges, sure, low_res[n], images)
        return found

    def _answer(self, row, text, offsets, ranges, sure, low_res, images):
        spans = []
        for (a, b), confidence, low in zip(ranges, sure, low_res, strict=True):
            span = self.model.span(text, characters(a, b, offsets), low, confidence, images, row.slot)
            spans.append(Span(span.phrase, coco.encode(span.mask), span.char_span, None, span.score, None, span.status))
        return Answer(text, tuple(spans))

    def _tagged(self, row, labels, offsets):
        if row.question.kind != MASK:
            return []
        return decode_spans(labels) if self.whole else named_spans(labels, offsets)


class _Prompts(NamedTuple):
    """Open rows, padded; padding asks what the first row asks."""

    image: np.ndarray  # int32[R] within the device
    tokens: np.ndarray  # int32[R, T]
    count: np.ndarray  # int32[R]
    position: np.ndarray  # int32[R]


def _prompts(batch, total):
    first = batch[0][1].encoded
    longest = max(len(row.encoded.tokens) for _, row in batch)
    image, position = np.zeros(total, np.int32), np.full(total, first.image_position, np.int32)
    tokens = np.zeros((total, -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET), np.int32)
    tokens[:, : len(first.tokens)], count = first.tokens, np.full(total, len(first.tokens), np.int32)
    for at, row in batch:
        n = len(row.encoded.tokens)
        image[at], position[at], count[at], tokens[at] = row.place.index, row.encoded.image_position, n, 0
        tokens[at, :n] = row.encoded.tokens
    return _Prompts(image, tokens, count, position)


def _arrays(batch, total, start):
    """[(row in the batch, Row)] -> generate.Questions of one choice each: the question part ends where the answer begins."""
    up = lambda n: -(-n // TOKEN_BUCKET) * TOKEN_BUCKET  # noqa: E731
    long = up(max(row.encoded.answer_range[0] - start for _, row in batch))
    short = up(max(len(row.encoded.tokens) - row.encoded.answer_range[0] for _, row in batch))
    q = generate.Questions(
        np.zeros(total, np.int32), np.zeros((total, long), np.int32), np.ones(total, np.int32), np.zeros((total, long), bool),
        np.zeros((total, 1, short), np.int32), np.ones((total, 1), np.int32), np.zeros((total, 1, short), bool),
    )  # fmt: skip
    for at, row in batch:
        cut = row.encoded.answer_range[0]
        question, answer = row.encoded.tokens[start:cut], row.encoded.tokens[cut:]
        q.image[at], q.length[at], q.tokens[at, : len(question)] = row.place.index, len(question), question
        q.choice_length[at, 0], q.choice_tokens[at, 0, : len(answer)] = len(answer), answer
        q.choice_is_answer[at, 0, : len(answer)] = True
    return q
