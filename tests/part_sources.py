"""Small part data sets in the layouts of the real ones: drawn JPEGs, COCO JSON with polygons and run lengths, mask files."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.masks import encode_rle

OBJECTS = {  # every pair of kinds that questions need: some share parts, all lack some
    "bird": ("beak", "leg", "tail", "wing"),
    "bottle": ("body", "cap", "label", "neck"),
    "car": ("body", "door", "wheel", "window"),
    "chair": ("back", "leg", "seat"),
    "dog": ("body", "head", "leg", "tail"),
    "mug": ("body", "handle", "rim"),
}
HW = (60, 80)
WHOLE = (10, 6, 70, 54)  # x0, y0, x1, y1 of a lone object
LEFT, RIGHT = (4, 6, 36, 54), (44, 6, 76, 54)


def strips(box, parts):
    """{part: box}: the object cut into strips from top to bottom."""
    x0, y0, x1, y1 = box
    edges = np.linspace(y0, y1, len(parts) + 1).astype(int).tolist()
    return {part: (x0, top, x1, bottom) for part, top, bottom in zip(parts, edges, edges[1:], strict=False)}


def box_mask(box, hw=HW):
    mask = np.zeros(hw, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def rectangle(box):
    """COCO polygon, which the COCO library fills with exactly the pixels of the box."""
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def write_image(path, number=0, hw=HW, exif=None):
    """A JPEG of coloured noise; `exif` is an orientation tag."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*hw, 3), np.uint8)
    tags = Image.Exif()
    if exif:
        tags[0x0112] = exif
    Image.fromarray(pixels).save(path, "JPEG", exif=tags)


class Coco:
    """An annotation file in the making."""

    def __init__(self):
        self.value = {"images": [], "annotations": [], "categories": []}

    def category(self, name, supercategory=None):
        known = {entry["name"]: entry["id"] for entry in self.value["categories"]}
        if name not in known:
            entry = {"id": len(known) + 1, "name": name, "supercategory": supercategory or name}
            self.value["categories"].append(entry)
            known[name] = entry["id"]
        return known[name]

    def image(self, file_name, hw=HW):
        number = len(self.value["images"]) + 1
        self.value["images"].append({"id": number, "file_name": file_name, "height": hw[0], "width": hw[1]})
        return number

    def annotate(self, image, category, box, hw=HW, segmentation=None, **fields):
        """Polygons for even ids, compressed run lengths for odd ones, unless given."""
        number = len(self.value["annotations"]) + 1
        if segmentation is None:
            segmentation = encode_rle(box_mask(box, hw)) if number % 2 else [rectangle(box)]
        annotation = {"id": number, "image_id": image, "category_id": self.category(category), "segmentation": segmentation}
        self.value["annotations"].append({**annotation, **fields})
        return number

    def write(self, path):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.value), encoding="utf-8")
        return path


def write_paco(root, images=12, first=1):
    """-> (annotation file, image folder): whole objects, `obj_ann_id`, names with senses and underscores."""
    coco = Coco()
    for number in range(images):
        kind, parts = list(OBJECTS.items())[number % len(OBJECTS)]
        name = {"mug": "mug_(cup)", "chair": "folding_chair"}.get(kind, kind)
        image = coco.image(f"train2017/{first + number:012d}.jpg")
        write_image(root / f"coco/train2017/{first + number:012d}.jpg", first + number)
        whole = coco.annotate(image, name, WHOLE, obj_ann_id=len(coco.value["annotations"]) + 1)
        for part, box in strips(WHOLE, parts).items():
            coco.annotate(image, f"{name}:{part}", box, obj_ann_id=whole)
    return coco.write(root / "vlpart/paco/annotations/paco_lvis_v1_train.json"), root / "coco"


def write_pascal(root, images=12):
    """-> (annotation file, image folder): parts only."""
    coco, folder = Coco(), root / "vlpart/pascal_part/VOCdevkit/VOC2010/JPEGImages"
    for number in range(images):
        kind, parts = list(OBJECTS.items())[number % len(OBJECTS)]
        image = coco.image(f"2008_{number:06d}.jpg")
        write_image(folder / f"2008_{number:06d}.jpg", number)
        for part, box in strips(WHOLE, parts).items():
            coco.annotate(image, f"{kind}:{part}", box)
    return coco.write(root / "vlpart/pascal_part/train.json"), folder


def write_partimagenet(root, images=12, split="train", first=0):
    """-> (annotation file, image folder): the object is the supercategory, and a wheel is a 'Tier'."""
    coco, folder = Coco(), root / f"PartImageNet/images/{split}"
    for number in range(images):
        kind, parts = list(OBJECTS.items())[number % len(OBJECTS)]
        image = coco.image(f"n01440764_{number}.JPEG")
        write_image(folder / f"n01440764_{number}.JPEG", first + number)
        for part, box in strips(WHOLE, parts).items():
            name = f"{kind.capitalize()} {'Tier' if part == 'wheel' else part.capitalize()}"
            coco.category(name, kind.capitalize())
            coco.annotate(image, name, box)
    return coco.write(root / f"PartImageNet/annotations/{split}/{split}.json"), folder


def write_core(root, images=12):
    """-> folder of graph.yaml, images and masks. Annotators had the images elsewhere; directory names are in mixed case."""
    graph, lines = {}, []
    for number in range(images):
        kind, parts = list(OBJECTS.items())[number % len(OBJECTS)]
        label, file = f"things--{kind}", f"{number}.jpg"
        write_image(root / f"images/{label}/{file}", number)
        graph[label] = parts
        masks = {label: WHOLE, **{f"{label}--part:{part}": box for part, box in strips(WHOLE, parts).items()}}
        for name, box in masks.items():
            place = root / "masks" / (name.title() if number % 2 else name)
            place.mkdir(parents=True, exist_ok=True)
            entry = {**encode_rle(box_mask(box)), "image_path": f"/shared/ann/images/{label}/{file}", "is_root_concept": False}
            (place / f"{number}.json").write_text(json.dumps(entry), encoding="utf-8")
    lines += ["concepts: []", "instance_graph:", "  things:"] + [f"  - {label}" for label in graph]
    lines += ["component_graph:"]
    for label, parts in graph.items():
        lines += [f"  {label}:"] + [f"  - {label}--part:{part}" for part in parts]
    (root / "graph.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_own(root, images=12):
    """-> (annotation file, image folder, hierarchy file): categories with names of one's own."""
    coco, folder = Coco(), root / "photos"
    for number in range(images):
        kind, parts = list(OBJECTS.items())[number % len(OBJECTS)]
        image = coco.image(f"{number}.png")
        write_image(folder / f"{number}.png", number)
        coco.annotate(image, kind, WHOLE)
        for part, box in strips(WHOLE, parts).items():
            coco.annotate(image, f"{part} region", box)
    lines = []
    for kind, parts in OBJECTS.items():
        lines += [f"{kind}:"] + [f"  {part} region: {part}" for part in parts]
    hierarchy = root / "parts.yaml"
    hierarchy.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return coco.write(root / "own.json"), folder, hierarchy
