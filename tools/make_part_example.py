"""A small COCO data set of things and their parts: `python tools/make_part_example.py --out my_parts` (docs/your_own_parts.md).

Writes images/ and annotations.json. Categories are called `truck` and `truck:wheel`. Parts that nothing covers are polygons, as
labelling programs write them; parts that something covers, and whole objects, are run lengths.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data_pipelines.masks import encode_rle
from data_pipelines.synthetic.objects import OBJECTS
from data_pipelines.synthetic.render import OVERSAMPLING, draw_ids, shaded_picture
from data_pipelines.synthetic.scenes import Difficulty, sample_scene
from plum_jax import cli
from plum_jax.console import check_out
from plum_jax.errors import UserError

KINDS = ("car", "desk lamp", "floor lamp", "train", "truck")
ENTRIES_OF_AN_OBJECT = 10  # scenes.sample_scene numbers the pieces of the second object from here on
AS_DRAWN = 0.9  # intersection over union of a polygon with what is visible, from which on the polygon is written
SMALLEST = 0.006  # share of the picture, of a part


def visible_regions(scene):
    """-> (picture, {(object number, part): (mask uint8[H, W], [polygon float32[n, 2]])}), each part as one region."""
    ids = draw_ids(scene)
    sampled = ids[OVERSAMPLING // 2 :: OVERSAMPLING, OVERSAMPLING // 2 :: OVERSAMPLING]
    regions = {}
    for number, layer in enumerate(scene.layers, 1):
        if layer.part:
            mask, polygons = regions.setdefault((layer.entry // ENTRIES_OF_AN_OBJECT, layer.part), (np.zeros_like(sampled), []))
            mask |= (sampled == number).astype(np.uint8)
            polygons.append(layer.points)
    return shaded_picture(scene, ids, sampled), {key: value for key, value in regions.items() if value[0].any()}


def draw(seed, index, size):
    """Picture `index` -> (object name, picture, regions) in which every visible part is large enough to be labelled."""
    number = [kind.name for kind in OBJECTS].index(KINDS[index % len(KINDS)])
    for attempt in range(100):
        rng = np.random.default_rng([seed, index, attempt])
        scene = sample_scene(number, "train", rng, size, Difficulty())
        picture, regions = visible_regions(scene)
        if len(regions) > 1 and min(mask.mean() for mask, _ in regions.values()) >= SMALLEST:
            return scene.label, picture, regions
    raise RuntimeError(f"no scene in 100 attempts has parts of {SMALLEST:.1%} of the picture or more")


def segmentation(mask, polygons):
    """COCO polygons where they cover what is visible, else run lengths."""
    height, width = mask.shape
    flat = [np.round(points, 1).ravel().tolist() for points in polygons]
    drawn = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))
    overlap = coco_mask.iou([drawn], [encode_rle(mask)], [0])[0, 0]
    return flat if overlap >= AS_DRAWN else encode_rle(mask)


def annotation(number, image_id, category_id, mask, entry):
    rle = encode_rle(mask)
    return {
        "id": number, "image_id": image_id, "category_id": category_id, "iscrowd": 0, "area": int(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(), "segmentation": entry,
    }  # fmt: skip


def make_example(out, *, images=20, size=128, seed=0):
    """Writes images/ and annotations.json into `out` and returns the content of the latter."""
    folder = Path(out) / "images"
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for kind in OBJECTS if kind.name in KINDS for name in (kind.name, *(f"{kind.name}:{p}" for p in kind.parts))]
    category = {name: number for number, name in enumerate(sorted(names), 1)}
    coco = {"images": [], "annotations": [], "categories": []}
    for name, number in category.items():
        coco["categories"].append({"id": number, "name": name, "supercategory": "thing"})
    for index in range(images):
        label, picture, regions = draw(seed, index, size)
        name = f"{index:04d}.jpg"
        Image.fromarray(picture).save(folder / name, quality=93, subsampling=0)
        coco["images"].append({"id": index + 1, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
        found = []
        for thing in sorted({thing for thing, _ in regions}):
            whole = np.bitwise_or.reduce([mask for (owner, _), (mask, _) in regions.items() if owner == thing])
            found.append((label, whole, encode_rle(whole)))
        for (_, part), (mask, polygons) in sorted(regions.items()):
            found.append((f"{label}:{part}", mask, segmentation(mask, polygons)))
        for what, mask, entry in found:
            coco["annotations"].append(annotation(len(coco["annotations"]) + 1, index + 1, category[what], mask, entry))
    (Path(out) / "annotations.json").write_text(json.dumps(coco, indent=1) + "\n", encoding="utf-8")
    return coco


def main(argv=None):
    parser = argparse.ArgumentParser(prog="tools/make_part_example.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--images", type=int, default=20, help="number of pictures (default 20)")
    parser.add_argument("--image-size", type=int, default=128, help="longer side in pixels (default 128)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same pictures (default 0)")
    args = parser.parse_args(argv)
    if args.images < 1 or not 64 <= args.image_size <= 1024 or args.seed < 0:
        raise UserError("--images from 1, --image-size from 64 to 1024 and --seed from 0 are possible; give others")
    check_out(args.out)
    coco = make_example(args.out, images=args.images, size=args.image_size, seed=args.seed)
    polygons = sum(isinstance(entry["segmentation"], list) for entry in coco["annotations"])
    print(
        f"Wrote {args.out}: {len(coco['images'])} images, {len(coco['annotations'])} annotations ({polygons} polygons, "
        f"{len(coco['annotations']) - polygons} run lengths), {len(coco['categories'])} categories"
    )
    print(f"Next: plum data questions {args.out}/annotations.json --format=coco --images={args.out}/images --out=my_questions")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, name="make_part_example"))
