"""The mixture of the reference's pre-training from folders in their real layouts, through the classes that read them."""

import itertools

import numpy as np
import pytest
from source_fixtures import mixture_config
from test_build_families import CASES

from data_pipelines.pipeline import batches, open_data
from data_pipelines.tokenizer import load_tokenizer

SOURCES = (
    {"name": "semantic", "weight": 9.0, "datasets": ("ade20k", "mapillary", "pascal_part")},
    {"name": "refer", "weight": 5.0, "datasets": ("refcoco",)},
    {"name": "vqa", "weight": 5.0},
    {"name": "reason", "weight": 1.0},
)


@pytest.mark.filterwarnings("ignore:.*queries have no response")
def test_families_in_their_real_layouts_make_one_stream(tmp_path):
    for name in ("ade20k", "mapillary", "pascal_part", "refcoco", "vqa", "reason"):
        CASES[name][0](tmp_path)
    tokenizer = load_tokenizer("tiny")
    config = mixture_config(sources=SOURCES, root=str(tmp_path), max_tokens=160, conversations=2)
    source = open_data(config, tokenizer)
    assert source.grounded == (3, 4) and [fact["share"] for fact in source.describe()] == [0.15] * 3 + [0.25, 0.25, 0.05]
    stream = batches(config, tokenizer, source=source)
    for step, batch in enumerate(itertools.islice(stream, 20)):
        for row, sample_id in enumerate(batch.sample_id):
            family = source.of(sample_id)[0].family
            assert (family == "vqa") == (row % 4 == 3)
            assert not batch.span_valid[row].any() if family == "vqa" else True
        again = next(batches(config, tokenizer, source=source, start=step))
        assert all(np.array_equal(a, b) for a, b in zip(batch, again, strict=True) if a is not None)
    summary = stream.account.summary()
    assert set(summary["families"]) == {"semantic", "refer", "vqa", "reason"}
    assert set(summary["messages"]) == {"ade20k, record", "pascal_part, record"}  # one record of each has nothing to ask for
    for family, counts in summary["families"].items():
        assert (counts.get("masks", 0) > 0) == (family != "vqa"), family
        assert counts["conversations"] >= counts["draws"] - counts.get("skipped: record", 0) > 0, family
