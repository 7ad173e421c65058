# SPDX-License-Identifier: Apache-2.0
"""Video files: MP4 with H.264 pictures and AAC sound, written and read with PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from interactive_avatar.media.audio import check_samples
from interactive_avatar.media.clock import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from interactive_avatar.media.picture import PictureError, check_picture

AAC_BIT_RATE = 96_000
AAC_FRAME_SAMPLES = 1024


class VideoError(ValueError):
    """A video file that cannot be written or read; the message says why."""


class VideoWriter:
    """Writes one MP4: H.264 pictures at a fixed rate, and mono AAC sound that starts with them.

    The file appears under its name only when it is complete; until then it is ``<name>.part``.
    Sound and pictures may be written in any blocks: each stream keeps its own time, counted
    from its first frame and first sample.

    Args:
        path: the file to write, ``.mp4``.
        width: picture width in pixels, even.
        height: picture height in pixels, even.
        frame_rate_hz: pictures per second.
        sample_rate_hz: rate of the sound given to `write`; 0 for a video without sound.
        crf: x264 constant rate factor, 0 (lossless) to 51; 18 is visually clean.

    Raises:
        VideoError: on odd or non-positive sizes, or a folder that cannot be written.
    """

    def __init__(self, path: str | Path, width: int, height: int,
                 frame_rate_hz: int = FRAME_RATE_HZ, sample_rate_hz: int = SAMPLE_RATE_HZ,
                 crf: int = 18) -> None:
        if width <= 0 or height <= 0 or width % 2 or height % 2:
            raise VideoError(f'video size is {width}x{height}, H.264 needs even positive sides: '
                             f'crop or pad by a pixel')
        self.path = Path(path)
        self.frames_written = 0
        self.samples_written = 0
        self._size = (height, width)
        self._frame_time = Fraction(1, frame_rate_hz)
        self._sample_rate_hz = sample_rate_hz
        self._part = self.path.with_name(self.path.name + '.part')
        try:
            # FFmpeg opens the file at the first packet only; say now that it cannot be written.
            self._part.touch()
            self._container = av.open(str(self._part), 'w', format='mp4')
        except (OSError, FFmpegError) as error:
            raise VideoError(f'cannot write {self.path}: {error}; create the folder or choose '
                             f'another') from error
        self._video: VideoStream = self._container.add_stream('libx264', rate=frame_rate_hz)
        self._video.width, self._video.height = width, height
        self._video.pix_fmt = 'yuv420p'
        self._video.codec_context.time_base = self._frame_time
        # Two threads: the writer runs beside the avatar, which needs the machine.
        self._video.codec_context.thread_count = 2
        self._video.options = {'crf': str(crf), 'preset': 'veryfast'}
        self._audio: AudioStream | None = None
        self._pending = np.zeros(0, np.int16)
        if sample_rate_hz:
            self._audio = self._container.add_stream('aac', rate=sample_rate_hz, layout='mono')
            self._audio.bit_rate = AAC_BIT_RATE
        self._closed = False

    def write(self, frames: NDArray[np.uint8], audio: NDArray[np.int16] | None = None) -> None:
        """Append pictures and sound.

        Args:
            frames: uint8 [n, H, W, 3] or [H, W, 3] RGB; n may be 0.
            audio: int16 [m], or None.

        Raises:
            VideoError: after `close`, on sound for a video without sound, or pictures of
                another size.
            PictureError: on an array that is not a picture.
            AudioFormatError: on an array that is not a flat int16 array.
        """
        if self._closed:
            raise VideoError(f'{self.path} is closed: open a new writer')
        for frame in frames[None] if frames.ndim == 3 else frames:
            if check_picture(frame).shape[:2] != self._size:
                raise VideoError(f'frame is {frame.shape[1]}x{frame.shape[0]}, the video is '
                                 f'{self._size[1]}x{self._size[0]}: scale the frame first')
            picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format='rgb24')
            picture.pts, picture.time_base = self.frames_written, self._frame_time
            self._container.mux(self._video.encode(picture))
            self.frames_written += 1
        if audio is not None and audio.size:
            if self._audio is None:
                raise VideoError(f'{self.path} was opened without sound: give sample_rate_hz')
            check_samples(audio)
            self._pending = np.concatenate([self._pending, audio])
            whole = self._pending.size // AAC_FRAME_SAMPLES * AAC_FRAME_SAMPLES
            self._encode_audio(self._pending[:whole])
            self._pending = self._pending[whole:].copy()

    def _encode_audio(self, samples: NDArray[np.int16]) -> None:
        if self._audio is None or not samples.size:
            return
        # Planar float is what the AAC encoder takes.
        planar = np.ascontiguousarray(samples.astype(np.float32)[None] / 32768.0)
        sound = AudioFrame.from_ndarray(planar, format='fltp', layout='mono')
        sound.sample_rate = self._sample_rate_hz
        sound.pts, sound.time_base = self.samples_written, Fraction(1, self._sample_rate_hz)
        self._container.mux(self._audio.encode(sound))
        self.samples_written += samples.size

    def close(self) -> None:
        """Finish the file and give it its name; may be called again.

        Raises:
            VideoError: if no picture was written.
        """
        if self._closed:
            return
        self._closed = True
        if not self.frames_written:
            self._discard()
            raise VideoError(f'no picture was written to {self.path}: nothing to keep')
        self._encode_audio(self._pending)
        self._container.mux(self._video.encode(None))
        if self._audio is not None and self.samples_written:
            self._container.mux(self._audio.encode(None))
        self._container.close()
        os.replace(self._part, self.path)

    def _discard(self) -> None:
        self._container.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        """The writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Close the file; after an exception, drop it."""
        if kind is None:
            self.close()
        elif not self._closed:
            self._closed = True
            self._discard()


class VideoReader:
    """Reads a video file's pictures and sound.

    Args:
        path: any file that FFmpeg's libraries can read.

    Attributes:
        width: picture width in pixels.
        height: picture height in pixels.
        frame_rate_hz: mean pictures per second.
        has_audio: whether the file has sound.

    Raises:
        VideoError: if the file is missing, damaged, or has no pictures.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._open() as container:
            if not container.streams.video:
                raise VideoError(f'{path} holds no pictures: give a video file')
            video = container.streams.video[0]
            self.width, self.height = video.codec_context.width, video.codec_context.height
            self.frame_rate_hz = float(video.average_rate or FRAME_RATE_HZ)
            self.has_audio = bool(container.streams.audio)

    def _open(self) -> av.container.InputContainer:
        try:
            return av.open(str(self.path))
        except (OSError, FFmpegError) as error:
            raise VideoError(f'cannot read video {self.path}: {error}; check the path, or make '
                             f'the file again if it was cut off') from error

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Pictures in order, uint8 [H, W, 3] RGB each."""
        with self._open() as container:
            for frame in container.decode(video=0):
                yield np.asarray(frame.to_ndarray(format='rgb24'), np.uint8)

    def times_s(self) -> list[float]:
        """Presentation time of each picture in seconds, as the file has it."""
        with self._open() as container:
            return [float(frame.time) for frame in container.decode(video=0)
                    if frame.time is not None]

    def audio(self, sample_rate_hz: int = SAMPLE_RATE_HZ) -> NDArray[np.int16]:
        """The whole sound as mono int16 [n], from the file's time 0; empty if there is none."""
        if not self.has_audio:
            return np.zeros(0, np.int16)
        resampler = AudioResampler(format='s16', layout='mono', rate=sample_rate_hz)
        parts: list[NDArray[np.int16]] = []
        start_s: float | None = None
        with self._open() as container:
            for frame in container.decode(audio=0):
                if start_s is None:
                    start_s = float(frame.time or 0.0)
                for block in resampler.resample(frame):
                    parts.append(np.asarray(block.to_ndarray(), np.int16).reshape(-1))
            for block in resampler.resample(None):
                parts.append(np.asarray(block.to_ndarray(), np.int16).reshape(-1))
        sound = np.concatenate(parts) if parts else np.zeros(0, np.int16)
        # Sound that starts late is led by silence; an encoder's priming, before 0, is cut.
        lead = round((start_s or 0.0) * sample_rate_hz)
        return np.concatenate([np.zeros(lead, np.int16), sound]) if lead > 0 else sound[-lead:]


__all__ = ['PictureError', 'VideoError', 'VideoReader', 'VideoWriter']
