"""`Sample` -> the `Batch` fields of one row: tokens, spans with the masks that they own, views; everything lost is counted.

The pieces that the rows of a PARTONOMY folder are made of too (partonomy/source.py) are functions here.
"""

import collections

import numpy as np

from data_pipelines.account import Account
from data_pipelines.conversation import IMAGE, keep_spans, truncate
from data_pipelines.images import clip_view, open_image, sam_view, size_of
from data_pipelines.mask_sizes import fit_mask, shrink_mask
from data_pipelines.masks import decode_segmentation
from data_pipelines.record import NO_MASK, Dialogue
from data_pipelines.string_search import TextSwitches, encode_owned
from plum_jax.errors import UserError
from plum_jax.switches import switch

GROUNDED_FIELDS = ("sam_pixels", "resized_hw", "original_hw", "masks", "mask_valid")


def fit(whole, data):
    """Encoded -> (Encoded of at most data.max_tokens tokens and data.max_spans spans, numbers of the spans that are left,
    Counter of what was lost, as of `Account`)."""
    encoded, kept = truncate(whole, data.max_tokens)
    over = max(0, len(kept) - data.max_spans)
    lost = collections.Counter(
        {
            "tokens": len(whole.tokens) - len(encoded.tokens),
            "lost spans: max_tokens": whole.num_spans - len(kept),
            "lost spans: max_spans": over,
            "lost conversations: no token of the answer fits": int(not encoded.loss_weight.any()),
        }
    )
    if over:
        kept = kept[: data.max_spans]
        encoded = keep_spans(encoded, range(data.max_spans))
    return encoded, kept, +lost


def assign_slots(texts, max_masks):
    """Mask slots in order of first use. A span whose mask finds no slot loses its label too.

    Args:
      texts: [(Encoded, owner of each span)]; an owner is anything hashable that names a mask, or None for a span without.

    Returns:
      (texts without those spans, {owner: slot}, [number of spans that each text lost]).
    """
    slots, kept_texts, lost = {}, [], []
    for encoded, owners in texts:
        for owner in owners:
            if owner is not None and len(slots) < max_masks:
                slots.setdefault(owner, len(slots))
        kept = [s for s, owner in enumerate(owners) if owner is None or owner in slots]
        lost.append(len(owners) - len(kept))
        if lost[-1]:
            encoded, owners = keep_spans(encoded, kept), [owners[s] for s in kept]
        kept_texts.append((encoded, owners))
    return kept_texts, slots, lost


def fit_canvas(hw, canvas):
    """The size of an image on the canvas: its own, or smaller at the same proportions."""
    scale = min(1.0, canvas[0] / hw[0], canvas[1] / hw[1])
    return tuple(min(most, max(1, int(side * scale + 0.5))) for side, most in zip(hw, canvas, strict=True))


def stack(texts, data):
    """Encoded conversations -> padded arrays of C = data.conversations rows; the missing rows are all invalid, own no span."""
    conversations, max_tokens = data.conversations, data.max_tokens
    row = {
        "tokens": np.zeros((conversations, max_tokens), np.int32),
        "token_valid": np.zeros((conversations, max_tokens), bool),
        "loss_weight": np.zeros((conversations, max_tokens), np.float32),
        "image_position": np.full(conversations, -1, np.int32),
        "bio": np.zeros((conversations, max_tokens), np.int8),
        "span_of_token": np.zeros((conversations, max_tokens), np.int8),
        "span_valid": np.zeros((conversations, data.max_spans), bool),
        "span_mask_index": np.zeros((conversations, data.max_spans), np.int8),
    }
    for c, text in enumerate(texts):
        length = len(text.tokens)
        for name in ("tokens", "loss_weight", "bio", "span_of_token"):
            row[name][c, :length] = getattr(text, name)
        row["token_valid"][c, :length] = True
        row["image_position"][c] = text.image_position
    return row


def pair_spans(row, owners, slots, pairing):
    """Says in `row` which mask each span owns; a span whose mask is empty owns none.

    With config.data.span_pairing "rank" a span owns what `rank_slot` says instead of the mask of what it names.
    """
    for c, spans in enumerate(owners):
        for s, owner in enumerate(spans):
            slot = slots.get(owner) if pairing == "name" else rank_slot(c, s, len(owners), len(slots))
            if slot is not None and row["mask_valid"][slot]:
                row["span_valid"][c, s], row["span_mask_index"][c, s] = True, slot


def rank_slot(conversation, rank, conversations, masks):
    """The mask that the reference trains a span on, whatever part it names (M 6, D10); None where it has none.

    With as many conversations about an image as it has masks, conversation k owns mask k; else the span of rank k does.
    """
    slot = conversation if conversations == masks else rank
    return slot if slot < masks else None


class _Unusable(Exception):
    """A record that cannot become a row: (reason, sentence)."""


class RowBuilder:
    """Makes rows from the records of any `Source`. Holds no state that a row could change."""

    def __init__(self, config, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.pairing, self.mismatch = (switch(config.data, f"data.{x}") for x in ("span_pairing", "resize_mismatched_masks"))
        self.switches = TextSwitches.of(config.data)
        truncate(self._encode(Dialogue(((f"{IMAGE}\n?", "!"),)))[0], config.data.max_tokens)  # UserError: the image has no room

    def build(self, source, index, rng, *, grounded, sample_id):
        """Record `index` of a source -> (row, Account).

        A record that cannot be read becomes a padding row, in which no token counts and no mask is a target, and the account
        says why: drawing another one would make the data depend on what happens to be readable on a machine.
        """
        account, about, key = Account(), (source.family, source.dataset), f"record {index}"
        account.of(*about)["draws"] += 1
        try:
            try:
                sample = source.sample(index, rng)
            except UserError as error:
                raise _Unusable("record", str(error)) from error
            key = sample.key
            row, counts = self.row(sample, grounded=grounded)
            account.of(*about).update(counts)
        except _Unusable as error:
            account.skip(*about, key, *error.args)
            row = self.padding(grounded=grounded)
        row["sample_id"] = np.int64(sample_id)
        return row, account

    def row(self, sample, *, grounded):
        """Sample -> ({field: array}, Counter as of `Account`); SAM view and masks are None where not `grounded`."""
        data, counts = self.config.data, collections.Counter()
        counts["lost conversations: max_conversations"] = max(0, len(sample.dialogues) - data.conversations)
        texts = [self._text(sample, dialogue, counts) for dialogue in sample.dialogues[: data.conversations]]
        texts, slots, lost = assign_slots(texts, data.max_masks)
        counts["lost spans: max_masks"] = sum(lost)
        row = stack([encoded for encoded, _ in texts], data)
        image = None if sample.image is None else _reading("image", open_image, sample.image)
        row["clip_pixels"] = self._clip(image)
        row["patch_part"] = None  # needs one vocabulary of parts for all data
        row.update(dict.fromkeys(GROUNDED_FIELDS))
        counts["conversations"], counts["spans"] = len(texts), sum(len(owners) for _, owners in texts)
        if grounded:
            self._add_targets(row, sample, image, slots, counts)
            pair_spans(row, [owners for _, owners in texts], slots, self.pairing)
        return row, +counts

    def padding(self, *, grounded):
        """A row without a token: it has no part in any loss."""
        row = {**stack([], self.config.data), "clip_pixels": self._clip(None), "patch_part": None}
        row.update(dict.fromkeys(GROUNDED_FIELDS))
        if grounded:
            self._add_no_targets(row)
        return row

    def _encode(self, dialogue):
        words = [dialogue.turns[s.turn][1][s.char_start : s.char_end] for s in dialogue.spans]
        names = dialogue.names or words
        return encode_owned(
            dialogue.turns, dialogue.spans, dialogue.masks, names, self.tokenizer, self.config.data, self.switches
        )

    def _text(self, sample, dialogue, counts):
        """-> (Encoded that fits, the index into sample.masks of each of its spans or None)."""
        whole, owners, unfound = _reading("text", self._encode, dialogue)
        encoded, kept, lost = _reading("text", fit, whole, self.config.data)
        counts.update(lost + collections.Counter({"lost spans: string_search": unfound}))
        return encoded, [None if owners[s] == NO_MASK else owners[s] for s in kept]

    def _clip(self, image):
        size = self.config.model.clip.image_size
        if image is None:
            return np.zeros((size, size, 3), np.uint8)
        return clip_view(image, size, self.config.data.clip_view)

    def _add_no_targets(self, row):
        """SAM sees nothing. The sizes are those of its view and of the canvas: a size of zero would divide by zero."""
        data, size = self.config.data, self.config.model.sam.image_size
        row["sam_pixels"] = np.zeros((size, size, 3), np.uint8)
        row["resized_hw"], row["original_hw"] = np.array((size, size), np.int32), np.array(data.canvas, np.int32)
        row["masks"] = np.zeros((data.max_masks, *data.canvas), np.uint8)
        row["mask_valid"] = np.zeros(data.max_masks, bool)

    def _add_targets(self, row, sample, image, slots, counts):
        """SAM's view and the masks of the slots. Both views come from the whole image: only masks have to fit the canvas."""
        self._add_no_targets(row)
        if image is None:
            return
        row["sam_pixels"], resized_hw = sam_view(image, self.config.model.sam.image_size)
        whole, hw = size_of(image), fit_canvas(size_of(image), self.config.data.canvas)
        row["resized_hw"], row["original_hw"] = np.array(resized_hw, np.int32), np.array(hw, np.int32)
        counts["shrunk"] = int(hw != whole)
        for number, slot in slots.items():
            mask = shrink_mask(_reading("mask", _decode, sample.masks[number], whole, self.mismatch), hw)
            row["masks"][slot, : hw[0], : hw[1]] = mask
            row["mask_valid"][slot] = mask.any()
        counts["masks"] = int(row["mask_valid"].sum())
        counts["lost masks: empty"] = len(slots) - counts["masks"]


def _reading(reason, function, *args):
    """function(*args); what it says about a wrong record names `reason`."""
    try:
        return function(*args)
    except (UserError, ValueError) as error:
        raise _Unusable(reason, str(error)) from error


def _decode(mask, hw, mismatch):
    """uint8[H, W] or a segmentation entry -> [H, W] of 0 and 1, as large as the image."""
    decoded = (np.asarray(mask) != 0).view(np.uint8) if isinstance(mask, np.ndarray) else decode_segmentation(mask)
    return fit_mask(decoded, hw, mismatch)
