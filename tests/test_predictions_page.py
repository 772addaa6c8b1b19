"""What docs/predictions.md says about the file is so: its examples are read, its fields are those of the schema."""

import json
import re
from pathlib import Path

import pytest

from data_pipelines.partonomy.records import read_questions
from plum_jax import coco
from plum_jax.errors import UserError
from plum_jax.evaluation import collect, schema
from plum_jax.evaluation.prediction import GENERATED, GT_SPANS, MODES, OWN, STATUSES
from tests import eval_fixtures

PAGE = (Path(__file__).parent.parent / "docs" / "predictions.md").read_text(encoding="utf-8")
BLOCKS = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture
def predictions(tmp_path):
    """Examples -> what is read from them, about images of the example's size."""
    eval_fixtures.write_folder(tmp_path, sizes=((4, 5), (4, 5)))
    source = tmp_path / "partonomy_qa_pairs_test.json"

    def read(value):
        path = tmp_path / "preds.json"
        path.write_text(json.dumps(value))
        return collect.collect([path], read_questions(source), source).predictions

    return read


def test_the_smallest_prediction_is_read(predictions):
    found = predictions(BLOCKS[0])[0]
    wheel, door = found.answers[OWN].spans
    assert found.predicted == {"part": 2} and (wheel.phrase, door.phrase) == ("wheel", "door")
    assert coco.decode(wheel.mask).sum() == 3 and coco.decode(door.mask).sum() == 4


def test_the_answers_of_several_modes_are_read(predictions):
    found = predictions([BLOCKS[1]])[3]
    assert set(found.answers) == {GT_SPANS, GENERATED} and found.predicted == {"part": 1}
    assert found.answers[GENERATED].spans[0].status == "empty_mask"


def test_the_error_on_the_page_is_the_one_that_comes(predictions):
    said = re.search(r"preds\.json: entry 12: (.*)", PAGE).group(1)
    broken = {"index": 0, "answer": {"spans": [{"phrase": "wheel", "mask": {"size": [4, 5]}}]}}
    with pytest.raises(UserError) as error:
        predictions([broken])
    assert str(error.value).endswith(f"preds.json: entry 0: {said}")


def test_every_field_of_the_schema_is_on_the_page():
    definitions = json.loads(schema.SCHEMA_FILE.read_text())["$defs"]
    for name in ("prediction", "answer", "answer_of_some_mode", "span", "mask"):
        for field in definitions[name]["properties"]:
            assert f"`{field}`" in PAGE, field
    assert tuple(definitions["answer_of_some_mode"]["properties"]["mode"]["enum"]) == MODES
    assert tuple(definitions["prediction"]["properties"]["answers"]["properties"]) == MODES
    assert set(definitions["span"]["properties"]["status"]["enum"]) == set(STATUSES)
    assert all(f"`{word}`" in PAGE for word in (*MODES, *STATUSES))
