from data_pipelines import part_annotations, refer, semantic
from data_pipelines.expected import EXPECTED, EXPECTED_ANNOTATIONS


def test_every_size_belongs_to_a_split_that_can_be_opened():
    splits = {name: layout.splits for name, layout in (*semantic.LAYOUTS.items(), *part_annotations.LAYOUTS.items())}
    splits |= dict.fromkeys(refer.LAYOUTS, refer.SPLITS)
    others = {"llava_instruct_150k", "reason_seg"}
    assert EXPECTED.keys() - splits.keys() == others
    for name in EXPECTED.keys() - others:
        assert set(EXPECTED[name]) <= set(splits[name])
    assert EXPECTED_ANNOTATIONS.keys() <= EXPECTED.keys()
    assert (EXPECTED["ade20k"]["train"], EXPECTED["reason_seg"]["val"], EXPECTED_ANNOTATIONS["refcocog"]) == (
        20210,
        200,
        208960,
    )
