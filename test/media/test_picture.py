# SPDX-License-Identifier: Apache-2.0
"""Pictures: what is refused, files, JPEG, and contact sheets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from interactive_avatar.media import (
    PictureError,
    check_reference,
    contact_sheet,
    decode_image,
    encode_jpeg,
    fit_square,
    picture_from_bytes,
    read_image,
    write_image,
)


def ramp(height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """A picture with a different colour at every place."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize(('image', 'named'), [
    (np.zeros((0, 0, 3), np.uint8), 'empty'),
    (np.zeros((96, 96), np.uint8), 'grey'),
    (np.zeros((96, 96, 1), np.uint8), 'grey'),
    (np.zeros((96, 96, 4), np.uint8), 'RGBA'),
    (np.zeros((2, 96, 96, 3), np.uint8), 'not RGB'),
    (np.zeros((96, 96, 3), np.float32), 'float32'),
    (ramp(32, 128), '128x32'),
    (np.full((96, 96, 3), 200, np.uint8), 'blank'),
    ('face.png', 'str'),
])
def test_bad_reference_is_refused(image: NDArray[np.uint8], named: str) -> None:
    with pytest.raises(PictureError, match=named):
        check_reference(image)


def test_good_reference_passes() -> None:
    image = ramp()
    assert check_reference(image) is image


def test_files_round_trip(tmp_path: Path) -> None:
    write_image(tmp_path / 'a.png', ramp())
    assert np.array_equal(read_image(tmp_path / 'a.png'), ramp())
    with pytest.raises(PictureError, match=r'a\.xyz'):
        write_image(tmp_path / 'a.xyz', ramp())


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match='check the path'):
        read_image(tmp_path / 'missing.png')
    (tmp_path / 'empty.png').write_bytes(b'')
    with pytest.raises(PictureError, match='empty file'):
        read_image(tmp_path / 'empty.png')
    (tmp_path / 'text.png').write_text('not a picture')
    with pytest.raises(PictureError, match=r'text\.png: not an image'):
        read_image(tmp_path / 'text.png')
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    write_image(tmp_path / 'whole.png', noise)
    cut = (tmp_path / 'whole.png').read_bytes()[:5000]
    with pytest.raises(PictureError, match='damaged'):
        decode_image(cut)


def test_transparency_is_laid_over_grey() -> None:
    buffer = io.BytesIO()
    Image.new('RGBA', (8, 8), (255, 0, 0, 0)).save(buffer, 'PNG')
    assert (decode_image(buffer.getvalue()) == 128).all()


def test_jpeg_is_close() -> None:
    smooth = ramp()
    smooth[..., 2] = 90
    decoded = decode_image(encode_jpeg(smooth, 90))
    assert np.abs(decoded.astype(int) - smooth).mean() < 3


def test_fit_square_takes_the_middle() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 32:96] = 255
    assert (fit_square(image, 64) == 255).all()
    assert fit_square(image, 100).shape == (100, 100, 3)


def test_contact_sheet_lays_out_rows() -> None:
    frames = [np.full((32, 32, 3), value, np.uint8) for value in (50, 100, 150, 200, 250)]
    sheet = contact_sheet(frames, ['a', 'b', 'c', 'd', 'x' * 200], columns=3, cell_px=64,
                          title='A title')
    height, width = sheet.shape[:2]
    assert width == 12 + 3 * 76
    assert height == 12 + 40 + 2 * (64 + 22 + 12)
    assert (sheet[52:116, 12:76] == 50).all()
    assert (sheet[150:214, 88:152] == 250).all()
    with pytest.raises(PictureError, match='no frames'):
        contact_sheet([])
    with pytest.raises(PictureError, match='2 labels for 5'):
        contact_sheet(frames, ['a', 'b'])
    with pytest.raises(PictureError, match='0 columns'):
        contact_sheet(frames, columns=0)


def camera_bytes(encoding: str, picture: NDArray[np.uint8], padding: int = 0) -> tuple[bytes, int]:
    """What a camera sends for a picture, and its bytes per row."""
    height, width = picture.shape[:2]
    if encoding == 'mono8':
        rows = picture[..., :1]
    elif encoding in ('bgr8', 'bgra8'):
        rows = picture[..., ::-1]
    else:
        rows = picture
    if encoding in ('rgba8', 'bgra8'):
        rows = np.concatenate([rows, np.full((height, width, 1), 7, np.uint8)], axis=2)
    rows = rows.reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    return rows.tobytes(), rows.shape[1]


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8', 'mono8', 'rgba8', 'bgra8'])
def test_pictures_of_cameras_come_out_as_rgb(encoding: str, padding: int) -> None:
    picture = ramp(6, 9)
    data, step = camera_bytes(encoding, picture, padding)
    expected = np.repeat(picture[..., :1], 3, 2) if encoding == 'mono8' else picture
    found = picture_from_bytes(data, 6, 9, step, encoding)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous
    # Some drivers leave out what fills up the last row.
    if padding:
        np.testing.assert_array_equal(
            picture_from_bytes(data[:-padding], 6, 9, step, encoding), expected)


@pytest.mark.parametrize('encoding, order', [
    ('yuv422', 'UYVY'), ('uyvy', 'UYVY'), ('yuv422_yuy2', 'YUYV'), ('yuyv', 'YUYV')])
def test_yuv_of_cameras_becomes_rgb(encoding: str, order: str) -> None:
    pytest.importorskip('cv2')
    # ITU-R BT.601, limited range: red is (82, 90, 240), and grey has no colour.
    for (y, u, v), rgb in (((82, 90, 240), (255, 0, 0)), ((126, 128, 128), (128, 128, 128))):
        pair = bytes({'Y': y, 'U': u, 'V': v}[name] for name in order)
        found = picture_from_bytes(pair * 8, 4, 4, 8, encoding)
        assert found.shape == (4, 4, 3)
        assert np.abs(found.astype(int) - rgb).max() <= 3


@pytest.mark.parametrize('encoding, height, width, step, named', [
    ('32FC1', 4, 4, 16, "'32FC1' are not taken: send one of rgb8"),
    ('rgb8', 4, 4, 8, '8 bytes a row'), ('rgb8', 5, 4, 12, 'does not fit 48 bytes'),
    ('rgb8', 0, 4, 12, '4x0'), ('yuv422', 4, 3, 12, 'even number'), ('', 4, 4, 12, "''")])
def test_pictures_that_do_not_fit_are_refused(encoding: str, height: int, width: int, step: int,
                                              named: str) -> None:
    with pytest.raises(PictureError, match=named):
        picture_from_bytes(bytes(48), height, width, step, encoding)
