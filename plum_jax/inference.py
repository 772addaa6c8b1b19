"""A checkpoint as a function: image and prompt -> text whose phrases have masks. `plum_jax.load` is `load` of this file."""

import dataclasses
import functools
import os
from typing import NamedTuple

import jax
import numpy as np

from data_pipelines.conversation import END, IMAGE, encode
from data_pipelines.images import clip_view, load_image, sam_view
from plum_jax import coco, overlay
from plum_jax.errors import UserError
from plum_jax.evaluation import calibration
from plum_jax.evaluation.spans import decode_spans, named_spans, strip
from plum_jax.resize_numpy import original_logits
from plum_jax.switches import check_switches, switch

BATCH_SIZE = 8
PROMPT_BUCKET = 32  # prompts are padded to a multiple of this: few compiled shapes
LONGEST_PROMPT = 8  # times config.data.max_tokens: beyond what was trained on, and costly well before it fails
MIN_SPAN_BUCKET = 8  # span slots are padded to a power of two from here; unused ranks cost nothing


@dataclasses.dataclass(frozen=True)
class Span:
    """A phrase of an answer and its mask."""

    phrase: str
    char_start: int  # into the text of the answer
    char_end: int
    mask: np.ndarray  # bool[H, W] in the pixels of the upright image
    score: float  # expected IoU when calibrated, else the raw confidence
    status: str  # "ok", "empty_mask" or "low_confidence"

    @property
    def char_span(self):
        return self.char_start, self.char_end


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model said about one image. `mask_for` gives a mask for any of its words, tagged or not."""

    text: str
    spans: list
    image: np.ndarray  # uint8[H, W, 3]
    prompt: str
    _context: "Context" = dataclasses.field(repr=False)

    @property
    def status(self):
        """ "ok" when a span has a usable mask, else "no_span_tagged" or the status of the first span."""
        found = [span.status for span in self.spans]
        return "ok" if "ok" in found else found[0] if found else "no_span_tagged"

    def mask_for(self, phrase):
        """The `Span`, with its mask, of a phrase of the answer: a text (its first occurrence) or (char_start, char_end).

        A tagged phrase gives its own mask again; any other is decoded as if it had been tagged, behind the tagged phrases
        that stand before it.

        Raises:
          UserError: the phrase is not in the answer, or the range is outside of it or covers no token.
        """
        if isinstance(phrase, str):
            start = self.text.lower().find(phrase.strip().lower())
            if start < 0 or not phrase.strip():
                raise UserError(f"phrase {phrase!r} is not in the answer {self.text!r}; give words of the answer")
            end = start + len(phrase.strip())
        else:
            start, end = phrase
            if not 0 <= start < end <= len(self.text):
                raise UserError(f"range {start}:{end} is outside the answer of {len(self.text)} characters; give a part of it")
        return self._context.span(start, end)

    def to_coco(self, file_name="image"):
        """COCO dictionary of this one image, as `plum predict` writes it for many."""
        return coco.document([coco.record(file_name, self)])

    def show(self):
        """PIL image with the masks drawn in."""
        return overlay.draw(self.image, self.spans, title=self.prompt, text=self.text)


@dataclasses.dataclass(frozen=True)
class Context:
    """What `mask_for` needs to decode one more phrase of an answer."""

    model: "Model"
    offsets: list  # [(start, end)] characters of each generated token
    text: str
    first: int  # where the generated tokens begin in the three that follow
    tagged: list  # [(start, end)] token ranges
    features: np.ndarray  # float32[n, W]
    confidence: np.ndarray  # float32[n]
    images: "EncodedImages"
    index: int

    def span(self, char_start, char_end):
        tokens = [t for t, (a, b) in enumerate(self.offsets, self.first) if a < char_end and b > char_start]
        if not tokens:
            raise UserError(f"range {char_start}:{char_end} of the answer {self.text!r} covers no token; give a longer one")
        wanted = tokens[0], tokens[-1] + 1
        ranges = [r for r in self.tagged if r[1] <= wanted[0]] + [wanted]
        embeds = [np.stack([self.features[a:b].mean(0) for a, b in ranges])]
        low_res = self.model.decode(self.images, [self.index], embeds, rows=1)[0]
        confidence = float(self.confidence[slice(*wanted)].mean())
        return self.model.span(self.text, (char_start, char_end), low_res[-1], confidence, self.images, self.index)


class EncodedImages(NamedTuple):
    """B images after both vision towers; B may include padding at the end."""

    tokens: jax.Array  # [B, P, D]
    embeddings: jax.Array  # [B, g, g, W]
    resized_hw: np.ndarray  # int[B, 2]
    original_hw: np.ndarray  # int[B, 2]


class View(NamedTuple):
    """One image as the vision towers see it."""

    clip: np.ndarray  # uint8[I, I, 3]
    sam: np.ndarray  # uint8[S, S, 3]
    resized_hw: tuple  # of the image within `sam`
    original_hw: tuple


class Model:
    """A loaded checkpoint. `model(image, prompt)` answers once, `model.answer(images, prompts)` in batches.

    Args:
      loaded: LoadedModel of plum_jax.checkpoint.
      calibrate: False ignores the calibration.json beside the checkpoint.
      programs: what runs on the device; None makes `generate.LivePrograms` of the parameters, and only then is the code of
        the model imported (`plum_jax.serving` runs exported programs without it).

    Attributes:
      config, tokenizer, path, sha256: of the checkpoint. calibration: Calibration or None. calibrated: bool.
      graphdef, params: of the live programs.
      min_score: spans below it have the status low_confidence.
    """

    def __init__(self, loaded, *, calibrate=True, programs=None):
        self.config, self.tokenizer = loaded.config, loaded.tokenizer
        check_switches(self.config)
        self.path, self.sha256 = loaded.path, loaded.sha256
        self.programs = _live_programs(loaded) if programs is None else programs
        self.calibration = calibration.load(self.run_folder, self.sha256) if calibrate and self.path else None
        self.min_score = float(self.config.eval.min_score)
        self.end_token = int(self.tokenizer.eos_token_id)

    @property
    def graphdef(self):
        return self.programs.graphdef

    @property
    def params(self):
        return self.programs.params

    @property
    def run_folder(self):
        """Where calibration.json lies."""
        return calibration.place_of(self.path)

    @property
    def calibrated(self):
        return self.calibration is not None

    def __call__(self, image, prompt, **options):
        """One image (path, PIL image or uint8[H, W, 3]) and one prompt -> Answer."""
        return self.answer([image], [prompt], batch_size=1, **options)[0]

    def answer(self, images, prompts, *, batch_size=BATCH_SIZE, max_new_tokens=None):
        """Answers in input order. Each equals what the same image and prompt give alone.

        Args:
          images: paths, PIL images or uint8[H, W, 3]. prompts: as many texts, or one text for all.

        Raises:
          UserError: an image cannot be read, a prompt is empty, too long or has reserved words, or there are not as many
            prompts as images.
        """
        prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if len(prompts) != len(images):
            raise UserError(f"{len(images)} images but {len(prompts)} prompts; give one prompt, or one for each image")
        answers = []
        for start in range(0, len(images), batch_size):
            stop = start + batch_size
            pixels = [as_pixels(image) for image in images[start:stop]]
            answers += self._answer_batch(pixels, prompts[start:stop], batch_size, max_new_tokens)
        return answers

    def _answer_batch(self, images, prompts, rows, max_new_tokens):
        """At most `rows` images, padded to that many so that every batch has one shape."""
        texts = [self.encode_prompt(prompt) for prompt in prompts]
        limit = self.config.eval.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise UserError(f"max_new_tokens {limit}: an answer needs a token; give 1 or more")
        encoded = self.encode_images(images, rows)
        tokens, counts = pad_rows([text.tokens for text in texts], rows, PROMPT_BUCKET)
        position = np.array([text.image_position for text in texts] + [texts[0].image_position] * (rows - len(texts)))
        whole = switch(self.config.eval, "eval.span_scope") == "all"
        generated, count, readout = jax.device_get(self.programs.generate(
            encoded.tokens, tokens, counts, position, max_new_tokens=int(limit), end_token=self.end_token, whole_rows=whole
        ))  # fmt: skip
        first = counts + encoded.tokens.shape[1] - 1 if whole else np.zeros_like(counts)  # of the generated tokens
        end = first + count
        said = [token_offsets(self.tokenizer, generated[i, : count[i]]) for i in range(len(images))]
        labels = [readout.labels[i, : end[i]] for i in range(len(images))]
        tagged = [decode_spans(x) if whole else named_spans(x, o) for x, (_, o) in zip(labels, said, strict=True)]
        embeds = [pool(readout.features[i], ranges) for i, ranges in enumerate(tagged)]
        low_res = self.decode(encoded, range(len(images)), embeds, rows)
        answers = []
        for i, (text, offsets) in enumerate(said):
            confidence, features = readout.confidence[i, : end[i]], readout.features[i, : end[i]]
            context = Context(self, offsets, text, int(first[i]), tagged[i], features, confidence, encoded, i)
            spans = [
                self.span(text, characters(a - first[i], b - first[i], offsets), low, float(confidence[a:b].mean()), encoded, i)
                for (a, b), low in zip(tagged[i], low_res[i], strict=True)
            ]
            answers.append(Answer(text, spans, images[i], prompts[i], context))
        return answers

    def encode_prompt(self, prompt, name="prompt"):
        """Text -> conversation.Encoded with the image before it, open for the answer. UserError as of `check_prompt`."""
        check_prompt(prompt, name)
        flavour = switch(self.config.data, "data.tokenizer_flavour")
        text = encode([(f"{IMAGE}\n{prompt}", None)], self.tokenizer, self.config.data.template, flavour=flavour)
        most = LONGEST_PROMPT * self.config.data.max_tokens
        if len(text.tokens) > most:
            raise UserError(f"{name} {prompt[:20]!r}...: has {len(text.tokens)} tokens, of at most {most}; shorten it")
        return text

    def encode_images(self, images, rows):
        """uint8[H, W, 3] arrays -> EncodedImages of `rows` images, padded with black ones."""
        clip_pixels, sam_pixels, resized_hw, original_hw = self.stack([self.view(image) for image in images], range(rows), rows)
        tokens, embeddings = self.programs.encode_images(clip_pixels, sam_pixels, resized_hw)
        return EncodedImages(tokens, embeddings, resized_hw, original_hw)

    def view(self, image):
        """uint8[H, W, 3] -> View: what the two vision towers see of it."""
        clip = clip_view(image, self.config.model.clip.image_size, self.config.data.clip_view)
        sam, resized_hw = sam_view(image, self.config.model.sam.image_size)
        return View(clip, sam, resized_hw, image.shape[:2])

    def stack(self, views, places, rows):
        """Views at these places of a batch of `rows` images, black elsewhere.

        Returns:
          (uint8[rows, I, I, 3], uint8[rows, S, S, 3], resized int32[rows, 2], original int32[rows, 2]).
        """
        clip_size, sam_size = self.config.model.clip.image_size, self.config.model.sam.image_size
        arrays = (
            np.zeros((rows, clip_size, clip_size, 3), np.uint8), np.zeros((rows, sam_size, sam_size, 3), np.uint8),
            np.ones((rows, 2), np.int32), np.ones((rows, 2), np.int32),
        )  # fmt: skip
        for view, place in zip(views, places, strict=False):
            for array, field in zip(arrays, view, strict=True):
                array[place] = field
        return arrays

    def decode(self, images, index, embeds, rows):
        """Low-resolution mask logits of the spans of some answers.

        Args:
          images: EncodedImages. index: which image each answer is about. embeds: per answer float32[n, W] with n >= 0.
          rows: the answers are padded to this many.

        Returns:
          Per answer float32[n, 4g, 4g].
        """
        index = list(index)
        most = max((len(e) for e in embeds), default=0)
        if not most:
            return [np.zeros((0, 1, 1), np.float32) for _ in embeds]
        padded, valid = pad_spans(embeds, range(rows), rows)
        image = np.array(index + [0] * (rows - len(index)), np.int32)
        low_res = jax.device_get(self.programs.decode_masks(images.embeddings, image, padded, valid))
        return [low_res[row, : len(e)] for row, e in enumerate(embeds)]

    def span(self, text, char_span, low_res, tag_confidence, images, index):
        """One low-resolution mask -> Span at the size of the image."""
        start, end = strip(text, *char_span)
        mask, raw = self.mask(low_res, tag_confidence, images, index)
        score, status = self.judge(mask, raw)
        return Span(text[start:end], start, end, mask, score, status)

    def mask(self, low_res, tag_confidence, images, index):
        """-> (bool[H, W], raw confidence)."""
        size = self.config.model.sam.image_size
        logits = original_logits(low_res, images.resized_hw[index], images.original_hw[index], size)
        mask = logits > 0
        return mask, calibration.raw_confidence(logits, mask, tag_confidence)

    def judge(self, mask, raw):
        """-> (score, status)."""
        score = float(self.calibration(raw)) if self.calibrated else raw
        if not mask.any():
            return 0.0, "empty_mask"
        return score, "ok" if score >= self.min_score else "low_confidence"


def _live_programs(loaded):
    from plum_jax.generate import LivePrograms

    return LivePrograms.of(loaded)


def load(checkpoint="tiny", **options):
    """A run folder, base weights or the word `tiny` (what quickstart trained) -> Model. UserError when there is no such one."""
    from plum_jax.loading import load_model

    return Model(load_model(checkpoint), **options)


def check_prompt(prompt, name="prompt"):
    """UserError when a prompt is blank, is not valid Unicode or has words that are reserved; `name` is for the message."""
    if not prompt.strip():
        raise UserError(f"{name} {prompt!r}: is empty; ask something about the image")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} {prompt!r}: is not valid Unicode; give it in UTF-8") from error
    found = [word for word in (IMAGE, END) if word in prompt]
    if found:
        raise UserError(f"{name} {prompt!r}: {found[0]} is reserved; leave it out")


def as_pixels(image):
    """Path, PIL image or array -> uint8[H, W, 3], upright. UserError when it is none of them."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(image)
    if hasattr(image, "convert"):
        from PIL import ImageOps

        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
        raise UserError(f"image array is {image.dtype}{list(image.shape)}; give uint8[H, W, 3], a path or a PIL image")
    return image


def pad_rows(rows, count, bucket):
    """Token arrays -> (int32[count, T] with T a multiple of `bucket`, int32[count] lengths); missing rows repeat the first."""
    rows = [*rows, *[rows[0]] * (count - len(rows))]
    padded = np.zeros((count, -(-max(map(len, rows)) // bucket) * bucket), np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded, np.array([len(row) for row in rows], np.int32)


def pad_spans(embeds, places, rows):
    """Per answer float32[n, W] -> (float32[rows, N, W] with these at their places, bool[rows, N] which of it are spans)."""
    slots = MIN_SPAN_BUCKET
    while slots < max(map(len, embeds)):
        slots *= 2
    width = next(e.shape[-1] for e in embeds if len(e))
    padded, valid = np.zeros((rows, slots, width), np.float32), np.zeros((rows, slots), bool)
    for place, e in zip(places, embeds, strict=False):
        padded[place, : len(e)], valid[place, : len(e)] = e.reshape(len(e), width), True
    return padded, valid


def characters(start, end, offsets):
    """Range of generated tokens -> characters of the answer; none, (0, 0), where it starts before the answer."""
    return (offsets[start][0], offsets[end - 1][1]) if start >= 0 else (0, 0)


def pool(features, ranges):
    """features [T, W], token ranges -> float32[n, W]: the mean over each range, a span's prompt (M 3.3)."""
    return np.stack([features[a:b].mean(0) for a, b in ranges]) if ranges else np.zeros((0, features.shape[-1]), np.float32)


def token_offsets(tokenizer, tokens):
    """Generated ids -> (text without special tokens, [(start, end)] characters of each token).

    Ids are decoded in growing prefixes, because a piece alone may be half of a character (byte fallback) or lose its space.
    """
    decode = functools.partial(tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    tokens = [int(token) for token in tokens]
    text = decode(tokens)
    offsets, start = [], 0
    for count in range(1, len(tokens) + 1):
        end = max(start, len(os.path.commonprefix([decode(tokens[:count]), text])))
        offsets.append((start, end))
        start = end
    return text, offsets
