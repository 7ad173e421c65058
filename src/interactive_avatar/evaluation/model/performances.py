# SPDX-License-Identifier: Apache-2.0
"""Plays the held-out performances and keeps what the judges saw: several claims read from it.

Each performance's findings are kept in a file named by the model's hash, so that a run that was
cut off goes on, and a second claim costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import judges, metrics
from interactive_avatar.evaluation.bench_lips import generate
from interactive_avatar.evaluation.held_out import (
    IDENTITY_EVERY_FRAMES,
    LOOK_EVERY_FRAMES,
    HeldOut,
)
from interactive_avatar.evaluation.model import frechet
from interactive_avatar.evaluation.model.play import Player
from interactive_avatar.media.clock import SAMPLES_PER_FRAME
from interactive_avatar.media.video import VideoWriter

STRIP_EVERY_FRAMES: Final = 75


@dataclass(frozen=True)
class Seen:
    """What the judges saw of one generated performance.

    Attributes:
        gap: float64 [n], lip gap, NaN without a face.
        identity: float64 [m, 128] every `IDENTITY_EVERY_FRAMES` frames, NaN without a face.
        reference: float64 [128] of the reference picture.
        look: float32 [k, d], `frechet.features` every `LOOK_EVERY_FRAMES` frames.
        change: float64 [n - 1], `metrics.frame_change`; luma_change: `metrics.luma_change`.
        opening: float64 [n], of the eyes, height over width, NaN without a face.
        strip: uint8 [s, H, W, 3], a few of the frames.
    """

    gap: NDArray[np.float64]
    identity: NDArray[np.float64]
    reference: NDArray[np.float64]
    look: NDArray[np.float32]
    change: NDArray[np.float64]
    luma_change: NDArray[np.float64]
    opening: NDArray[np.float64]
    strip: NDArray[np.uint8]


def look_at(item: HeldOut, frames: NDArray[np.uint8], mesh: judges.MeshJudge,
            identity: judges.IdentityJudge) -> Seen:
    """Show generated frames of a performance to the judges."""
    track = mesh.track(frames)
    return Seen(track.lip_gap, identity.embed_all(frames[::IDENTITY_EVERY_FRAMES]),
                identity.embed(item.reference),
                np.array([frechet.features(frame) for frame in frames[::LOOK_EVERY_FRAMES]]),
                metrics.frame_change(frames), metrics.luma_change(frames), track.eye_opening,
                frames[::STRIP_EVERY_FRAMES])


def play_all(items: Sequence[HeldOut], player: Player, folder: Path,
             say: Callable[[str], None]) -> list[Seen]:
    """Generate and look at every performance that has not been yet.

    Args:
        items: the held-out set.
        player: the generator.
        folder: for what was found, and the videos.
        say: told of each performance.

    Raises:
        judges.JudgeMissing: without mediapipe or dlib.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    wanted = {field.name for field in fields(Seen)}
    mesh: judges.MeshJudge | None = None
    identity: judges.IdentityJudge | None = None
    for item in items:
        path = folder / f'{item.file_name}_{player.key}.npz'
        if not _holds(path, wanted):
            mesh, identity = mesh or judges.MeshJudge(), identity or judges.IdentityJudge()
            frames = generate(item, player)
            with VideoWriter(video_of(item, player, folder), frames.shape[2],
                             frames.shape[1]) as writer:
                writer.write(frames, item.audio[:len(frames) * SAMPLES_PER_FRAME])
            seen = look_at(item, frames, mesh, identity)
            part = path.with_suffix('.part.npz')
            np.savez_compressed(part, **vars(seen))
            part.replace(path)
        with np.load(path) as data:
            found.append(Seen(**{name: data[name] for name in data.files}))
        fit = metrics.lip_fit(found[-1].gap, item.mouth_open[:found[-1].gap.size])
        say(f'{item.name}: lips {fit.correlation:.2f}, lag {fit.lag_ms:.0f} ms')
    if mesh is not None:
        mesh.close()
    return found


def _holds(path: Path, wanted: set[str]) -> bool:
    """Whether a file has these arrays: what an earlier version found may lack some."""
    if not path.exists():
        return False
    with np.load(path) as data:
        return set(data.files) == wanted


def video_of(item: HeldOut, player: Player, folder: Path) -> Path:
    """Where the video of a performance lies."""
    return folder / f'{item.file_name}_{player.key}.mp4'
