# SPDX-License-Identifier: Apache-2.0
"""The media clock: one time base for sound and picture (docs/architecture.md)."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE_RATE_HZ = 16_000
FRAME_RATE_HZ = 25
FRAMES_PER_CHUNK = 4
CHUNK_MS = 160
FRAME_MS = CHUNK_MS // FRAMES_PER_CHUNK
CHUNK_NS = CHUNK_MS * 1_000_000
FRAME_NS = CHUNK_NS // FRAMES_PER_CHUNK
CHUNK_SAMPLES = SAMPLE_RATE_HZ * CHUNK_MS // 1000
SAMPLES_PER_FRAME = CHUNK_SAMPLES // FRAMES_PER_CHUNK


@dataclass(frozen=True)
class MediaClock:
    """Presentation stamps of chunks and frames, all derived from one origin.

    Attributes:
        t0_ns: presentation time of chunk 0, nanoseconds since the epoch of the caller's clock.
    """

    t0_ns: int

    def chunk_stamp_ns(self, index: int) -> int:
        """Stamp of the first sample and first frame of chunk ``index``, in nanoseconds."""
        return self.t0_ns + index * CHUNK_NS

    def frame_stamp_ns(self, index: int, frame: int) -> int:
        """Stamp of frame ``frame`` (0 to 3) of chunk ``index``, in nanoseconds.

        Raises:
            ValueError: if ``frame`` is not one of the chunk's four frames.
        """
        if not 0 <= frame < FRAMES_PER_CHUNK:
            raise ValueError(f'frame {frame} is outside a chunk of {FRAMES_PER_CHUNK} frames')
        return self.chunk_stamp_ns(index) + frame * FRAME_NS

    def chunk_at(self, now_ns: int) -> int:
        """Index of the chunk that is being presented at ``now_ns`` (negative before ``t0_ns``)."""
        return (now_ns - self.t0_ns) // CHUNK_NS
