"""CPU seconds per 1,000 questions that scoring takes, on random predictions in all four modes for images of 640 x 480.

    python tools/bench_score.py [--questions 1000] [--parts 5] [--profile]

A baseline for the speed of `plum score`: masks are ellipses with ragged rims, and every answer has its own.
"""

import argparse
import cProfile
import json
import pstats
import time

import numpy as np

from data_pipelines.conversation import join_parts
from data_pipelines.partonomy.records import parse_question
from plum_jax import coco
from plum_jax.evaluation import partonomy
from plum_jax.evaluation.prediction import GENERATED, GT_ANSWER, GT_SPANS, OWN, Answer, Prediction, Span

HW = (480, 640)
PARTS = ("base", "body", "cord", "handle", "lid", "lip", "spout", "stand")
TYPES = ("identification", "identification_with_label", "positive", "positive_with_label", "negative")  # of one image


def ellipse(rng):
    """bool[H, W] with a rim as ragged as a thresholded mask of a network."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    centre, radius = rng.uniform(0.2, 0.8, 2) * HW, rng.uniform(0.03, 0.25, 2) * HW[0]
    angle = np.arctan2(y - centre[0], x - centre[1])
    ragged = 1 + 0.05 * np.sin(23 * angle + rng.uniform(0, 6)) + 0.03 * np.sin(61 * angle)
    return ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < ragged


def make(questions, parts, rng):
    """[(Question, Prediction)]: `TYPES` for each image, in a row."""
    names, pairs = list(PARTS[:parts]), []
    lists = [names, names[:-1], names[1:], [*names, "tail"], ["tail", "wing"]]
    pool = [coco.encode(ellipse(rng)) for _ in range(200)]
    shift = lambda: coco.encode(np.roll(coco.decode(pool[rng.integers(200)]), rng.integers(-9, 9, 2), (0, 1)))  # noqa: E731
    while len(pairs) < questions:
        image = len(pairs) // len(TYPES)
        segmentations = {name: [shift()] for name in names}
        for kind in TYPES:
            entry = {
                "image_path": f"images/{image}.jpg", "image_label": "pot", "question": "What?", "question_type": kind,
                "answer_choices": [f"The pot has: {join_parts(some)}." for some in lists],
                "answer_types": ["correct"] + ["incorrect"] * 4, "answer_parts": lists, "segmentations": segmentations,
            }  # fmt: skip
            question, index = parse_question(entry, "questions.json", len(pairs)), len(pairs)
            answers = {}
            for mode, choice in ((GT_SPANS, 0), (GT_ANSWER, 0), (OWN, 3), (GENERATED, None)):
                spans = tuple(Span(name, shift(), score=0.5, raw=0.5) for name in names)
                answers[mode] = Answer(question.answer_choices[choice or 0], spans, choice)
            scores = {name: rng.random(5).tolist() for name in ("answer_mean", "answer_sum", "full_mean")}
            pairs.append((question, Prediction(index, question.image_path, kind, {"part": scores}, answers)))
    return pairs[:questions]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="also say where the time goes")
    args = parser.parse_args()
    pairs = make(args.questions, args.parts, np.random.default_rng(0))
    scorer = partonomy.Scorer("test", "questions.json")
    profile = cProfile.Profile()
    if args.profile:
        profile.enable()
    began = time.process_time()
    records = [scorer.score(question, prediction, HW) for question, prediction in pairs]
    middle = time.process_time()
    partonomy.protocols(records)
    end = time.process_time()
    profile.disable()
    thousands = args.questions / 1000
    found = {"questions": args.questions, "parts": args.parts, "masks": 5 * args.parts * args.questions}
    found["cpu_seconds_per_1000"] = {
        "records": round((middle - began) / thousands, 2),
        "results": round((end - middle) / thousands, 2),
    }
    print(json.dumps(found))
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
