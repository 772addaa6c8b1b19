"""Questions with a box around one of several objects of a kind: every loader of their images draws it (D 2.2)."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures_partonomy import question, write_entries
from PIL import Image

from configs.tiny import get_config
from data_pipelines.arrayrecord import ArrayRecordSource
from data_pipelines.build import build
from data_pipelines.explanatory import Explanatory
from data_pipelines.gallery import Entry, make_card
from data_pipelines.images import BoxedImage, StoredImage, boxed, draw_box, load_image
from data_pipelines.partonomy.records import read_questions
from data_pipelines.partonomy.source import PartonomySource
from data_pipelines.rows import RowBuilder
from data_pipelines.tokenizer import load_tokenizer
from plum_jax.evaluation import runner
from plum_jax.evaluation.prediction import Prediction

HW = (96, 96)  # the size of the tiny model's views: nothing is resized
LEFT, RIGHT = (10, 20, 40, 60), (52, 20, 90, 60)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture
def folder(tmp_path):
    """One photograph with three questions: about the left lamp, the right one, and without a box."""
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((*HW, 3), 90, np.uint8)).save(tmp_path / "images/a.png")
    entry = question("images/a.png", HW)
    write_entries(tmp_path, [{**entry, "highlight_box": LEFT}, {**entry, "highlight_box": RIGHT}, entry])
    return tmp_path


def frame(box, hw=HW):
    """bool[H, W]: the pixels of a line 3 wide whose outer edge is 5 pixels around the box."""
    x0, y0, x1, y1 = box
    found = np.zeros(hw, bool)
    found[max(y0 - 5, 0) : y1 + 5, max(x0 - 5, 0) : x1 + 5] = True
    found[max(y0 - 5, 0) + 3 : min(y1 + 5, hw[0]) - 3, max(x0 - 5, 0) + 3 : min(x1 + 5, hw[1]) - 3] = False
    return found


def assert_boxed(pixels, box):
    """The grey picture with that box alone."""
    expected = np.full((*HW, 3), 90)
    if box is not None:
        expected[frame(box)] = (255, 0, 0)
    np.testing.assert_array_equal(pixels, expected)


def test_only_the_pixels_of_the_box_change(folder):
    path = folder / "images/a.png"
    for box in (LEFT, RIGHT, None, (0, 0, 96, 96)):
        assert_boxed(load_image(boxed(path, box)), box)
    stored = StoredImage("a", path.read_bytes())
    assert_boxed(load_image(BoxedImage(stored, LEFT)), LEFT)
    assert str(boxed(stored, LEFT)) == "a"
    picture = Image.new("RGB", (20, 20))
    draw_box(picture, (100, 100, 130, 130))  # of another picture
    assert not np.asarray(picture).any()


def test_coordinates_are_those_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png", exif=exif)
    drawn = load_image(boxed(tmp_path / "a.png", (10, 30, 20, 50)))
    assert drawn.shape == (60, 40, 3)
    np.testing.assert_array_equal(drawn[..., 0] == 255, frame((10, 30, 20, 50), (60, 40)))


def test_training_on_the_folder_keeps_the_boxes_of_a_photograph_apart(folder, tokenizer):
    config = get_config()
    config.data.update(template="llava_v1", max_tokens=120)
    source = PartonomySource(folder, "train", config, tokenizer)
    assert [record.highlight_box for record in source.records] == [LEFT, RIGHT, None]
    for record in source.records:
        row = source.row(record, (0,), grounded=True)[0]
        assert_boxed(row["sam_pixels"], record.highlight_box)
        assert_boxed(row["clip_pixels"], record.highlight_box)


@pytest.mark.parametrize("at_random", [True, False])
def test_the_mixture_keeps_them_apart_from_folder_and_build(folder, tmp_path, tokenizer, at_random):
    config = get_config()
    config.loss.patch = 0.0
    config.data.update(template="llava_v1", max_tokens=120)
    options = {"sample_one_question_per_image": at_random}
    raw = Explanatory(folder, **options)
    build("explanatory", folder, tmp_path / "built", options=options, log=lambda line: None)
    built = ArrayRecordSource(tmp_path / "built", **options)
    assert len({raw.record(index)["key"] for index in range(3)}) == len(raw) == len(built) == 3
    rows = RowBuilder(config, tokenizer)
    for source in (raw, built):
        for index, box in enumerate((LEFT, RIGHT, None)):
            row, account = rows.build(source, index, np.random.default_rng(0), grounded=True, sample_id=index)
            assert not account.total("skipped:")
            assert_boxed(row["sam_pixels"], box)
            assert_boxed(row["clip_pixels"], box)


def test_evaluation_encodes_each_box_once(folder, monkeypatch):
    monkeypatch.setattr(runner, "Programs", lambda *args: SimpleNamespace(share=lambda images: 8, count=1))

    class Model:
        config, tokenizer = get_config(), load_tokenizer("tiny")
        seen = []

        def view(self, pixels):
            self.seen.append(pixels)

    questions = read_questions(folder / "partonomy_qa_pairs_train.json") * 2
    run = runner.Runner(Model(), questions, folder)
    assert run.order == [0, 3, 1, 4, 2, 5]
    monkeypatch.setattr(run, "_chunk", lambda paths, views, size: paths)
    with ThreadPoolExecutor(1) as threads:
        (pictures,) = run.chunks(folder, threads)
    assert pictures == [("images/a.png", box) for box in (LEFT, RIGHT, None)]
    for image, box in zip(Model.seen, (LEFT, RIGHT, None), strict=True):
        assert_boxed(image, box)
    found = [Prediction(i, "images/a.png", "", {}, {}) for i in run.order]
    assert [[p.index for p in members] for members in run._finished(found, 0)] == [[0, 3], [1, 4], [2, 5]]


def test_the_gallery_shows_what_the_model_sees(folder, monkeypatch):
    shown = []
    monkeypatch.setattr("data_pipelines.gallery.jpeg_uri", lambda pixels: (shown.append(pixels), ("data:", (96, 96)))[1])
    entries = json.loads((folder / "partonomy_qa_pairs_train.json").read_text())
    for number, asked in enumerate(read_questions(folder / "partonomy_qa_pairs_train.json")):
        assert not make_card(folder, Entry("file", "train", number, asked)).problems
        assert_boxed(shown[number], entries[number].get("highlight_box"))


def test_a_card_of_the_report_shows_what_the_model_saw(folder, monkeypatch):
    from plum_jax.evaluation.partonomy import score_instance
    from plum_jax.report import cards, instances

    seen = []
    monkeypatch.setattr(cards, "jpeg_uri", lambda image: seen.append(image) or ("data:", image.shape[:2]))
    for index, asked in enumerate(read_questions(folder / "partonomy_qa_pairs_train.json")):
        made = Prediction(index, asked.image_path, asked.question_type, {}, {})
        record = json.loads(json.dumps(score_instance(asked, made, HW)))
        row = instances._instance(record)
        cards.make_card(row, folder, "answer_mean")
    for pixels, box in zip(seen, (LEFT, RIGHT, None), strict=True):
        assert_boxed(pixels, box)
    assert instances._instance({**record, "highlight_box": "left"}).highlight_box is None
