import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from data_pipelines.images import CLIP_MEAN_COLOUR, StoredImage, clip_view, load_image, longest_side, open_image, sam_view
from plum_jax.errors import UserError

SIZES = [(60, 90), (88, 64), (50, 50), (37, 123), (300, 1)]


def picture(hw, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


def test_load_turns_the_image_upright(tmp_path):
    pixels = picture((5, 9))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_load_gives_rgb(tmp_path, mode):
    Image.fromarray(picture((4, 6))).convert(mode).save(tmp_path / "image.png")
    loaded = load_image(tmp_path / "image.png")
    assert loaded.shape == (4, 6, 3)
    assert loaded.dtype == np.uint8


@pytest.mark.parametrize(("name", "kind"), [("a.png", np.uint16), ("a.tif", ">u2"), ("a.pgm", np.uint16), ("b.tif", np.int32)])
def test_sixteen_bits_keep_the_high_byte(tmp_path, name, kind):
    values = np.arange(0, 65536, 256).reshape(16, 16) + 77
    Image.fromarray(values.astype(kind)).save(tmp_path / name)
    loaded = load_image(tmp_path / name)
    np.testing.assert_array_equal(loaded, np.repeat((values >> 8)[..., None], 3, -1))
    assert loaded.dtype == np.uint8


def test_values_of_unknown_scale_are_refused(tmp_path):
    path = tmp_path / "image.tif"
    for pixels in ([[0.0, 1.0]], [[-1.0, 200.0]], [[0.0, 300.0]], [[0.0, np.nan]]):
        Image.fromarray(np.array(pixels, np.float32)).save(path)
        with pytest.raises(UserError, match="image.tif: holds pixel values from .* save it with 8 bits"):
            load_image(path)
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(path)
    with pytest.raises(UserError, match="from 0 to 70000"):
        load_image(path)
    Image.fromarray(np.array([[0.0, 254.5]], np.float32)).save(path)
    assert load_image(path)[0, :, 0].tolist() == [0, 254]


def test_broken_exif_is_silent(tmp_path):
    header = b"Exif\0\0II*\0\x08\0\0\0"
    Image.fromarray(picture((4, 6))).save(tmp_path / "a.jpg", exif=header + b"\x09\0\x12\x01")
    script = "import sys; from data_pipelines.images import load_image; print(load_image(sys.argv[1]).shape)"
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.jpg"], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("(4, 6, 3)", "")


def test_bad_images(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    with pytest.raises(UserError, match="no such image"):
        load_image(path)
    with pytest.raises(UserError, match="not a readable image"):
        load_image(tmp_path)
    Image.fromarray(picture((40, 60))).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable image"):
        load_image(path)
    path.write_text("not an image")
    with pytest.raises(UserError, match="not a readable image"):
        load_image(path)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="shrink"):
        load_image(path)


@pytest.mark.parametrize("hw", SIZES)
def test_sam_view_is_pillows_bilinear(hw):
    image = picture(hw)
    view, resized = sam_view(image, 128)
    scale = 128 / max(hw)
    assert resized == tuple(max(1, int(side * scale + 0.5)) for side in hw) == longest_side(hw, 128)
    wanted = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(view[: resized[0], : resized[1]], wanted)
    assert view.shape == (128, 128, 3)
    assert not view[resized[0] :].any()
    assert not view[:, resized[1] :].any()


def test_sam_view_keeps_an_image_of_the_right_size():
    image = picture((128, 100))
    np.testing.assert_array_equal(sam_view(image, 128)[0][:, :100], image)


@pytest.mark.parametrize("hw", SIZES[:4])
def test_center_crop_is_the_clip_processor(hw):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_normalize=False, do_rescale=False, resample=3
    )
    image = picture(hw)
    wanted = np.asarray(processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0])
    np.testing.assert_array_equal(clip_view(image, 56, "center_crop"), wanted.transpose(1, 2, 0))


@pytest.mark.parametrize("hw", [(37, 123), (123, 37), (480, 640), (640, 427), (56, 200), (200, 56), (56, 56), (30, 31)])
def test_center_crop_formula(hw):
    image, short = picture(hw), min(hw)
    height, width = (56 if side == short else int(56 * side / short) for side in hw)
    wanted = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - 56) // 2, (width - 56) // 2
    np.testing.assert_array_equal(clip_view(image, 56, "center_crop"), wanted[top : top + 56, left : left + 56])


@pytest.mark.parametrize("format", ["jpg", "png", "webp", "gif", "tif", "bmp", "ppm"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_image_outlives_its_file(tmp_path, format, orientation):
    """What `open_image` returns can be resized when the file is gone, upright, the same from the disk and from memory."""
    path, exif = tmp_path / f"a.{format}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture((50, 90))).save(path, **({} if format in ("gif", "bmp", "ppm") else {"exif": exif}))
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    images = [open_image(path), open_image(StoredImage("a", path.read_bytes()))]
    path.unlink()
    for image in images:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), wanted)
        np.testing.assert_array_equal(sam_view(image, 96)[0], sam_view(wanted, 96)[0])


@pytest.mark.parametrize("hw", SIZES)
def test_pad_shows_the_whole_picture(hw):
    view = clip_view(picture(hw), 96, "pad")
    h, w = longest_side(hw, 96)
    wanted = np.asarray(Image.fromarray(picture(hw)).resize((w, h), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(view[:h, :w], wanted)
    assert (view[h:] == CLIP_MEAN_COLOUR).all()
    assert (view[:, w:] == CLIP_MEAN_COLOUR).all()


def test_unknown_view():
    with pytest.raises(UserError, match="pad or center_crop"):
        clip_view(picture((4, 4)), 8, "stretch")


@pytest.mark.parametrize("mode", ["pad", "center_crop"])
@pytest.mark.parametrize("hw", [(60, 90), (96, 64), (96, 96)])
def test_views_of_a_pillow_image_are_those_of_its_pixels(tmp_path, hw, mode):
    Image.fromarray(picture(hw)).save(tmp_path / "a.png")
    image, pixels = open_image(tmp_path / "a.png"), load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(clip_view(image, 96, mode), clip_view(pixels, 96, mode))
    (view, resized), (wanted, resized_wanted) = sam_view(image, 96), sam_view(pixels, 96)
    np.testing.assert_array_equal(view, wanted)
    assert resized == resized_wanted
