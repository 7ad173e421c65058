# SPDX-License-Identifier: Apache-2.0
"""Video files: pictures and sound stay together, and failures leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from interactive_avatar.media.audio import to_int16
from interactive_avatar.media.video import VideoError, VideoReader, VideoWriter

CHUNKS = 13


def flash_and_click(index: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Chunk ``index``: white with a tone in chunk 6, black and silent elsewhere."""
    on = index == 6
    time_s = np.arange(2560) / 16_000
    sound = to_int16(0.7 * on * np.sin(2 * np.pi * 1000 * time_s))
    return np.full((4, 64, 96, 3), 255 * on, np.uint8), sound


def test_round_trip_keeps_size_rate_and_sync(tmp_path: Path) -> None:
    path = tmp_path / 'a.mp4'
    with VideoWriter(path, 96, 64) as writer:
        for index in range(CHUNKS):
            writer.write(*flash_and_click(index))
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ['a.mp4']
    reader = VideoReader(path)
    assert (reader.width, reader.height, reader.frame_rate_hz) == (96, 64, 25.0)
    frames = np.stack(list(reader))
    assert frames.shape == (4 * CHUNKS, 64, 96, 3)
    np.testing.assert_allclose(reader.times_s(), np.arange(4 * CHUNKS) / 25, atol=1e-6)
    white = np.flatnonzero(frames.mean(axis=(1, 2, 3)) > 128)
    assert white.tolist() == [24, 25, 26, 27]
    sound = reader.audio()
    assert abs(sound.size - 2560 * CHUNKS) <= 1024
    loud = np.flatnonzero(np.abs(sound.astype(int)) > 8000)
    # The tone starts with picture 24, at 0.96 s, and ends 160 ms later; 5 ms for the codec.
    assert loud[0] / 16_000 == pytest.approx(0.96, abs=0.005)
    assert loud[-1] / 16_000 == pytest.approx(1.12, abs=0.005)


def test_sound_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / 'b.mp4'
    with VideoWriter(path, 64, 64, sample_rate_hz=0) as writer:
        writer.write(np.zeros((2, 64, 64, 3), np.uint8))
        with pytest.raises(VideoError, match='without sound'):
            writer.write(np.zeros((0, 64, 64, 3), np.uint8), np.zeros(160, np.int16))
    assert VideoReader(path).audio().size == 0


def test_an_exception_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / 'c.mp4', 64, 64) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_misuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match='65x64'):
        VideoWriter(tmp_path / 'd.mp4', 65, 64)
    with pytest.raises(VideoError, match='create the folder'):
        VideoWriter(tmp_path / 'missing' / 'd.mp4', 64, 64)
    writer = VideoWriter(tmp_path / 'd.mp4', 64, 64)
    with pytest.raises(VideoError, match='frame is 32x32'):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(VideoError, match='no picture'):
        writer.close()
    with pytest.raises(VideoError, match='closed'):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_reading_what_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match='cannot read'):
        VideoReader(tmp_path / 'missing.mp4')
    (tmp_path / 'e.mp4').write_bytes(b'nothing')
    with pytest.raises(VideoError, match='cannot read'):
        VideoReader(tmp_path / 'e.mp4')
