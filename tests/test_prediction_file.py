"""predictions.jsonl: what is written is what is read, and scoring needs no jax."""

import json
import subprocess
import sys

import pytest

from plum_jax.evaluation import prediction_file
from plum_jax.evaluation.prediction import GENERATED, GT_SPANS, OWN, Answer, Prediction, Span

RLE = {"size": [4, 5], "counts": "44<"}


def predictions():
    tagged = Span("a wheel", RLE, (3, 10), "wheel", 0.1 + 0.2, 1 / 3, "low_confidence")
    answers = {
        GT_SPANS: Answer("It has a wheel.", (Span("a wheel", RLE, (3, 10), "wheel", 0.5, 0.5),), 2),
        OWN: Answer("It has a wheel.", (tagged,), 2, {"matched": 1, "predicted": 1, "target": 1}, ((5, 6), (1, 1), (0, 0))),
        GENERATED: Answer("No parts.", ()),
    }
    scores = {"part": {"answer_mean": [0.1, 0.7]}, "object": {"answer_mean": [0.3, 1e-17]}}
    yield Prediction(0, "images/ä.png", "part_to_whole", scores, answers)
    yield Prediction(7, "images/1.png", "positive", {}, {OWN: Answer("ok", (Span("ok", RLE),))}, {"part": 0})
    yield Prediction(9, "images/2.png", "negative", {}, {}, skipped="image_unreadable")


def test_lines_are_read_as_they_were_written(tmp_path):
    path, made = tmp_path / "predictions.jsonl", list(predictions())
    prediction_file.append(path, made[:1])
    prediction_file.append(path, made[1:])
    assert list(prediction_file.read(path)) == made
    assert len(path.read_text().splitlines()) == 3


def test_optional_fields_that_say_nothing_are_left_out():
    short = prediction_file.to_json(list(predictions())[2])
    assert set(short) == {"index", "image_path", "question_type", "choice_scores", "answers", "skipped"}
    span = prediction_file.to_json(list(predictions())[1])["answers"][OWN]["spans"][0]
    assert span == {"phrase": "ok", "mask": RLE}
    assert json.loads(json.dumps(span)) == span


def test_a_field_that_nobody_knows_is_an_error():
    with pytest.raises(TypeError, match="colour"):
        prediction_file.from_json({"index": 0, "image_path": "a", "question_type": "negative", "colour": 1})


def test_scoring_imports_no_jax():
    code = (
        "import sys; from plum_jax.evaluation import partonomy, prediction_file, targets, masks, text, spans; "
        "import data_pipelines.partonomy.records; print('jax' in sys.modules or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
