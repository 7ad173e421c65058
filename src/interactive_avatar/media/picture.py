# SPDX-License-Identifier: Apache-2.0
"""Still pictures: checks of a reference image, image files, JPEG, and contact sheets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MIN_REFERENCE_PX = 64
# A picture of one colour shows no face; 2 grey levels of spread is below any camera's noise.
MIN_REFERENCE_SPREAD = 2.0
MAX_PICTURE_PX = 16_384
# Encodings of ROS's cameras and their bytes per pixel; yuv422 and uyvy are the same.
CAMERA_ENCODINGS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1, 'rgba8': 4, 'bgra8': 4, 'yuv422': 2,
                    'uyvy': 2, 'yuv422_yuy2': 2, 'yuyv': 2}
SHEET_MARGIN_PX = 12
SHEET_LABEL_PX = 22
SHEET_TITLE_PX = 40
SHEET_BACKGROUND_RGB = (18, 20, 24)
SHEET_TEXT_RGB = (222, 226, 232)


class PictureError(ValueError):
    """A picture that cannot be used; the message says why and what to do."""


def check_picture(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Refuse anything but uint8 RGB [H, W, 3] with at least one pixel.

    Returns:
        The same array.

    Raises:
        PictureError: naming the shape or dtype found.
    """
    if not isinstance(image, np.ndarray):
        raise PictureError(f'picture is a {type(image).__name__}, need a numpy array uint8 '
                           f'[height, width, 3]: read it with interactive_avatar.media.read_image')
    if image.size == 0:
        raise PictureError(f'picture is empty (shape {image.shape}): was the file or the camera '
                           f'message read completely?')
    if image.ndim != 3 or image.shape[2] != 3:
        kind = {1: 'grey', 2: 'grey with alpha', 4: 'RGBA'}.get(
            image.shape[2] if image.ndim == 3 else 1 if image.ndim == 2 else 0, 'not RGB')
        raise PictureError(f'picture has shape {image.shape} ({kind}), need [height, width, 3] '
                           f'RGB: convert it to RGB first')
    if image.dtype != np.uint8:
        raise PictureError(f'picture is {image.dtype}, need uint8 from 0 to 255: scale and '
                           f'convert it first')
    return image


def check_reference(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Refuse a reference picture from which no identity can be taken.

    Args:
        image: uint8 [H, W, 3] RGB, both sides at least 64 pixels, with something in it.

    Returns:
        The same array.

    Raises:
        PictureError: if it is not RGB, is empty, too small, or of one colour.
    """
    check_picture(image)
    height, width = image.shape[:2]
    if min(height, width) < MIN_REFERENCE_PX:
        raise PictureError(f'reference picture is {width}x{height} pixels, need at least '
                           f'{MIN_REFERENCE_PX}x{MIN_REFERENCE_PX}: use a larger picture of the '
                           f'face')
    spread = float(image.std())
    if spread < MIN_REFERENCE_SPREAD:
        raise PictureError(f'reference picture is blank (grey levels spread by {spread:.1f}): '
                           f'use a picture that shows a face')
    return image


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as uint8 [H, W, 3] RGB; transparency is laid over mid grey.

    Raises:
        PictureError: if the file is missing, empty, or not an image.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f'cannot read picture {path}: {error.strerror}; check the path'
                           ) from error
    if not data:
        raise PictureError(f'picture {path} is an empty file: fetch or export it again')
    try:
        return decode_image(data)
    except PictureError as error:
        raise PictureError(f'{path}: {error}') from error


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode PNG, JPEG or WebP bytes to uint8 [H, W, 3] RGB.

    Raises:
        PictureError: if the bytes are not an image or are cut off.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if max(image.size) > MAX_PICTURE_PX:
                raise PictureError(f'picture is {image.width}x{image.height} pixels, at most '
                                   f'{MAX_PICTURE_PX} a side are accepted: scale it down')
            if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
                rgba = image.convert('RGBA')
                ground = Image.new('RGBA', rgba.size, (128, 128, 128, 255))
                return np.asarray(Image.alpha_composite(ground, rgba).convert('RGB')).copy()
            return np.asarray(image.convert('RGB')).copy()
    except UnidentifiedImageError as error:
        raise PictureError('not an image that can be decoded: use PNG, JPEG or WebP') from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f'image is damaged ({error}): fetch or export it again') from error


def picture_from_bytes(data: Buffer, height: int, width: int, step: int, encoding: str
                       ) -> NDArray[np.uint8]:
    """Pixels as a camera sends them, as uint8 [H, W, 3] RGB.

    Args:
        data: the rows, one after the other.
        height: number of rows.
        width: pixels in a row.
        step: bytes from row to row, at least what the pixels need.
        encoding: one of `CAMERA_ENCODINGS`, named as in ROS's ``sensor_msgs/image_encodings``.

    Raises:
        PictureError: on another encoding, or if the sizes do not fit the data.
    """
    if encoding not in CAMERA_ENCODINGS:
        raise PictureError(f'pictures encoded as {encoding!r} are not taken: send one of '
                           f'{", ".join(CAMERA_ENCODINGS)}')
    channels = CAMERA_ENCODINGS[encoding]
    size = memoryview(data).nbytes
    if not (0 < height <= MAX_PICTURE_PX and 0 < width <= MAX_PICTURE_PX) or \
            step < width * channels or size < step * (height - 1) + width * channels:
        raise PictureError(f'a {encoding} picture of {width}x{height} with {step} bytes a row '
                           f'does not fit {size} bytes: check width, height, step and data of the '
                           f'camera')
    if channels == 2 and width % 2:
        raise PictureError(f'a {encoding} picture has {width} pixels a row, two share their '
                           f'colour: send an even number')
    flat = np.frombuffer(memoryview(data), np.uint8)
    if size >= step * height:
        rows = flat[:step * height].reshape(height, step)[:, :width * channels]
    else:
        # The last row may come without the bytes that fill it up.
        rows = np.lib.stride_tricks.as_strided(flat, (height, width * channels), (step, 1))
    pixels = rows.reshape(height, width, channels)
    if encoding == 'rgb8':
        return np.ascontiguousarray(pixels)
    if encoding == 'rgba8':
        return np.ascontiguousarray(pixels[..., :3])
    if encoding in ('bgr8', 'bgra8'):
        return np.ascontiguousarray(pixels[..., 2::-1])
    if encoding == 'mono8':
        return np.repeat(pixels, 3, axis=2)
    import cv2  # only cameras that send YUV need it

    packed = np.ascontiguousarray(pixels)
    code = cv2.COLOR_YUV2RGB_YUY2 if encoding in ('yuv422_yuy2', 'yuyv') else \
        cv2.COLOR_YUV2RGB_UYVY
    return np.asarray(cv2.cvtColor(packed, code), np.uint8)


def write_image(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Write uint8 [H, W, 3] RGB; the format follows the file's suffix.

    Raises:
        PictureError: if the array is not a picture, or the suffix names no known format.
    """
    try:
        Image.fromarray(check_picture(image)).save(path)
    except (KeyError, ValueError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f'cannot write {path}: {error}; use .png or .jpg') from error


def encode_jpeg(image: NDArray[np.uint8], quality: int = 85) -> bytes:
    """Encode uint8 [H, W, 3] RGB as JPEG.

    Args:
        image: the picture.
        quality: 1 to 95; 85 is visually clean on faces.

    Raises:
        PictureError: if the array is not a picture.
    """
    buffer = io.BytesIO()
    # 4:2:0 colour is what video has too; it saves a third of the bytes and of the time.
    Image.fromarray(check_picture(image)).save(buffer, 'JPEG', quality=quality, subsampling=2)
    return buffer.getvalue()


def fit_square(image: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """Largest centred square of a picture, scaled to ``side_px``; uint8 [side, side, 3].

    Raises:
        PictureError: if the array is not a picture.
    """
    height, width = check_picture(image).shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top:top + side, left:left + side]
    if side == side_px:
        return square.copy()
    resized = Image.fromarray(square).resize((side_px, side_px), Image.Resampling.LANCZOS)
    return np.asarray(resized).copy()


def contact_sheet(frames: Sequence[NDArray[np.uint8]], labels: Sequence[str] | None = None,
                  columns: int = 6, cell_px: int = 192, title: str = '') -> NDArray[np.uint8]:
    """Lay frames out in rows, left to right, each with its label under it.

    Args:
        frames: pictures uint8 [H, W, 3] of any sizes.
        labels: one text per frame, cut to the cell's width; none if None.
        columns: frames per row.
        cell_px: width of a cell; pictures keep their shape and fit in ``cell_px`` squared.
        title: a line above the frames.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        PictureError: on no frames, a bad frame, or a number of labels that differs.
    """
    if not frames:
        raise PictureError('contact sheet has no frames: record at least one first')
    if labels is not None and len(labels) != len(frames):
        raise PictureError(f'contact sheet got {len(labels)} labels for {len(frames)} frames: '
                           f'give one label per frame')
    if columns < 1 or cell_px < 16:
        raise PictureError(f'contact sheet of {columns} columns of {cell_px} px: need at least '
                           f'1 column of 16 px')
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    label_px = SHEET_LABEL_PX if labels is not None else 0
    top_px = SHEET_MARGIN_PX + (SHEET_TITLE_PX if title else 0)
    row_px = cell_px + label_px + SHEET_MARGIN_PX
    sheet = Image.new('RGB', (SHEET_MARGIN_PX + columns * (cell_px + SHEET_MARGIN_PX),
                              top_px + rows * row_px), SHEET_BACKGROUND_RGB)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    if title:
        draw.text((SHEET_MARGIN_PX, SHEET_MARGIN_PX), title, SHEET_TEXT_RGB,
                  font=ImageFont.load_default(size=20))
    for index, frame in enumerate(frames):
        x = SHEET_MARGIN_PX + index % columns * (cell_px + SHEET_MARGIN_PX)
        y = top_px + index // columns * row_px
        picture = Image.fromarray(check_picture(frame))
        scale = cell_px / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)),
                                  max(1, round(picture.height * scale))),
                                 Image.Resampling.LANCZOS)
        sheet.paste(picture, (x + (cell_px - picture.width) // 2,
                              y + (cell_px - picture.height) // 2))
        if labels is not None:
            draw.text((x, y + cell_px + 4), _cut_text(draw, labels[index], font, cell_px),
                      SHEET_TEXT_RGB, font=font)
    return np.asarray(sheet).copy()


def _cut_text(draw: ImageDraw.ImageDraw, text: str,
              font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    if draw.textlength(text, font=font) <= width_px:
        return text
    while text and draw.textlength(text + '…', font=font) > width_px:
        text = text[:-1]
    return text + '…'
