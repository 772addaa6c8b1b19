"""Time of the multiple-choice evaluation against the row-by-row way of the published code, on the same questions.

    python tools/bench_eval.py [--images 2 8 24] [--checkpoint=tiny] [--json FILE]

Both ways do what the published protocol needs, from image files to run lengths: scores of all choices, and the masks of the
constructed spans of the correct answer at the size of the image. Row by row means (M 8.1): every question loads its image and
runs SAM on it; every choice is a whole conversation that runs CLIP and the language model over all of its tokens, one row at
a time; the masks of all spans of all rows are decoded and brought to the size of the image. It is written with the same
modules as ours, compiled, with as few padded tokens as one shape for all rows allows and with the faster, linear form of mask
decoding. Ours is `evaluation.runner` with its default batches, padded where there is less.

Compilation is not counted (each way runs once before), nor are reading the question file and scoring; making the tokens is, in
both. Both must give the same scores and choices. The target is five times as many questions a second at the size of
configs/tiny.py, with the largest number of images.

`seconds_all_protocols` is ours with the middle protocol, end to end and free generation as well, which row by row has not.
Random weights say as much as they may (config.eval.max_new_tokens); a trained checkpoint stops.
Prints a table and one JSON object.
"""

import argparse
import functools
import json
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.images import load_image
from data_pipelines.make import Arguments, make_dataset
from plum_jax import cli, coco, config_io
from plum_jax.cache import enable_compilation_cache
from plum_jax.evaluation.prediction import GT_SPANS, MODES
from plum_jax.evaluation.question_set import questions_of
from plum_jax.evaluation.rows import make_groups
from plum_jax.evaluation.runner import Runner
from plum_jax.inference import MIN_SPAN_BUCKET, Model
from plum_jax.initial import resolve_config
from plum_jax.loading import initial_model, load_model
from plum_jax.models.plum import bind, take_positions
from plum_jax.spans import pool_spans, slots_of

TARGET = 5.0
TOLERANCE = 1e-4  # of scores that two ways of computing give in float32


@functools.partial(jax.jit, static_argnames="graphdef")
def encode_image(graphdef, params, sam_pixels, resized_hw):
    return bind(graphdef, params).image_embeddings(sam_pixels, resized_hw)


@functools.partial(jax.jit, static_argnames="graphdef")
def run_row(graphdef, params, clip_pixels, image_embeddings, tokens, count, position, span_of_token):
    """One conversation as a whole: image, all tokens, tags, masks of its spans.

    Args:
      clip_pixels: uint8[1, I, I, 3]. image_embeddings: [1, g, g, W]. tokens: int32[1, T]. count, position: int32[1].
      span_of_token: int[1, T] constructed spans.

    Returns:
      (mean negative log-likelihood of all text tokens but the first, float32[N, 4g, 4g] masks, int[S] tags).
    """
    model = bind(graphdef, params)
    embeds, at = model.embed(tokens, position, model.image_tokens(clip_pixels))
    lengths = count + model.num_image_tokens - 1
    hidden = model.hidden(embeds, lengths)
    logits = model.logits(take_positions(hidden, jnp.maximum(at - 1, 0)))
    nll = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    t = jnp.arange(tokens.shape[1])
    is_text = (t > 0) & (t < count[:, None]) & (t != position[:, None])
    tags = model.tag_logits(hidden, jnp.arange(hidden.shape[1]) < lengths[:, None]).argmax(-1)
    slots = slots_of(span_of_token[0], MIN_SPAN_BUCKET)
    spans = pool_spans(model.project(take_positions(hidden, at)[0]), slots)
    low_res = model.decode_masks(image_embeddings, spans[None], slots.any(-1)[None])[0]
    return jnp.where(is_text, nll, 0).sum() / is_text.sum(), low_res[0], tags[0]


def row_by_row(model, folder, questions, source):
    """{index: {"scores": {kind: [full_mean]}, "masks": [RLE of the correct answer]}}."""
    groups = {i: make_groups(i, q, model.tokenizer, model.config.data, source) for i, q in questions.items()}
    size = max(len(row.encoded.tokens) for kinds in groups.values() for group in kinds.values() for row in group.rows)
    found = {}
    for index, question in questions.items():
        view = model.view(load_image(Path(folder) / question.image_path))
        sizes = model.stack([view], [0], 1)
        embeddings = encode_image(model.graphdef, model.params, *sizes[1:3])
        scores, rles = {}, []
        for kind, group in groups[index].items():
            for row in group.rows:
                encoded, tokens, slot = row.encoded, np.zeros((2, 1, size), np.int32), None
                tokens[0, 0, : len(encoded.tokens)], tokens[1, 0, : len(encoded.tokens)] = encoded.tokens, encoded.span_of_token
                slot = np.array([len(encoded.tokens)], np.int32), np.array([encoded.image_position], np.int32)
                out = run_row(model.graphdef, model.params, sizes[0], embeddings, tokens[0], *slot, tokens[1])
                score, low_res, _ = jax.device_get(out)
                scores.setdefault(kind, []).append(float(score))
                images = type("Sizes", (), {"resized_hw": sizes[2], "original_hw": sizes[3]})
                masks = [model.mask(low, 1.0, images, 0)[0] for low in low_res[: encoded.num_spans]]
                if kind == "part" and row.choice.correct:
                    rles = [coco.encode(mask) for mask in masks]
        found[index] = {"scores": scores, "masks": rles}
    return found


def ours(model, folder, questions, source, modes):
    """{index: Prediction}."""
    runner = Runner(model, questions, source, modes=modes)
    return {p.index: p for image in runner.run(folder) for p in image}


def timed(run, *args):
    """(seconds of the second run, result)."""
    run(*args)
    began = time.perf_counter()
    result = run(*args)
    return time.perf_counter() - began, result


def compare(reference, predictions):
    """Largest difference of a score, share of equal choices, smallest IoU of a mask."""
    differences, same, ious = [], [], []
    for index, found in reference.items():
        for kind, scores in found["scores"].items():
            other = np.array(predictions[index].choice_scores[kind]["full_mean"])
            differences.append(np.abs(other - scores).max())
            same.append(int(np.argmin(other)) == int(np.argmin(scores)))
        for rle, span in zip(found["masks"], predictions[index].answers[GT_SPANS].spans, strict=True):
            a, b = coco.decode(rle), coco.decode(span.mask)
            ious.append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
    return {"score_difference": float(max(differences)), "same_choice": float(np.mean(same)), "mask_iou": float(min(ious))}


def measure(model, folder, split, images):
    """The figures for the questions of the first `images` images."""
    source, questions = questions_of(folder, split, None, images)
    slow, reference = timed(row_by_row, model, folder, questions, source)
    fast, predictions = timed(ours, model, folder, questions, source, (GT_SPANS,))
    every, _ = timed(ours, model, folder, questions, source, MODES)
    equal = compare(reference, predictions)
    assert equal["score_difference"] < TOLERANCE, equal
    return {
        "images": images, "questions": len(questions),
        "rows": sum(len(q.answer_choices) + len(q.object_answer_choices or ()) for q in questions.values()),
        "seconds_row_by_row": slow, "seconds": fast, "seconds_all_protocols": every,
        "questions_per_second_row_by_row": len(questions) / slow, "questions_per_second": len(questions) / fast,
        "ratio": slow / fast, "ratio_all_protocols": slow / every, "equal": equal,
    }  # fmt: skip


def main(argv=None):
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2, 8, 24], help="how many images (default 2 8 24)")
    parser.add_argument("--questions-per-image", type=int, default=10)
    parser.add_argument("--checkpoint", help="run folder, or the word tiny; default: random weights of --config")
    parser.add_argument("--config", default="configs/tiny.py", metavar="FILE.py[:ARG]")
    parser.add_argument("--json", metavar="FILE", help="also write the JSON object to this file")
    args, overrides = config_io.parse_args(parser, argv)
    enable_compilation_cache()
    model = Model(load_model(args.checkpoint) if args.checkpoint else initial_model(resolve_config(args.config, overrides)))
    with tempfile.TemporaryDirectory() as folder:
        wanted = Arguments(0, (("test", max(args.images)),), questions_per_image=args.questions_per_image)
        make_dataset(Path(folder) / "data", wanted, workers=os.cpu_count() or 1)
        sizes = [measure(model, Path(folder) / "data", "test", images) for images in args.images]
    result = {
        "model": args.checkpoint or args.config, "device": jax.devices()[0].device_kind, "cores": os.cpu_count(),
        "target": TARGET, "sizes": sizes, "reached": sizes[-1]["ratio"] >= TARGET,
    }  # fmt: skip
    print(f"{'images':>8}{'questions':>11}{'row by row':>14}{'ours':>12}{'ratio':>8}{'all protocols':>16}")
    for s in sizes:
        rates = (s["questions_per_second_row_by_row"], s["questions_per_second"], s["questions"] / s["seconds_all_protocols"])
        slow, fast, every = (f"{rate:.1f} q/s" for rate in rates)
        print(f"{s['images']:>8}{s['questions']:>11}{slow:>14}{fast:>12}{s['ratio']:>8.1f}{every:>16}")
    print(json.dumps(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="bench_eval"))
