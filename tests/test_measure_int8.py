"""The figures of tools/measure_int8.py on cases whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.conversation import encode
from plum_jax.inference import Model
from tests import eval_fixtures
from tools import measure_int8


def test_change_of_each_token():
    before, after = np.zeros((1, 3), np.float32), np.array([[0.0, np.log(2.0), 0.0]], np.float32)
    found = measure_int8.change_per_token(before, after)
    assert found["largest"][0] == pytest.approx(np.log(2)) and found["mean"][0] == pytest.approx(np.log(2) / 3)
    assert found["kl"][0] == pytest.approx(np.log(4 / 3) * 2 / 3 + np.log(2 / 3) / 3, abs=1e-6)  # (1/3, ..) to (1/4, 1/2, 1/4)
    assert found["deviation"][0] == 0 and not found["same_choice"][0]


def answer(text, **masks):
    spans = [SimpleNamespace(phrase=phrase, mask=np.array(mask, bool)) for phrase, mask in masks.items()]
    return SimpleNamespace(text=text, spans=spans)


def test_masks_are_paired_by_phrase():
    one = [answer("a", Wheel=[1, 1, 0, 0], door=[0, 0], lid=[1]), answer("b")]
    two = [answer("a", door=[0, 0], wheel=[1, 0, 0, 0]), answer("c", lid=[1])]
    found = measure_int8.compare_answers(one, two)
    assert found == {
        "answers": 2, "same_text": 0.5, "paired_masks": 2, "unpaired_masks": 2, "mean_mask_iou": 0.75, "smallest_mask_iou": 0.5
    }  # fmt: skip
    assert measure_int8.compare_answers(one[1:], one[1:])["mean_mask_iou"] is None


def test_the_second_mask_of_a_phrase_is_paired_with_the_second():
    span = lambda mask: SimpleNamespace(phrase="leg", mask=mask)  # noqa: E731
    masks = measure_int8.masks_by_phrase(SimpleNamespace(spans=[span(1), span(2)]))
    assert masks == {("leg", 0): 1, ("leg", 1): 2}


def test_every_text_token_of_every_row_counts_once(quick_compilation):
    model = Model(eval_fixtures.loaded())
    pixels = np.full((20, 31, 3), 90, np.uint8)
    rows = [encode([("<image>\nWhat?", text)], model.tokenizer, "brief") for text in ("A wheel.", "A lid, and a door.")]
    found = measure_int8.compare_logits([model, model], [(pixels, row) for row in rows])
    assert found["tokens"] == sum(len(row.tokens) - 2 for row in rows)  # neither <s> nor the image is predicted
    assert found["largest_change"] == found["mean_kl"] == 0 and found["same_most_likely_token"] == 1
    assert found["deviation_of_logits"] > 0
