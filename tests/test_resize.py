import jax
import numpy as np
import pytest

from plum_jax.resize import resize_matrix, to_original

LOW, IMAGE = 24, 96
CANVAS = (130, 140)
SIZES = [
    (60, 90),
    (88, 64),
    (50, 50),
    (37, 123),
    (1, 7),
    (7, 1),
    (1, 1),
    (96, 96),
    (130, 97),
    (31, 96),
    (96, 31),
    (129, 140),
    (2, 139),
]


def resized(h, w):
    scale = IMAGE / max(h, w)
    return max(int(h * scale + 0.5), 1), max(int(w * scale + 0.5), 1)


def two_interpolations(low_res, small, original, image=IMAGE):
    """M 4.4 with torch, in the dtype of low_res."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(low_res)[None]
    x = torch.nn.functional.interpolate(x, (image, image), mode="bilinear", align_corners=False)
    x = x[..., : small[0], : small[1]]
    return torch.nn.functional.interpolate(x, original, mode="bilinear", align_corners=False)[0].numpy()


jitted = jax.jit(to_original, static_argnums=(3, 4))


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_two_interpolations_with_a_crop_between(size):
    low_res = np.random.default_rng(0).standard_normal((2, LOW, LOW)).astype(np.float32) * 5
    got = np.asarray(jitted(low_res, np.array(resized(*size)), np.array(size), IMAGE, CANVAS))
    want = two_interpolations(low_res.astype(np.float64), resized(*size), size)
    np.testing.assert_allclose(got[:, : size[0], : size[1]], want, atol=1e-5)
    assert not got[:, size[0] :].any()
    assert not got[:, :, size[1] :].any()


def test_full_size():
    """The sizes of the real model: float32 centres near pixel 1000 would be off by 6e-5 and the logits with them."""
    size, small = (480, 641), (767, 1024)
    low_res = np.random.default_rng(0).standard_normal((1, 256, 256)).astype(np.float32) * 5
    got = jitted(low_res, np.array(small), np.array(size), 1024, (512, 656))
    want = two_interpolations(low_res.astype(np.float64), small, size, 1024)
    np.testing.assert_allclose(got[:, : size[0], : size[1]], want, atol=1e-5)


def test_exact_in_float64():
    size, small = (37, 123), resized(37, 123)
    low_res = np.random.default_rng(1).standard_normal((1, LOW, LOW))
    with jax.enable_x64(True):
        got = to_original_float64(low_res, small, size)
    np.testing.assert_allclose(got, two_interpolations(low_res, small, size), atol=1e-13)


def to_original_float64(low_res, small, size):
    """The two matrices as `to_original` builds them, multiplied in float64."""
    up = resize_matrix(IMAGE, LOW, IMAGE, LOW)
    rows, columns = (np.asarray(resize_matrix(size[i], small[i], size[i], IMAGE) @ up) for i in (0, 1))
    assert rows.dtype == np.float64
    return rows @ low_res @ columns.T


def test_rows_of_the_matrix():
    matrix = np.asarray(resize_matrix(5, 9, 7, 12))
    np.testing.assert_allclose(matrix[:5].sum(1), 1, atol=1e-6)
    assert not matrix[5:].any()  # past the size of the result
    assert not matrix[:, 9:].any()  # past the size of the input
    np.testing.assert_array_equal(np.asarray(resize_matrix(6, 6, 6, 6)), np.eye(6))


def test_gradient_reaches_the_logits():
    grad = jax.grad(lambda x: jitted(x, np.array([96, 70]), np.array([90, 66]), IMAGE, CANVAS).sum())(
        np.zeros((LOW, LOW), np.float32)
    )
    np.testing.assert_allclose(grad.sum(), 90 * 66, rtol=1e-5)
