"""COCO JSON of predictions: run-length masks, records of answers, one document that pycocotools loads."""

import numpy as np
from pycocotools import mask as rle_codec

from data_pipelines.masks import decode_rle


def encode(mask):
    """bool or uint8[H, W] -> {"size": [H, W], "counts": str}."""
    rle = rle_codec.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle):
    """{"size", "counts"} -> bool[H, W]."""
    return decode_rle(rle["counts"], rle["size"]).astype(bool)


def record(file_name, answer):
    """An Answer as plain JSON: text, status and spans with masks, boxes and areas."""
    height, width = answer.image.shape[:2]
    return {
        "file_name": file_name, "height": height, "width": width, "prompt": answer.prompt, "text": answer.text,
        "status": answer.status, "spans": [_span(span) for span in answer.spans],
    }  # fmt: skip


def _span(span):
    rle = encode(span.mask)
    return {
        "phrase": span.phrase,
        "char_span": [span.char_start, span.char_end],
        "score": round(float(span.score), 6),
        "status": span.status,
        "segmentation": rle,
        "bbox": [float(x) for x in rle_codec.toBbox(rle)],
        "area": int(rle_codec.area(rle)),
    }


def document(records, info=None):
    """Records -> COCO dictionary. Images are numbered from 1 in the order given, annotations in text order.

    Only spans with status "ok" become annotations: an empty mask has no box, and one below the wanted score was refused.
    Categories are the phrases in lower case, sorted.
    """
    names = sorted({span["phrase"].lower() for r in records for span in r["spans"] if span["status"] == "ok"})
    category = {name: number for number, name in enumerate(names, 1)}
    images, annotations = [], []
    for image_id, r in enumerate(records, 1):
        images.append({"id": image_id, "file_name": r["file_name"], "height": r["height"], "width": r["width"]})
        for span in r["spans"]:
            if span["status"] == "ok":
                entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category[span["phrase"].lower()]}
                annotations.append({**entry, "iscrowd": 0, **span})
    categories = [{"id": number, "name": name, "supercategory": "phrase"} for name, number in category.items()]
    return {"info": info or {}, "images": images, "annotations": annotations, "categories": categories}
