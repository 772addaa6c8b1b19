"""The score of a mask: raw confidence, and the monotone map that turns it into the IoU to expect.

The decoder's own IoU head is never supervised while its inputs drift (D37 of M 10.3), so it is not used. A curve fitted
on validation masks is: a false mask has IoU 0 there, so a low score also says "this part is not in the image".
"""

import dataclasses
import json

import numpy as np

from plum_jax.errors import UserError
from plum_jax.paths import as_path
from plum_jax.run_record import write_json

FILE_NAME = "calibration.json"
MIN_MASKS = 20  # fewer give a curve that is noise


def raw_confidence(logits, mask, tag_confidence):
    """Mean foreground probability inside the mask, times how sure the tagger was of the span; 0 for an empty mask.

    Args:
      logits: float[H, W]. mask: bool[H, W], where logits > 0. tag_confidence: float in [0, 1].
    """
    inside = logits[mask]
    return float(np.mean(1 / (1 + np.exp(-inside.astype(np.float64)))) * tag_confidence) if inside.size else 0.0


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A non-decreasing piecewise linear map. `raw` and `iou` are its knots in increasing order."""

    raw: tuple
    iou: tuple
    n_masks: int
    checkpoint: str = ""  # SHA-256 of the checkpoint whose masks these were

    def __call__(self, raw):
        """Raw confidence, a number or an array -> expected IoU; constant beyond the first and last knot."""
        return np.interp(raw, self.raw, self.iou)


def fit(raw, iou, checkpoint=""):
    """Isotonic regression of IoU on raw confidence by pooling adjacent violators.

    Args:
      raw, iou: float[n], one entry per mask of the validation split; the IoU of a mask of nothing visible is 0.
      checkpoint: SHA-256 of the checkpoint.

    Returns:
      Calibration, or None with fewer than MIN_MASKS masks.
    """
    raw, iou = np.asarray(raw, np.float64), np.asarray(iou, np.float64)
    if len(raw) < MIN_MASKS:
        return None
    blocks = []  # (mean IoU, weight, mean raw)
    for x in np.unique(raw):  # equal confidences are one point
        blocks.append((iou[raw == x].mean(), float((raw == x).sum()), x))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (y1, w1, x1), (y2, w2, x2) = blocks.pop(-2), blocks.pop()
            w = w1 + w2
            blocks.append(((y1 * w1 + y2 * w2) / w, w, (x1 * w1 + x2 * w2) / w))
    return Calibration(tuple(float(b[2]) for b in blocks), tuple(float(b[0]) for b in blocks), len(raw), checkpoint)


def expected_error(calibration, raw, iou, bins=10):
    """Mean over `bins` equally filled bins of |mean score - mean IoU|: how far the scores are from what they claim."""
    raw, iou = np.asarray(raw, np.float64), np.asarray(iou, np.float64)
    order = np.argsort(raw, kind="stable")
    score = raw if calibration is None else calibration(raw)
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(np.mean([abs(score[part].mean() - iou[part].mean()) for part in parts])) if parts else None


def reliability(score, iou, bins=10):
    """What a reliability plot shows: in bins of equal width over [0, 1], the mean score against the mean IoU.

    Args:
      score: float[n] in [0, 1], what the masks claim. iou: float[n], what they reach; 0 for a mask of nothing visible.

    Returns:
      {"bins": [{"low", "high", "n_masks", "score", "iou"}] (means None in an empty bin), "n_masks",
      "expected_calibration_error": mean of |score - iou| over the bins, weighted by their masks, None without masks}.
    """
    score, iou = np.asarray(score, np.float64), np.asarray(iou, np.float64)
    place = np.clip((score * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    total = [np.bincount(place, weights=values, minlength=bins) for values in (score, iou)]
    mean = [np.divide(t, count, out=np.zeros(bins), where=count > 0) for t in total]
    rows = [
        {
            "low": k / bins,
            "high": (k + 1) / bins,
            "n_masks": int(n),
            "score": float(s) if n else None,
            "iou": float(i) if n else None,
        }
        for k, (n, s, i) in enumerate(zip(count, *mean, strict=True))
    ]
    error = float((count * np.abs(mean[0] - mean[1])).sum() / len(score)) if len(score) else None
    return {"bins": rows, "n_masks": len(score), "expected_calibration_error": error}


def place_of(checkpoint):
    """Where the curve of a checkpoint lies: beside checkpoints/<step> of a run, or in the folder of base weights itself."""
    path = as_path(checkpoint)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def save(calibration, folder):
    """Writes FOLDER/calibration.json and returns its path."""
    path = folder / FILE_NAME
    write_json(path, {"kind": "isotonic", **dataclasses.asdict(calibration)})
    return path


def load(folder, checkpoint=""):
    """FOLDER/calibration.json -> Calibration, or None when there is none for this checkpoint.

    A curve of another step of the run would give scores that look calibrated and are not.

    Raises:
      UserError: the file cannot be read as a non-decreasing curve.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        curve = Calibration(tuple(data["raw"]), tuple(data["iou"]), int(data["n_masks"]), str(data["checkpoint"]))
        raw, iou = np.array(curve.raw, float), np.array(curve.iou, float)
        good = raw.ndim == 1 and raw.shape == iou.shape and raw.size and (np.diff(raw) > 0).all() and (np.diff(iou) >= 0).all()
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f"{path}: is not a calibration curve; delete it and run plum evaluate --split val --calibrate again")
    return curve if curve.checkpoint == checkpoint else None
