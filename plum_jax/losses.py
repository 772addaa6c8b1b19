"""The losses of PLUM (M 6), each as (sum, weight), so that a step's total weight can divide it whatever the micro-batches.

Per-span losses take float32 logits at original resolution on a canvas, and a pixel mask that says where the image is.
"""

import jax
import jax.numpy as jnp
import optax

from plum_jax.precision import rounded

EPSILON = 1e-6


def language_loss(logits, tokens, weight, dtype="float32"):
    """logits [..., V] for each token's predecessor, tokens int[...], weight float[...] -> (sum, weight).

    dtype: of each token's loss (M D38); the mean over tokens stays float32, as its rounding would reach no gradient.
    """
    nll = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens)
    return jnp.sum(rounded(nll, dtype) * weight), jnp.sum(weight)


def tag_weights(bio, where, class_weights):
    """bio int[R, T], where bool[R, T] -> float32[R, T]: class weights, 0 in rows that have no labelled token.

    Rows without any B or I are left out as in the reference: their answers may name things that nobody annotated.
    """
    labelled = (bio > 0).any(-1, keepdims=True)
    return jnp.asarray(class_weights, jnp.float32)[bio] * (where & labelled)


def tag_loss(tag_logits, bio, weight, dtype="float32"):
    """float32[R, T, 3], int[R, T], float32[R, T] -> (sum, weight): weighted cross entropy over O, B, I; dtype as above."""
    nll = optax.softmax_cross_entropy_with_integer_labels(rounded(tag_logits, dtype), bio)
    return jnp.sum(rounded(nll, dtype) * weight), jnp.sum(weight)


def reference_loss(hidden, reference, slots, span_valid):
    """0.5 * mean squared distance to the base model's states over each span's tokens and channels, summed over spans.

    The reference calls it a KL term with sigma 1 (M 6). hidden, reference [R, T, D]; slots bool[R, N, T]; span_valid
    bool[R, N].
    """
    distance = 0.5 * jnp.square(hidden.astype(jnp.float32) - reference.astype(jnp.float32)).mean(-1)
    per_span = jnp.einsum("rnt,rt->rn", slots.astype(jnp.float32), distance) / jnp.maximum(slots.sum(-1), 1)
    return jnp.sum(per_span * span_valid), jnp.sum(span_valid)


def dice_loss(logits, target, inside, *, scale):
    """1 - (2 sum p t + eps) / (sum p + sum t + eps) per mask; logits, target [..., H, W], inside bool -> [...].

    The reference divides both sums by `scale` before adding eps = 1e-6, which is eps = scale * 1e-6 pixels (M 6).
    """
    p = jax.nn.sigmoid(logits) * inside
    t = target * inside
    epsilon = scale * EPSILON
    both = jnp.sum(p * t, (-2, -1))
    return 1 - (2 * both + epsilon) / (jnp.sum(p, (-2, -1)) + jnp.sum(t, (-2, -1)) + epsilon)


def tversky_loss(logits, target, inside, *, alpha, beta, gamma, clamp=True):
    """(1 - TI)^gamma with TI = (TP + eps) / (TP + alpha FN + beta FP + eps) per mask; [..., H, W] -> [...].

    With gamma < 1 the gradient at TI = 1 is 0 * inf: `clamp` keeps 1 - TI >= 1e-6 (M D19); off is the reference's formula.
    """
    p = jax.nn.sigmoid(logits) * inside
    t = target * inside
    true_positive = jnp.sum(p * t, (-2, -1))
    missed = jnp.sum(t, (-2, -1)) - true_positive
    extra = jnp.sum(p, (-2, -1)) - true_positive
    index = (true_positive + EPSILON) / (true_positive + alpha * missed + beta * extra + EPSILON)
    rest = 1 - index
    return (jnp.maximum(rest, 1e-6) if clamp else rest) ** gamma


def bce_loss(logits, target, inside):
    """Mean over the image's pixels of binary cross entropy with logits; [..., H, W] -> [...]."""
    per_pixel = optax.sigmoid_binary_cross_entropy(logits, target.astype(logits.dtype)) * inside
    return jnp.sum(per_pixel, (-2, -1)) / jnp.maximum(jnp.sum(inside, (-2, -1)), 1)


def mask_iou(logits, target, inside):
    """Intersection over union of the thresholded logits (> 0) per mask, 1 for an empty union; [..., H, W] -> [...]."""
    predicted, target = (logits > 0) & inside, (target > 0) & inside
    union = jnp.sum(predicted | target, (-2, -1))
    return jnp.where(union > 0, jnp.sum(predicted & target, (-2, -1)) / jnp.maximum(union, 1), 1.0)


def patch_weights(patch_part):
    """int[B, P] (-1 ignored, 0 background) -> float32[B, P]: background at a tenth, so that parts are not drowned."""
    return jnp.where(patch_part > 0, 1.0, jnp.where(patch_part == 0, 0.1, 0.0))


def patch_loss(image_tokens, word_embeds, patch_part):
    """Cross entropy of each projected CLIP token against the embeddings of the part words (not in the paper).

    Args:
      image_tokens: [B, P, D]. word_embeds: [1 + parts, D], first the word for background. patch_part: int[B, P].

    Returns:
      (sum, weight).
    """
    width = image_tokens.shape[-1]
    logits = jnp.einsum("bpd,kd->bpk", image_tokens, word_embeds).astype(jnp.float32) * width**-0.5
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(patch_part, 0))
    weight = patch_weights(patch_part)
    return jnp.sum(nll * weight), jnp.sum(weight)
