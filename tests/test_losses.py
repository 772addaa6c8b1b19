import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from reference import losses as plain

from plum_jax import losses

H, W = 9, 11  # of the images, in the corner of a canvas
CANVAS = (12, 16)
TVERSKY = dict(alpha=0.7, beta=0.3, gamma=0.75)


def on_canvas(x, fill=0.0):
    """[..., H, W] -> [..., Hc, Wc]; `fill` outside, which must not matter."""
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, CANVAS[0] - H), (0, CANVAS[1] - W)], constant_values=fill)


@pytest.fixture(scope="module")
def masks():
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((4, H, W)) * 4).astype(np.float32)
    target = (rng.random((4, H, W)) < 0.3).astype(np.float32)
    inside = on_canvas(np.ones((H, W), bool), False)
    return logits, target, inside


def test_mask_losses_are_the_formulas_whatever_lies_outside(masks):
    logits, target, inside = masks
    for fill in (0.0, 30.0):
        z, t = on_canvas(logits, fill), on_canvas(target, 1.0)
        for scale in (1.0, 1000.0):
            want = [plain.dice(a, b, scale) for a, b in zip(logits, target, strict=True)]
            np.testing.assert_allclose(losses.dice_loss(z, t, inside, scale=scale), want, atol=1e-6)
        for clamp in (True, False):
            want = [plain.tversky(a, b, **TVERSKY) for a, b in zip(logits, target, strict=True)]
            np.testing.assert_allclose(losses.tversky_loss(z, t, inside, **TVERSKY, clamp=clamp), want, atol=1e-6)
        want = [plain.bce(a, b) for a, b in zip(logits, target, strict=True)]
        np.testing.assert_allclose(losses.bce_loss(z, t, inside), want, rtol=1e-6)


def test_soft_targets_are_allowed(masks):
    logits, _, inside = masks
    soft = np.random.default_rng(1).random(logits.shape).astype(np.float32)
    want = [plain.tversky(a, b, **TVERSKY) for a, b in zip(logits, soft, strict=True)]
    np.testing.assert_allclose(losses.tversky_loss(on_canvas(logits), on_canvas(soft), inside, **TVERSKY), want, atol=1e-6)


LOSSES = {
    "dice": lambda z, t, i: losses.dice_loss(z, t, i, scale=1000.0),
    "tversky": lambda z, t, i: losses.tversky_loss(z, t, i, **TVERSKY),
    "bce": losses.bce_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_finite_at_the_edges(name, masks):
    _, target, inside = masks
    full, t = on_canvas(np.ones((H, W), np.float32)), on_canvas(target[0])
    cases = {
        "perfect": (np.where(t > 0, 100.0, -100.0), t),
        "empty target, nothing predicted": (np.full(CANVAS, -100.0), 0 * t),
        "empty target, all predicted": (np.full(CANVAS, 100.0), 0 * t),
        "full target, all predicted": (np.full(CANVAS, 100.0), full),
        "all wrong": (np.where(t > 0, -100.0, 100.0), t),
        "huge logits": (np.full(CANVAS, 1e30), t),
        "no image": (np.zeros(CANVAS), 0 * t),
    }
    for case, (z, target_) in cases.items():
        where = np.zeros_like(inside) if case == "no image" else inside
        value, grad = jax.value_and_grad(lambda z, t=target_, i=where: LOSSES[name](z, t, i))(jnp.asarray(z, jnp.float32))
        assert np.isfinite(value), case
        assert np.isfinite(grad).all(), case
    np.testing.assert_allclose(LOSSES[name](*map(np.float32, cases["perfect"]), inside), 0, atol=1e-4)


def test_faithful_tversky_has_the_gradient_of_the_reference(masks):
    """NaN at a perfect prediction (M D19), which is why `clamp` is the default."""
    t = on_canvas(masks[1][0])
    loss = lambda z, clamp: losses.tversky_loss(z, t, masks[2], **TVERSKY, clamp=clamp)  # noqa: E731
    perfect = jnp.asarray(np.where(t > 0, 100.0, -100.0), jnp.float32)
    assert np.isnan(jax.grad(loss)(perfect, False)).any()
    assert not np.isnan(jax.grad(loss)(perfect, True)).any()
    z = on_canvas(masks[0][0])
    np.testing.assert_array_equal(jax.grad(loss)(z, False), jax.grad(loss)(z, True))


def test_mask_iou(masks):
    logits, target, inside = masks
    got = losses.mask_iou(on_canvas(logits, 9.0), on_canvas(target, 1.0), inside)
    want = [((z > 0) & (t > 0)).sum() / ((z > 0) | (t > 0)).sum() for z, t in zip(logits, target, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert losses.mask_iou(np.full(CANVAS, -1.0), np.zeros(CANVAS), inside) == 1


def test_language_loss():
    rng = np.random.default_rng(0)
    logits, tokens = rng.standard_normal((3, 7, 11)).astype(np.float32), rng.integers(0, 11, (3, 7))
    supervised = rng.random((3, 7)) < 0.5
    supervised[:, 0] = False
    before = np.concatenate([logits[:, :1], logits[:, :-1]], 1)  # the caller takes the state that predicts each token
    total, weight = losses.language_loss(before, tokens, supervised.astype(np.float32))
    assert weight == supervised.sum()
    np.testing.assert_allclose(total / weight, plain.language(logits, tokens, supervised), rtol=1e-6)


def test_language_loss_of_bfloat16_logits_is_float32():
    logits = jnp.zeros((2, 3, 1000), jnp.bfloat16)
    total, _ = losses.language_loss(logits, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3)))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, 6 * np.log(1000), rtol=1e-6)


def test_tag_loss_leaves_out_rows_without_a_label():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((4, 9, 3)).astype(np.float32), rng.integers(0, 3, (4, 9)).astype(np.int8)
    labels[1] = 0
    counted = rng.random((4, 9)) < 0.7
    for class_weights in ((0.1, 1.0, 1.0), (1.0, 1.0, 1.0)):
        for where in (None, counted):
            weight = losses.tag_weights(labels, np.ones((4, 9), bool) if where is None else where, class_weights)
            total, total_weight = losses.tag_loss(logits, labels, weight)
            np.testing.assert_allclose(total / total_weight, plain.tag(logits, labels, class_weights, where), rtol=1e-5)
    nothing = losses.tag_weights(np.zeros((2, 9), np.int8), np.ones((2, 9), bool), (0.1, 1.0, 1.0))
    assert not np.any(nothing)


def test_reference_loss():
    rng = np.random.default_rng(0)
    hidden, base = rng.standard_normal((2, 2, 8, 5)).astype(np.float32)
    slots = np.zeros((2, 3, 8), bool)
    slots[0, 0, 1:3], slots[0, 1, 4], slots[1, 0, 2:6] = True, True, True
    valid = np.array([[True, True, False], [False, False, False]])
    total, weight = losses.reference_loss(hidden, base, slots, valid)
    want = plain.reference(hidden[0, 1:3], base[0, 1:3]) + plain.reference(hidden[0, 4], base[0, 4])
    np.testing.assert_allclose(total, want, rtol=1e-6)
    assert weight == 2
    grad = jax.grad(lambda h: losses.reference_loss(h, base, slots, np.zeros((2, 3), bool))[0])(hidden)
    np.testing.assert_array_equal(grad, 0)


def test_patch_loss():
    rng = np.random.default_rng(0)
    image_tokens, words = rng.standard_normal((2, 6, 4)).astype(np.float32), rng.standard_normal((3, 4)).astype(np.float32)
    part = np.array([[0, 1, 2, -1, -1, 0], [2, 2, 0, 1, -1, -1]], np.int16)
    total, weight = losses.patch_loss(image_tokens, words, part)
    want = sum(
        (0.1 if part[b, p] == 0 else 1.0) * plain.nll(image_tokens[b, p] @ words.T / 2, part[b, p])
        for b in range(2) for p in range(6) if part[b, p] >= 0
    )  # fmt: skip
    np.testing.assert_allclose(total, want, rtol=1e-5)
    np.testing.assert_allclose(weight, 5 + 0.3, rtol=1e-6)


def low(x):
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def test_losses_of_tokens_and_tags_can_be_rounded():
    """As a bf16 run has them: every token's loss has 8 binary digits, and so has a tag's logit (M D38)."""
    rng = np.random.default_rng(3)
    logits = (rng.standard_normal((2, 5, 3)) * 6).astype(np.float32)
    labels, weight = rng.integers(0, 3, (2, 5)), rng.random((2, 5)).astype(np.float32)
    language, tag = (np.sum(low(plain.nll(z, labels)) * weight) for z in (logits, low(logits)))
    exact = np.sum(plain.nll(logits, labels) * weight)
    np.testing.assert_allclose(losses.language_loss(logits, labels, weight, "bfloat16")[0], language, rtol=1e-6)
    np.testing.assert_allclose(losses.tag_loss(logits, labels, weight, "bfloat16")[0], tag, rtol=1e-6)
    np.testing.assert_allclose(losses.language_loss(logits, labels, weight)[0], exact, rtol=1e-6)
    assert len({round(float(x), 5) for x in (language, tag, exact)}) == 3
