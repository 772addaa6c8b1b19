"""Runs a model on the questions of the other benchmarks, image by image, and yields `Prediction`s.

Per image both vision towers run once for all its questions (CLIP alone where no mask is asked for), and the rows of several
images are batched. Teacher-forced rows are one forward pass behind the shared prefix of an image; open ones are decoded
greedily. Every batch is padded to one size, so that few programs are compiled and results do not depend on the batch.
"""

import concurrent.futures
import functools
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.conversation import IMAGE, encode
from data_pipelines.conversation import Span as TextSpan
from data_pipelines.images import clip_view, load_image
from plum_jax import coco, generate
from plum_jax.errors import UserError
from plum_jax.evaluation.asked import MASK
from plum_jax.evaluation.prediction import GENERATED, GT_SPANS, Answer, Prediction, Span
from plum_jax.evaluation.spans import decode_spans, named_spans
from plum_jax.inference import PROMPT_BUCKET, EncodedImages, characters, pad_rows, pool, token_offsets
from plum_jax.models.plum import bind
from plum_jax.switches import switch

TOKEN_BUCKET = 32
BAD_IMAGE, BAD_QUESTION = "image_unreadable", "question_unusable"


class Sizes(NamedTuple):
    """How much runs at once."""

    images: int = 8
    rows: int = 16


class Row(NamedTuple):
    """A question about image number `slot` of a batch, as tokens."""

    index: int
    slot: int
    question: object  # Asked
    encoded: object  # conversation.Encoded


def run(model, root, questions, sizes=None, done=frozenset(), log=sys.stderr):
    """Yields lists of Prediction, those of an image together and in file order of the images.

    Args:
      model: inference.Model. root: that image paths are relative to. questions: [(index, Asked)].
      done: indices that are answered already. Their batches are run again where others of the batch are not: what a question
        gets must not depend on where a run was stopped.
      log: where sentences about bad images and questions go; None for silence.
    """
    sizes, images = sizes or Sizes(), list(_by_image(questions).items())
    chunks = [images[i : i + sizes.images] for i in range(0, len(images), sizes.images)]
    chunks = [chunk for chunk in chunks if not all(index in done for _, items in chunk for index, _ in items)]
    asker = _Asker(model, sizes, log)
    with concurrent.futures.ThreadPoolExecutor(2) as readers:
        load = lambda chunk: [readers.submit(load_image, Path(root) / path) for path, _ in chunk]  # noqa: E731
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

    def __init__(self, model, sizes, log):
        self.model, self.sizes, self.log = model, sizes, log
        self.whole = switch(model.config.eval, "eval.span_scope") == "all"

    def ask(self, asked, futures):
        """[[(index, Asked)] an image], futures of its pixels -> [[Prediction] an image]."""
        pixels, answers, skipped, slots = [], {}, {}, {}
        for number, (items, future) in enumerate(zip(asked, futures, strict=True)):
            try:
                pixels.append(future.result())
                slots[number] = len(pixels) - 1
            except UserError as error:
                self._say(error)
                skipped.update({index: BAD_IMAGE for index, _ in items})
        forced, free = [], []
        for number, slot in slots.items():
            for index, question in asked[number]:
                try:
                    given, prompt = self._encode(question)
                except UserError as error:
                    self._say(f"{question.id}: {error}")
                    skipped[index] = BAD_QUESTION
                    continue
                forced += [] if given is None else [Row(index, slot, question, given)]
                free.append(Row(index, slot, question, prompt))
        if free:
            images = self._images(pixels, any(row.question.kind == MASK for row in free))
            for mode, rows, answer in ((GT_SPANS, forced, self._forced), (GENERATED, free, self._free)):
                for at in range(0, len(rows), self.sizes.rows):
                    some = rows[at : at + self.sizes.rows]
                    for row, said in zip(some, answer(images, some), strict=True):
                        answers.setdefault(row.index, {})[mode] = said
        return [
            [
                Prediction(i, q.image_path, q.dataset, {}, answers.get(i, {}), skipped=skipped.get(i))
                for i, q in items
            ]
            for items in asked
        ]  # fmt: skip

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

    def _images(self, pixels, with_masks):
        if with_masks:
            return self.model.encode_images(pixels, self.sizes.images)
        size, mode = self.model.config.model.clip.image_size, self.model.config.data.clip_view
        views = np.zeros((self.sizes.images, size, size, 3), np.uint8)
        for i, image in enumerate(pixels):
            views[i] = clip_view(image, size, mode)
        return EncodedImages(_image_tokens(self.model.graphdef, self.model.params, views), None, None, None)

    def _forced(self, images, rows):
        """Rows with given answers -> an Answer each, whose spans are the given ones."""
        model, count = self.model, self.sizes.rows
        start = rows[0].encoded.image_position + 1
        dtype = switch(model.config.eval, "eval.mc_dtype")
        prefix = generate.run_prefix(model.graphdef, model.params, images.tokens, rows[0].encoded.tokens[:start], dtype=dtype)
        arrays = _arrays(rows, count, start)
        scores = generate.score_choices(model.graphdef, model.params, prefix, arrays, dtype=dtype)
        places = np.arange(count, dtype=np.int32), np.zeros(count, np.int32)
        features = jax.device_get(generate.read_rows(model.graphdef, model.params, prefix, arrays, scores, *places).features)
        shift = prefix.hidden.shape[1] - start  # token -> position in the spliced row, behind the image
        ranges = [decode_spans(row.encoded.bio) for row in rows]
        embeds = [pool(features[r][shift:], found) for r, found in enumerate(ranges)]
        low_res = model.decode(images, [row.slot for row in rows], embeds, count)
        return [Answer(row.question.given, self._given_spans(row, low, images)) for row, low in zip(rows, low_res, strict=True)]

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
        """Open rows -> an Answer each: what the model said, with masks where one is asked for."""
        model, count = self.model, self.sizes.rows
        tokens, counts = pad_rows([row.encoded.tokens for row in rows], count, PROMPT_BUCKET)
        spare = [rows[0]] * (count - len(rows))
        position, slots = (np.array([value(row) for row in (*rows, *spare)], np.int32) for value in (_position, _slot))
        generated, length, readout = jax.device_get(model.programs.generate(
            images.tokens[slots], tokens, counts, position, max_new_tokens=int(model.config.eval.max_new_tokens),
            end_token=model.end_token, whole_rows=self.whole,
        ))  # fmt: skip
        first = counts + images.tokens.shape[1] - 1 if self.whole else np.zeros_like(counts)  # of the generated tokens
        said = [token_offsets(model.tokenizer, generated[r, : length[r]]) for r in range(len(rows))]
        tagged = [self._tagged(rows[r], readout.labels[r, : first[r] + length[r]], said[r][1]) for r in range(len(rows))]
        low_res = [()] * len(rows)
        if images.embeddings is not None:
            embeds = [pool(readout.features[r], found) for r, found in enumerate(tagged)]
            low_res = model.decode(images, [row.slot for row in rows], embeds, count)
        answers = []
        for r, ((text, offsets), low) in enumerate(zip(said, low_res, strict=True)):
            spans = []
            for (a, b), logits in zip(tagged[r], low, strict=True):
                place = characters(a - first[r], b - first[r], offsets)
                span = model.span(text, place, logits, float(readout.confidence[r, a:b].mean()), images, rows[r].slot)
                spans.append(Span(span.phrase, coco.encode(span.mask), span.char_span, None, span.score, None, span.status))
            answers.append(Answer(text, tuple(spans)))
        return answers

    def _tagged(self, row, labels, offsets):
        if row.question.kind != MASK:
            return []
        return decode_spans(labels) if self.whole else named_spans(labels, offsets)


def _position(row):
    return row.encoded.image_position


def _slot(row):
    return row.slot


def _arrays(rows, count, start):
    """Rows -> generate.Questions of one choice each: the question part ends where the answer begins."""
    up = lambda n: -(-n // TOKEN_BUCKET) * TOKEN_BUCKET  # noqa: E731
    cuts = [row.encoded.answer_range[0] for row in rows]
    long = up(max(cut - start for cut in cuts))
    short = up(max(len(row.encoded.tokens) - cut for row, cut in zip(rows, cuts, strict=True)))
    q = generate.Questions(
        np.zeros(count, np.int32), np.zeros((count, long), np.int32), np.ones(count, np.int32), np.zeros((count, long), bool),
        np.zeros((count, 1, short), np.int32), np.ones((count, 1), np.int32), np.zeros((count, 1, short), bool),
    )  # fmt: skip
    for i, (row, cut) in enumerate(zip(rows, cuts, strict=True)):
        question, answer = row.encoded.tokens[start:cut], row.encoded.tokens[cut:]
        q.image[i], q.length[i], q.tokens[i, : len(question)] = row.slot, len(question), question
        q.choice_length[i, 0], q.choice_tokens[i, 0, : len(answer)] = len(answer), answer
        q.choice_is_answer[i, 0, : len(answer)] = True
    return q


@functools.partial(jax.jit, static_argnames="graphdef")
def _image_tokens(graphdef, params, clip_pixels):
    """uint8[B, I, I, 3] -> [B, P, D]: what the language model sees of images that SAM need not see."""
    return bind(graphdef, params).image_tokens(clip_pixels)
