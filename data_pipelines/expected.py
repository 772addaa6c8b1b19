"""How large the data sets are when they are complete (D 4.1.7), for the check of a folder."""

EXPECTED = {  # {data set: {split: images, or conversations of those without an index of images}}
    "ade20k": {"train": 20_210},
    "cocostuff": {"train": 118_287},
    "mapillary": {"train": 18_000},
    "paco_lvis": {"train": 45_790},
    "pascal_part": {"train": 4_366},
    "refclef": {"train": 17_978},
    "refcoco": {"train": 16_994},
    "refcoco+": {"train": 16_992},
    "refcocog": {"train": 21_899},
    "llava_instruct_150k": {"train": 157_712},
    "reason_seg": {"train": 239, "val": 200},
}

EXPECTED_ANNOTATIONS = {  # of the whole instances.json, all splits; of ReasonSeg the explanations
    "refclef": 99_523,
    "refcoco": 196_771,
    "refcoco+": 196_737,
    "refcocog": 208_960,
    "reason_seg": 239,
}
