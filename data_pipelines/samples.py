"""Samples of COCO files and of the training data sets as cards of a gallery, evenly spaced and never chosen by content."""

import warnings

import numpy as np

from data_pipelines.checks.coco import LAYOUT, CocoFile
from data_pipelines.checks.families import open_family
from data_pipelines.checks.pictures import pick
from data_pipelines.conversation import IMAGE
from data_pipelines.folders import identity, image_size, inside, within
from data_pipelines.gallery import Card, Piece, Turn, index_of, overlay, page
from data_pipelines.images import load_image
from data_pipelines.json_array import scan_object
from data_pipelines.masks import decode_rle, decode_segmentation, encode_coco
from data_pipelines.record import NO_MASK
from plum_jax.errors import UserError
from plum_jax.report.pictures import COLOURS, jpeg_uri


def sample_page(target, most, *, images=None, follow_links=False):
    """Target of kind "coco" or "root" -> (HTML text, number of samples on it).

    UserError for a COCO file without its folder of images, and where there is no sample that can be shown.
    """
    if target.kind == "coco":
        if images is None:
            raise UserError(f"{target.files[0]}: is a COCO file; give the folder of its images with --images")
        cards = coco_cards(target.files, images, most, follow_links=follow_links)
        heading = ", ".join(path.name for path in target.files)
    else:
        cards, left_out = family_cards(target.folder, target.datasets, most)
        heading = target.folder.resolve().name + (f", {left_out} not readable (see plum data check)" if left_out else "")
    if not cards:
        raise UserError(f"{target.folder}: has no sample that can be shown; plum data check says why")
    kinds = index_of((card.kind, number) for number, card in enumerate(cards, 1))
    names = [[piece.part for turn in card.turns for piece in turn.answer if piece.part] for card in cards]
    names = [[*named, *(piece.part for piece in card.others)] for named, card in zip(names, cards, strict=True)]
    named = index_of((name, number) for number, found in enumerate(names, 1) for name in dict.fromkeys(found))
    return page(cards, f"Samples of {heading}", "sample", {"data sets": kinds, "names with a mask": named}), len(cards)


def coco_cards(files, images, most, *, follow_links=False):
    """COCO files -> at most `most` Cards, one for an image with all its annotations."""
    cards = []
    for path in files:
        file, kept = CocoFile(path, path.name), {}
        for field, value in scan_object(path, LAYOUT):
            number = identity(value, "id") if isinstance(value, dict) else None
            if field == "images" and number is not None and inside(value.get("file_name")) and image_size(value):
                file.images[number] = value["file_name"], image_size(value)
            elif field == "categories" and number is not None:
                file.categories[number] = str(value.get("name"))
        chosen = set(pick(file.images, -(-most // len(files))))
        for field, value in scan_object(path, LAYOUT):
            if field == "annotations" and isinstance(value, dict) and identity(value, "image_id") in chosen:
                kept.setdefault(value["image_id"], []).append(value)
        for number, (name, hw) in file.images.items():
            if number in chosen:
                cards.append(_coco_card(file, number, name, hw, kept.get(number, ()), images, follow_links))
    return cards[:most]


def _coco_card(file, number, name, hw, annotations, images, follow_links):
    problems, pieces = [], []
    picture, size = _picture(lambda: within(images, name, follow_links=follow_links), problems)
    for place, entry in enumerate(annotations, 1):
        label = file.categories.get(identity(entry, "category_id"), "unknown category")

        def mask(entry=entry):
            return decode_rle(encode_coco(entry.get("segmentation"), hw)["counts"], hw)

        pieces.append(_piece(label, label, place, mask, size, problems))
    return Card(name, file.name, f"{file.name}, image {number}", picture, [], pieces, problems)


def family_cards(root, names, most):
    """Data sets of a root -> (at most `most` Cards, each a sample as a training run draws it; how many could not be read)."""
    cards, left_out, share = [], 0, -(-most // max(len(names), 1))
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # plum data check says it
                source = open_family(root, name)
        except UserError:  # a whole data set
            left_out += 1
            continue
        for index in pick(range(len(source)), share):
            try:
                sample = source.sample(index, np.random.default_rng([0, index]))
            except UserError:
                left_out += 1
                continue
            if sample.image is not None:
                cards.append(_sample_card(name, sample))
    return cards[:most], left_out


def _sample_card(name, sample):
    problems, turns, number = [], [], 0
    picture, size = _picture(lambda: sample.image, problems)
    for dialogue in sample.dialogues:
        spans = list(zip(dialogue.spans, dialogue.masks, strict=True))
        for turn, (question, answer) in enumerate(dialogue.turns):
            pieces, at = [], 0
            for span, owned in spans:
                if span.turn == turn:
                    number += 1
                    text = answer[span.char_start : span.char_end]
                    mask = None if owned == NO_MASK else lambda owned=owned: _sample_mask(sample.masks[owned])
                    pieces += [Piece(answer[at : span.char_start]), _piece(text, text, number, mask, size, problems)]
                    at = span.char_end
            turns.append(Turn(question.replace(IMAGE, "").strip(), [*pieces, Piece(answer[at:])], []))
    return Card(sample.key, name, f"{name}, {sample.image}", picture, turns, [], problems)


def _sample_mask(mask):
    return decode_segmentation(mask) if isinstance(mask, dict) else np.asarray(mask)


def _picture(path_of, problems):
    """-> (data URI, size), ("", None) for an image that cannot be read."""
    try:
        return jpeg_uri(load_image(path_of()))
    except (UserError, ValueError) as error:
        problems.append(str(error))
        return "", None


def _piece(text, part, number, mask, size, problems):
    colour, shown = COLOURS[(number - 1) % len(COLOURS)], None
    if mask is not None and size is not None:
        try:
            shown = overlay(mask(), size, colour)
        except ValueError as error:
            problems.append(f"{part}: {error}")
    return Piece(text, part, number, colour, shown)
