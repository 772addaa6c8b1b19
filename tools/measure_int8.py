"""What weight-only int8 of the language model changes: logits, greedy answers, masks, accuracy and bytes.

    python tools/measure_int8.py --checkpoint=tiny --data=DIR [--split=test --max-images=N]
    python tools/measure_int8.py --config=configs/tiny.py --config.model.llama.width=384      # random weights of that size

Without --data, images are rendered and accuracy is left out. Prints a table, then one JSON object.
"""

import argparse
import functools
import json
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.conversation import encode
from data_pipelines.images import boxed, load_image
from data_pipelines.make import Arguments, make_dataset
from data_pipelines.partonomy.records import conversations
from plum_jax import cli, config_io, console
from plum_jax.cache import enable_compilation_cache
from plum_jax.evaluation.folder import evaluate_folder
from plum_jax.evaluation.question_set import questions_of
from plum_jax.inference import Model, pad_rows
from plum_jax.initial import resolve_config
from plum_jax.loading import initial_model, load_model
from plum_jax.models.plum import bind, take_positions
from plum_jax.quantize import count_bytes, quantize_model

BATCH = 16
TOKEN_BUCKET = 32
SUMMARY = ("part_accuracy", "object_accuracy", "span_f1", "gmiou_macro", "gmiou_macro_published", "false_mask_rate")


@functools.partial(jax.jit, static_argnames="graphdef")
def row_logits(graphdef, params, image_tokens, tokens, counts, position):
    """float32[R, T - 1, V] next-token logits of padded rows: entry t predicts token t + 1."""
    model = bind(graphdef, params)
    embeds, at = model.embed(tokens, position, image_tokens)
    hidden = model.hidden(embeds, counts + model.num_image_tokens - 1)
    return model.logits(take_positions(hidden, at[:, 1:] - 1))[..., : model.config.llama.vocab_size]


@jax.jit
def change_per_token(before, after):
    """Logits float32[..., V] of two models -> {"largest", "mean", "kl", "deviation", "same_choice"}, arrays [...]."""
    change = jnp.abs(after - before)
    log_p, log_q = jax.nn.log_softmax(before), jax.nn.log_softmax(after)
    return {
        "largest": change.max(-1),
        "mean": change.mean(-1),
        "kl": (jnp.exp(log_p) * (log_p - log_q)).sum(-1),
        "deviation": before.std(-1),
        "same_choice": before.argmax(-1) == after.argmax(-1),
    }


def compare_logits(models, items):
    """Float and int8 Model, [(pixels, encoded row)] -> figures over all text tokens of the rows."""
    parts = []
    for start in range(0, len(items), BATCH):
        chunk = items[start : start + BATCH]
        tokens, counts = pad_rows([row.tokens for _, row in chunk], BATCH, TOKEN_BUCKET)
        position = np.array([row.image_position for _, row in chunk] + [chunk[0][1].image_position] * (BATCH - len(chunk)))
        images = models[0].encode_images([pixels for pixels, _ in chunk], BATCH)  # the towers are the same in both
        logits = [row_logits(m.graphdef, m.params, images.tokens, tokens, counts, position) for m in models]
        t = np.arange(1, tokens.shape[1])
        wanted = (t < counts[:, None]) & (t != position[:, None])
        wanted[len(chunk) :] = False
        parts.append({name: np.asarray(x)[wanted] for name, x in change_per_token(*logits).items()})
    every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {
        "tokens": len(every["kl"]),
        "deviation_of_logits": float(every["deviation"].mean()),
        "largest_change": float(every["largest"].max()),
        "mean_change": float(every["mean"].mean()),
        "mean_kl": float(every["kl"].mean()),
        "largest_kl": float(every["kl"].max()),
        "same_most_likely_token": float(every["same_choice"].mean()),
    }


def compare_answers(answers, others):
    """Answers of the float and of the int8 model to the same questions -> how many agree, and the IoU of their masks.

    Masks are paired by phrase, the n-th of a phrase with the n-th; two empty masks have IoU 1.
    """
    ious, unpaired = [], 0
    for answer, other in zip(answers, others, strict=True):
        left, right = masks_by_phrase(answer), masks_by_phrase(other)
        unpaired += len(left.keys() ^ right.keys())
        for key in left.keys() & right.keys():
            union = (left[key] | right[key]).sum()
            ious.append(float((left[key] & right[key]).sum() / union) if union else 1.0)
    return {
        "answers": len(answers),
        "same_text": float(np.mean([a.text == b.text for a, b in zip(answers, others, strict=True)])),
        "paired_masks": len(ious),
        "unpaired_masks": unpaired,
        "mean_mask_iou": float(np.mean(ious)) if ious else None,
        "smallest_mask_iou": min(ious, default=None),
    }


def masks_by_phrase(answer):
    """Answer -> {(phrase, how many of it came before): bool[H, W]}."""
    seen, masks = {}, {}
    for span in answer.spans:
        phrase = span.phrase.lower()
        masks[phrase, seen.setdefault(phrase, 0)] = span.mask
        seen[phrase] += 1
    return masks


def measure(loaded, folder, split, max_images, accuracy):
    """-> {"bytes", "logits", "answers", and with `accuracy` "accuracy"} of a LoadedModel on a PARTONOMY folder."""
    both = loaded, quantize_model(loaded)
    models = [Model(one) for one in both]
    questions = list(questions_of(folder, split, None, max_images)[1].values())
    correct = [next(c for c in conversations(q) if c.correct) for q in questions]
    pictures = [(q.image_path, q.highlight_box) for q in questions]
    first = dict(reversed(list(zip(pictures, correct, strict=True))))  # one question per picture
    pixels = {picture: load_image(boxed(Path(folder) / picture[0], picture[1])) for picture in first}
    template = loaded.config.data.template
    items = [(pixels[p], encode(c.turns, loaded.tokenizer, template)) for p, c in zip(pictures, correct, strict=True)]
    prompts = [choice.turns[0][0].removeprefix("<image>\n") for choice in first.values()]
    images = [pixels[picture] for picture in first]
    result = {
        "bytes": dict(zip(("float", "int8"), (count_bytes(one.params) for one in both), strict=True)),
        "logits": compare_logits(models, items),
        "answers": compare_answers(*(model.answer(images, prompts) for model in models)),
    }
    if accuracy:
        with tempfile.TemporaryDirectory() as out:
            found = [evaluate_folder(m, folder, split, Path(out) / str(i), max_images=max_images) for i, m in enumerate(models)]
        figures = [{name: one["summary"][name] for name in ("n_instances", *SUMMARY)} for one in found]
        result["accuracy"] = dict(zip(("float", "int8"), figures, strict=True))
    return result


def print_table(result):
    """The figures as lines 'what: value', or float beside int8."""
    for part, size in result["bytes"]["float"].items():
        print(f"{'bytes, ' + part:<32}{console.size(size):>12}{console.size(result['bytes']['int8'][part]):>12}")
    for group in ("logits", "answers"):
        for name, value in result[group].items():
            shown = "-" if value is None else f"{value:.4g}"
            print(f"{group + ', ' + name.replace('_', ' '):<44}{shown:>12}")
    for name, value in result.get("accuracy", {}).get("float", {}).items():
        cells = ("-" if x is None else f"{x:.3f}" for x in (value, result["accuracy"]["int8"][name]))
        print(f"{name:<32}" + "".join(f"{cell:>12}" for cell in cells))


def main(argv):
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny", help="run folder, or the word tiny (default)")
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help="random weights of this config instead of a checkpoint")
    parser.add_argument("--data", help="PARTONOMY folder; without it images are rendered and accuracy is left out")
    parser.add_argument("--split", default="test")
    parser.add_argument("--max-images", type=int, default=40)
    parser.add_argument("--json", help="also write the JSON object to this file")
    args, overrides = config_io.parse_args(parser, argv)
    enable_compilation_cache()
    loaded = initial_model(resolve_config(args.config, overrides)) if args.config else load_model(args.checkpoint)
    with tempfile.TemporaryDirectory() as rendered:
        if args.data is None:
            make_dataset(Path(rendered) / "data", Arguments(0, ((args.split, args.max_images),)), workers=os.cpu_count() or 1)
        folder = args.data or Path(rendered) / "data"
        result = measure(loaded, folder, args.split, args.max_images, accuracy=args.data is not None)
    result = {"model": args.config or args.checkpoint, "device": jax.devices()[0].device_kind, **result}
    print_table(result)
    print(json.dumps(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="measure_int8"))
