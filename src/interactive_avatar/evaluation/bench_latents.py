# SPDX-License-Identifier: Apache-2.0
"""``avatar bench latents``: what a model's decoder makes of true latents.

Held-out performances are rendered, encoded and decoded again. What is lost there no denoiser can
bring back, so these figures bound those of ``avatar evaluate model`` from the good side.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from interactive_avatar.evaluation import judges, metrics
from interactive_avatar.evaluation.held_out import held_out_plays
from interactive_avatar.evaluation.report import number, table
from interactive_avatar.media.clock import FRAMES_PER_CHUNK

if TYPE_CHECKING:
    from interactive_avatar.generator.autoencoder import Autoencoder

TRUTH = 'true pictures'


@dataclass(frozen=True)
class Options:
    """What to measure: folders of models, how many performances of how many seconds, the standard
    deviation of noise on the latents, and the training assets.

    Raises:
        ValueError: on no performances.
    """

    models: tuple[Path, ...]
    performances: int
    seconds: float
    noise: float
    people: Path
    speech: Path

    def __post_init__(self) -> None:
        if self.performances < 1:
            raise ValueError(f'--performances is {self.performances}: give 1 or more')


def decoded(autoencoder: Autoencoder, frames: NDArray[np.uint8], picture: NDArray[np.uint8],
            noise: float = 0.0) -> NDArray[np.uint8]:
    """Frames encoded and decoded chunk after chunk, as a stream does.

    Args:
        autoencoder: of the model, on the CPU.
        frames: uint8 [n, H, W, 3], n a multiple of 4.
        picture: the reference, uint8 [H, W, 3].
        noise: standard deviation of what is added to the latents, the same in every call.

    Returns:
        uint8 [n, H, W, 3].

    Raises:
        ValueError: if the frames are no whole chunks.
    """
    import torch

    from interactive_avatar.generator.autoencoder import as_input, as_pixels

    if len(frames) % FRAMES_PER_CHUNK or not len(frames):
        raise ValueError(f'got {len(frames)} frames: give whole chunks of {FRAMES_PER_CHUNK}')
    with torch.no_grad():
        latents = torch.cat([
            autoencoder.encode(as_input(torch.from_numpy(chunk)[None]))
            for chunk in np.split(frames, len(frames) // FRAMES_PER_CHUNK)])[None]
        draw = torch.Generator().manual_seed(0)
        latents = latents + noise * torch.randn(latents.shape, generator=draw)
        made = autoencoder.decode_clip(latents, as_input(torch.from_numpy(picture)[None]))
        return np.asarray(as_pixels(made[0].flatten(0, 1)))


def figures(made: NDArray[np.uint8], true: NDArray[np.uint8], gap: NDArray[np.float64],
            opening: NDArray[np.float32]) -> dict[str, float]:
    """How decoded frames differ from the true ones.

    Args:
        made, true: uint8 [n, H, W, 3].
        gap: lip gap that the judge saw in ``made``, [n]. opening: the true one, [n].

    Returns:
        ``l1_grey``, mean absolute error in grey levels; ``seams``, see `metrics.seam_ratio`;
        ``lips``, see `metrics.lip_fit`.

    Raises:
        ValueError: if the lengths differ, or are too short for these metrics.
    """
    error = np.mean([np.abs(a.astype(np.int16) - b).mean() for a, b in zip(made, true,
                                                                           strict=True)])
    return {'l1_grey': float(error), 'seams': metrics.seam_ratio(made),
            'lips': metrics.lip_fit(gap, opening).correlation}


def run(options: Options) -> dict[str, Any]:
    """Measure.

    Returns:
        Figures by model and person, and their means.

    Raises:
        judges.JudgeMissing: without mediapipe.
        FileNotFoundError: without the assets or a model.
    """
    from interactive_avatar.generator.model import WEIGHTS_NAME, ModelFiles
    from interactive_avatar.generator.networks import Generator
    from interactive_avatar.training.render.people import People
    from interactive_avatar.training.render.renderer import Renderer
    from interactive_avatar.training.speech.library import SpeechLibrary

    found: dict[str, dict[str, dict[str, float]]] = {}
    decoders: dict[int, dict[str, Autoencoder]] = {}
    for folder in options.models:
        generator = Generator(ModelFiles.open(folder).config)
        generator.load(folder / WEIGHTS_NAME)
        side = generator.config.autoencoder.picture_px
        decoders.setdefault(side, {})[str(folder)] = generator.autoencoder.eval()
    library, people = SpeechLibrary.load(options.speech), People(options.people)
    with judges.MeshJudge() as mesh:
        # One size after the other: renderers side by side draw into each other's context.
        for side, own in decoders.items():
            renderer = Renderer(people, size=side)
            # Larger pictures have other seams and errors: each size has a truth of its own.
            truth = f'{TRUTH}, {side}×{side}' if len(decoders) > 1 else TRUTH
            for play in held_out_plays(people.split(held_out=True), library,
                                       options.performances, options.seconds):
                person = f'person_{play.identity:03d}'
                frames, _ = renderer.render(play.identity, play.units, play.head, play.glasses,
                                            play.hat)
                picture = renderer.reference_view(play.identity)
                found.setdefault(truth, {})[person] = figures(
                    frames, frames, mesh.track(frames).lip_gap, play.mouth_open)
                for name, autoencoder in own.items():
                    made = decoded(autoencoder, frames, picture, options.noise)
                    row = figures(made, frames, mesh.track(made).lip_gap, play.mouth_open)
                    found.setdefault(name, {})[person] = row
                    print(f'{person}, {name}: error {row["l1_grey"]:.2f} grey levels, seams '
                          f'{row["seams"]:.2f}, lips {row["lips"]:.2f}', file=sys.stderr,
                          flush=True)
            renderer.close()
    means = {name: {key: float(np.mean([row[key] for row in rows.values()]))
                    for key in ('l1_grey', 'seams', 'lips')} for name, rows in found.items()}
    print(table(['model', 'error (grey levels)', 'seams', 'lips, correlation'],
                [[name, *(number(value) for value in row.values())]
                 for name, row in means.items()]))
    return {'benchmark': 'latents', 'noise': options.noise, 'seconds': options.seconds,
            'means': means, 'by_person': found}
