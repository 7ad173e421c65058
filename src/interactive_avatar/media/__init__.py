# SPDX-License-Identifier: Apache-2.0
"""Audio and picture primitives, the media clock and video files; knows nothing of the rest.

Video files (`VideoWriter`, `VideoReader`) need PyAV and pictures need Pillow; both are loaded
when first asked for, so that the clock and the sound need numpy only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from interactive_avatar.media.audio import (
    AudioFormat,
    AudioFormatError,
    Chunker,
    Gap,
    Resampler,
    SequenceGuard,
    check_samples,
    level_dbfs,
    mix_to_mono,
    read_wav,
    resample,
    samples_from_bytes,
    samples_to_bytes,
    silence,
    to_float32,
    to_int16,
    write_wav,
)
from interactive_avatar.media.clock import (
    CHUNK_MS,
    CHUNK_NS,
    CHUNK_SAMPLES,
    FRAME_NS,
    FRAME_RATE_HZ,
    FRAMES_PER_CHUNK,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
    MediaClock,
)
from interactive_avatar.media.mel import MEL_BANDS, log_mel, mel_from_bytes, mel_to_bytes

if TYPE_CHECKING:
    from interactive_avatar.media.picture import (
        PictureError,
        check_picture,
        check_reference,
        contact_sheet,
        decode_image,
        encode_jpeg,
        fit_square,
        picture_from_bytes,
        read_image,
        write_image,
    )
    from interactive_avatar.media.video import VideoError, VideoReader, VideoWriter

_LAZY = {
    **dict.fromkeys(('PictureError', 'check_picture', 'check_reference', 'contact_sheet',
                     'decode_image', 'encode_jpeg', 'fit_square', 'picture_from_bytes',
                     'read_image', 'write_image'),
                    'interactive_avatar.media.picture'),
    **dict.fromkeys(('VideoError', 'VideoReader', 'VideoWriter'),
                    'interactive_avatar.media.video'),
}


def __getattr__(name: str) -> Any:
    """Load pictures and video on first use (PEP 562)."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = [
    'CHUNK_MS', 'CHUNK_NS', 'CHUNK_SAMPLES', 'FRAMES_PER_CHUNK', 'FRAME_NS', 'FRAME_RATE_HZ',
    'MEL_BANDS', 'SAMPLES_PER_FRAME', 'SAMPLE_RATE_HZ', 'AudioFormat', 'AudioFormatError',
    'Chunker', 'Gap', 'MediaClock', 'PictureError', 'Resampler', 'SequenceGuard', 'VideoError',
    'VideoReader', 'VideoWriter', 'check_picture', 'check_reference', 'check_samples',
    'contact_sheet', 'decode_image', 'encode_jpeg', 'fit_square', 'level_dbfs', 'log_mel',
    'mel_from_bytes', 'mel_to_bytes', 'mix_to_mono', 'picture_from_bytes', 'read_image',
    'read_wav', 'resample', 'samples_from_bytes', 'samples_to_bytes', 'silence', 'to_float32',
    'to_int16', 'write_image', 'write_wav',
]
