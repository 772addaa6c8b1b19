"""What is drawn may not depend on the order in which Python happens to keep a set of words."""

import os
import subprocess
import sys
from pathlib import Path

from fixtures_folders import blocks, box, coco, write_image, write_json, write_labels, write_pickle

SCRIPT = """
import sys, numpy as np
from data_pipelines import part_annotations, refer, semantic
for module, name in ((semantic, "ade20k"), (part_annotations, "pascal_part"), (refer, "refcoco")):
    source = module.SOURCES[name](sys.argv[1], per_image=2)
    for index in range(len(source)):
        sample = source.sample(index, np.random.default_rng(index))
        print(sample.key, sample.dialogues, [int(mask.sum()) for mask in sample.masks], sorted(source.skipped.items()))
"""


def test_samples_are_the_same_under_any_hash_seed(tmp_path):
    images = [f"{name}.jpg" for name in ("b", "a", "c")]
    rings = [[box(3 * k, k, 3 * k + 9, 30)] for k in range(6)]
    for name in images:
        write_image(tmp_path / "ade20k/images/training" / name)
        write_labels(tmp_path / f"ade20k/annotations/training/{name[0]}.png", blocks(1, 2, 3, 4, 5, 6))
        write_image(tmp_path / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages" / name)
        write_image(tmp_path / "refer_seg/images/mscoco/images/train2014" / name)
    categories = [{"name": f"cat:{part}"} for part in ("eye", "ear", "tail", "leg", "nose", "head")]
    annotations = [(image, k + 1, ring) for image in (1, 2, 3) for k, ring in enumerate(rings)]
    write_json(tmp_path / "vlpart/pascal_part/train.json", coco(images, annotations, categories))
    write_json(tmp_path / "refer_seg/refcoco/instances.json", coco(images, annotations, categories))
    refs = [
        {"image_id": i // 6 + 1, "ann_id": i + 1, "split": "train", "sentences": [{"sent": f"thing {i}"}, {"sent": "it"}]}
        for i in range(18)
    ]
    write_pickle(tmp_path / "refer_seg/refcoco/refs(unc).p", refs)
    printed = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parent.parent,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    ]
    assert printed[0].count("Dialogue(") == 18
    assert "several meanings" in printed[0]
    assert printed[0] == printed[1] == printed[2]
