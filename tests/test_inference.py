"""A loaded model as a function: batches, masks of any phrase, sizes, errors."""

import numpy as np
import pytest
from PIL import Image

from plum_jax import coco, inference, overlay
from plum_jax.errors import UserError
from plum_jax.evaluation.calibration import Calibration
from plum_jax.resize import to_original
from tests import eval_fixtures

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, (*hw, 3), np.uint8) for hw in ((20, 31), (50, 17), (32, 32))]
PROMPTS = ["What visible parts does the dog have?", "What is this?", "Name every part of the lamp that one can see here."]


@pytest.fixture(scope="module")
def model():
    return inference.Model(eval_fixtures.loaded())


@pytest.fixture(scope="module")
def answers(model):
    return model.answer(IMAGES, PROMPTS, batch_size=4)


def test_answers_have_text_and_masks_of_the_image_size(answers):
    assert any(answer.spans for answer in answers)  # else the tests below say nothing
    for answer, image in zip(answers, IMAGES, strict=True):
        assert answer.text and answer.image is image
        for span in answer.spans:
            assert answer.text[span.char_start : span.char_end] == span.phrase == span.phrase.strip() != ""
            assert span.mask.shape == image.shape[:2] and span.mask.dtype == bool
            assert 0 <= span.score <= 1
            assert span.status == ("ok" if span.mask.any() else "empty_mask")


def test_batched_equals_one_by_one(model, answers):
    for image, prompt, want in zip(IMAGES, PROMPTS, answers, strict=True):
        got = model(image, prompt)
        assert got.text == want.text and got.status == want.status
        assert [s.char_span for s in got.spans] == [s.char_span for s in want.spans]
        for a, b in zip(got.spans, want.spans, strict=True):
            assert (a.mask != b.mask).mean() < 1e-3  # a logit within rounding of zero may fall on either side
            assert a.score == pytest.approx(b.score, abs=1e-3)


def test_mask_for_a_tagged_phrase_is_its_mask(answers):
    for answer in answers:
        for span in answer.spans:
            again = answer.mask_for(span.char_span)
            assert (again.mask != span.mask).mean() < 1e-3
            assert again.score == pytest.approx(span.score, abs=1e-3)


def test_mask_for_any_phrase(answers):
    answer = answers[0]
    word = answer.text.strip()[:5].strip()
    span = answer.mask_for(f" {word.upper()} ")
    assert span.phrase.lower() == word.lower() and span.mask.shape == IMAGES[0].shape[:2]
    with pytest.raises(UserError, match="propeller.*not in the answer"):
        answer.mask_for("propeller")
    with pytest.raises(UserError, match="outside the answer"):
        answer.mask_for((0, len(answer.text) + 1))


def test_scores_use_the_calibration_and_the_threshold(model, answers):
    spans = [span for answer in answers for span in answer.spans if span.mask.any()]
    other = inference.Model(eval_fixtures.loaded())
    other.calibration, other.min_score = Calibration((0.0, 1.0), (0.2, 0.4), 50), 0.39
    again = [span for answer in other.answer(IMAGES, PROMPTS, batch_size=4) for span in answer.spans if span.mask.any()]
    for before, after in zip(spans, again, strict=True):
        assert after.score == pytest.approx(0.2 + 0.2 * before.score, abs=1e-5)
        assert after.status == ("ok" if after.score >= 0.39 else "low_confidence")


def test_paths_exif_and_arrays_are_the_same_image(tmp_path, model):
    upright = np.zeros((10, 16, 3), np.uint8)
    upright[:3] = (250, 10, 10)
    image = Image.fromarray(np.rot90(upright, 1))  # stored on its side, with the tag that says so
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "side.png", exif=exif)
    np.testing.assert_array_equal(inference.as_pixels(tmp_path / "side.png"), upright)
    np.testing.assert_array_equal(inference.as_pixels(str(tmp_path / "side.png")), inference.as_pixels(upright))
    np.testing.assert_array_equal(inference.as_pixels(Image.fromarray(upright)), upright)


def test_bad_input_is_named(model, tmp_path):
    with pytest.raises(UserError, match="nothing.png"):
        model(tmp_path / "nothing.png", "What?")
    with pytest.raises(UserError, match=r"float32\[2, 2\]"):
        model(np.zeros((2, 2), np.float32), "What?")
    with pytest.raises(UserError, match="3 images but 2 prompts"):
        model.answer(IMAGES, PROMPTS[:2])
    with pytest.raises(UserError, match="nowhere"):
        inference.load(tmp_path / "nowhere")


def test_to_coco_and_show(answers):
    for answer in answers:
        document = answer.to_coco("a.png")
        assert document["images"][0]["file_name"] == "a.png"
        kept = [span for span in answer.spans if span.status == "ok"]
        for span, annotation in zip(kept, document["annotations"], strict=True):
            np.testing.assert_array_equal(coco.decode(annotation["segmentation"]), span.mask)
        assert answer.show().width >= overlay.SMALLEST // 4


@pytest.mark.parametrize("original_hw", [(20, 31), (480, 640), (333, 200), (1, 7)])
def test_original_logits_equal_the_device_version(original_hw):
    size, low = 96, RNG.normal(size=(24, 24)).astype(np.float32)
    resized = tuple(max(1, int(x * size / max(original_hw) + 0.5)) for x in original_hw)
    want = to_original(low, np.array(resized), np.array(original_hw), size, (490, 650))
    got = inference.original_logits(low, resized, original_hw, size)
    np.testing.assert_allclose(got, want[: original_hw[0], : original_hw[1]], atol=1e-5)


def test_token_offsets_cover_the_text():
    tokenizer = eval_fixtures.loaded().tokenizer
    tokens = tokenizer("The caf\u00e9 \u20ac5 lamp has a shade.", add_special_tokens=False)["input_ids"] + [
        tokenizer.eos_token_id
    ]
    text, offsets = inference.token_offsets(tokenizer, tokens)
    assert text == "The caf\u00e9 \u20ac5 lamp has a shade."
    assert offsets[0][0] == 0 and offsets[-1] == (len(text), len(text))
    assert all(a[1] == b[0] for a, b in zip(offsets, offsets[1:], strict=False))
    assert inference.token_offsets(tokenizer, []) == ("", [])


def with_eval(**changes):
    """A Model of the same weights with other settings in config.eval."""
    loaded = eval_fixtures.loaded()
    config = loaded.config.copy_and_resolve_references()
    config.eval.update(changes)
    return inference.Model(type(loaded)(**{**vars(loaded), "config": config}))


def test_spans_of_the_whole_row(model, answers):
    """The reference's scope (M D27): tags in prompt and image give masks without a phrase, before those of the answer."""
    whole = with_eval(span_scope="all", feedback=False).answer(IMAGES, PROMPTS, batch_size=4)
    outside = [[span.char_span == (0, 0) for span in answer.spans] for answer in whole]
    assert any(map(any, outside))
    for got, want, before in zip(whole, answers, outside, strict=True):
        assert got.text == want.text
        assert before == sorted(before, reverse=True)
        places = {span.char_span for span in got.spans}
        assert {span.char_span for span in want.spans[1:]} <= places  # the first may have begun in the prompt
        for span in got.spans:
            if span.phrase:
                assert (got.mask_for(span.char_span).mask != span.mask).mean() < 1e-3
        assert got.show() and len(got.to_coco()["annotations"]) == sum(span.status == "ok" for span in got.spans)


def test_masks_without_feedback(answers):
    """As from a merged checkpoint of the reference (M D20): only masks behind another one change."""
    alone = with_eval(feedback=False).answer(IMAGES, PROMPTS, batch_size=4)
    changed = 0
    for got, want in zip(alone, answers, strict=True):
        assert [span.char_span for span in got.spans] == [span.char_span for span in want.spans]
        for rank, (a, b) in enumerate(zip(got.spans, want.spans, strict=True)):
            changed += a.score != pytest.approx(b.score, abs=1e-5)
            assert rank or a.score == pytest.approx(b.score, abs=1e-5)
    assert changed


def test_the_prompt_of_the_slow_tokenizer(model):
    loaded = eval_fixtures.loaded()
    config = loaded.config.copy_and_resolve_references()
    config.data.unlock()
    config.data.tokenizer_flavour = "slow"
    slow = inference.Model(type(loaded)(**{**vars(loaded), "config": config})).encode_prompt("What?")
    fast = model.encode_prompt("What?")
    assert (slow.image_position, slow.text.count(" ")) == (fast.image_position - 1, fast.text.count(" ") - 1)
    assert "\n" in fast.text and "\n" not in slow.text


def test_unknown_switches_are_named_before_anything_runs():
    with pytest.raises(UserError, match="config.eval.span_scope: 'prompt' is not known; use assistant or all"):
        with_eval(span_scope="prompt")
