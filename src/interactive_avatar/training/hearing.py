# SPDX-License-Identifier: Apache-2.0
"""Stage: hearing other voices, learnt by the audio encoder from itself.

The encoder reads the jaw of voices that it was trained on off their sound with a correlation of
0.98, of others with 0.82 to 0.96, and recorded people differ more than synthesisers do. So
it (the tutor, frozen) says what its tokens are for a sound as it was synthesised, and it (the
learner) is asked for the very same tokens of that sound in another voice: the spectrum warped as
by a longer or shorter throat (vocal tract length perturbation, Jaitly and Hinton 2013), equalised,
narrowed to a telephone's, with an echo, with somebody else in the background, with noise. As the
tokens stay what they were, the denoiser needs no training.

Of voices that the tutor does not understand itself, tokens are not asked for; mouth units are, as
the phones that are spoken give them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from interactive_avatar.generator.audio import AudioEncoder
from interactive_avatar.generator.config import AudioConfig
from interactive_avatar.media.clock import FRAMES_PER_CHUNK
from interactive_avatar.media.mel import (
    MEL_BANDS,
    MEL_CEILING_LN,
    MEL_FLOOR_LN,
    MEL_MAX_HZ,
    MEL_MIN_HZ,
)
from interactive_avatar.training.audio import disturb
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import mel_nepers
from interactive_avatar.training.speech.library import MEL_FRAMES_PER_FRAME, SpeechLibrary
from interactive_avatar.training.stage import Optimiser, Run, Stage, compile_layers

WARP_BEND_HZ: Final = 4800.0
"""Up to here a throat's length scales frequencies; above they are led to where they end."""
TELEPHONE_HZ: Final = (3000.0, 4000.0)
MEL_HOP_S: Final = 0.01


@dataclass(frozen=True)
class HearingOptions:
    """Options of the stage; batch counts windows per process and part.

    Attributes:
        clear_share: windows that are left as they are.
        warp: up to so much the logarithm of frequencies is moved, either way.
        equalised_nepers: spread of each of six cosines over the bands.
        narrow_share, echo_share, babble_share: how often a sound is a telephone's, comes with an
            echo, with somebody else behind it.
        token_weight, mouth_weight: of the squared error of tokens, in units of their spread, and
            of mouth units (L1).
        trust: correlation of the jaw as the tutor hears it with the true one, of an utterance,
            below which its tokens count nothing, and above which they count fully.
        voice_power: voices are drawn by their amount of speech to this power.

    Raises:
        ValueError: if the bounds of ``trust`` do not rise.
    """

    batch: int = 512
    clear_share: float = 0.15
    warp: float = 0.22
    equalised_nepers: float = 0.5
    narrow_share: float = 0.25
    echo_share: float = 0.3
    babble_share: float = 0.3
    token_weight: float = 1.0
    mouth_weight: float = 3.0
    trust: tuple[float, float] = (0.85, 0.95)
    voice_power: float = 0.5
    peak_rate: float = 5e-4
    weight_decay: float = 1e-3
    average_decay: float = 0.998
    settle_steps: int = 50

    def __post_init__(self) -> None:
        if not self.trust[0] < self.trust[1]:
            raise ValueError(f'trust is {self.trust}: give two correlations, the lower one first')


def band_hz(bands: Tensor) -> Tensor:
    """Frequencies of (fractional) mel bands' centres, in Hz (HTK's mel scale)."""
    low, high = (2595.0 * math.log10(1.0 + hz / 700.0) for hz in (MEL_MIN_HZ, MEL_MAX_HZ))
    mel = low + (bands + 1.0) / (MEL_BANDS + 1.0) * (high - low)
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def hz_band(hz: Tensor) -> Tensor:
    """The reverse of `band_hz`."""
    low, high = (2595.0 * math.log10(1.0 + at / 700.0) for at in (MEL_MIN_HZ, MEL_MAX_HZ))
    mel = 2595.0 * torch.log10(1.0 + hz / 700.0)
    return (mel - low) / (high - low) * (MEL_BANDS + 1.0) - 1.0


def warped(mel: Tensor, factor: Tensor) -> Tensor:
    """Spectra [B, t, 64] as another throat would make them: what was at f is at f × factor [B]
    (piecewise linear as in Jaitly and Hinton 2013, so that the highest band stays)."""
    count, bands = len(mel), mel.shape[-1]
    hz = band_hz(torch.arange(bands, device=mel.device, dtype=torch.float32)).expand(count, -1)
    by = factor[:, None]
    bend = WARP_BEND_HZ * by.clamp_max(1.0)
    rest = (MEL_MAX_HZ - bend / by) / (MEL_MAX_HZ - bend)
    source = torch.where(hz <= bend, hz / by, MEL_MAX_HZ - (MEL_MAX_HZ - hz) * rest)
    at = hz_band(source).clamp(0.0, bands - 1.0)
    first = at.floor().clamp_max(bands - 2.0)
    index = first.long()[:, None].expand_as(mel)
    share = (at - first)[:, None]
    return mel.gather(2, index) * (1.0 - share) + mel.gather(2, index + 1) * share


def equalised(mel: Tensor, nepers: float) -> Tensor:
    """Spectra [B, t, 64] with six random cosines over the bands added; silence stays silence."""
    count, bands = len(mel), mel.shape[-1]
    place = (torch.arange(bands, device=mel.device) + 0.5) / bands
    waves = torch.cos(math.pi * torch.arange(1, 7, device=mel.device)[:, None] * place)
    curve = nepers * torch.randn(count, 6, device=mel.device) @ waves
    return torch.where(mel <= MEL_FLOOR_LN + 0.1, mel, mel + curve[:, None])


def narrowed(mel: Tensor) -> Tensor:
    """Spectra [B, t, 64] without what lies above a telephone's band, 3 to 4 kHz."""
    low, high = TELEPHONE_HZ
    edge = low + (high - low) * torch.rand(len(mel), 1, 1, device=mel.device)
    hz = band_hz(torch.arange(mel.shape[-1], device=mel.device, dtype=torch.float32))
    fall = ((hz - edge) / 300.0).clamp(0.0, 1.0) * 12.0
    return (mel - fall).clamp_min(MEL_FLOOR_LN)


def echoing(mel: Tensor) -> Tensor:
    """Spectra [B, t, 64] in a room: energies that die away over 50 to 300 ms are added, 3 to 17 dB
    below the sound."""
    count, frames, _ = mel.shape
    device = mel.device
    fall = torch.exp(-MEL_HOP_S / (0.02 + 0.1 * torch.rand(count, 1, device=device)))
    kernel = fall ** torch.arange(frames, device=device)
    kernel = kernel / kernel.sum(1, keepdim=True)
    gap = torch.arange(frames, device=device)
    gap = gap[:, None] - gap
    room = torch.where(gap >= 0, kernel[:, gap.clamp_min(0)], 0.0)
    level = torch.exp(-0.7 - 3.2 * torch.rand(count, 1, 1, device=device))
    return torch.log(mel.exp() + level * (room @ mel.exp())).clamp_min(MEL_FLOOR_LN)


def in_company(mel: Tensor) -> Tensor:
    """Spectra [B, t, 64] with another of them behind, 9 to 35 dB below."""
    other = mel.roll(1, 0) - (2.0 + 6.0 * torch.rand(len(mel), 1, 1, device=mel.device))
    return torch.logaddexp(mel, other)


def another_voice(mel: Tensor, options: HearingOptions) -> Tensor:
    """Windows [B, t, 64] as somebody else would say them elsewhere; ``clear_share`` stay."""
    count, device = len(mel), mel.device

    def some(share: float, changed: Tensor, plain: Tensor) -> Tensor:
        return torch.where(torch.rand(count, 1, 1, device=device) < share, changed, plain)

    factor = torch.exp(options.warp * (2.0 * torch.rand(count, device=device) - 1.0))
    made = equalised(warped(mel, factor), options.equalised_nepers)
    made = some(options.echo_share, echoing(made), made)
    made = some(options.babble_share, in_company(made), made)
    made = some(options.narrow_share, narrowed(made), made)
    made = disturb(made.clamp(MEL_FLOOR_LN, MEL_CEILING_LN))
    return some(options.clear_share, mel, made)


class Windows:
    """Windows of a speech library's voices, those for training or for tests.

    Args:
        library: its utterances. device: where they lie. split: train or test.
        voice_power: see `HearingOptions`.

    Raises:
        ValueError: if there are no utterances of this split.
    """

    def __init__(self, library: SpeechLibrary, config: AudioConfig, device: torch.device,
                 split: str = 'train', voice_power: float = 0.5) -> None:
        self.utterances = library.of_split(split)
        self.units, self._config, self.device = library.units, config, device
        self._mel = torch.from_numpy(library.mel).to(device)
        self._curves = torch.from_numpy(library.curves).to(device)
        table = np.array([(u.start, u.length) for u in self.utterances])
        self._start, self._length = torch.from_numpy(table).to(device).unbind(1)
        amount: dict[str, float] = {}
        for u in self.utterances:
            amount[u.voice] = amount.get(u.voice, 0.0) + u.length
        self._chance = torch.tensor(
            [u.length * amount[u.voice] ** (voice_power - 1.0) for u in self.utterances],
            device=device)

    def at(self, which: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of chunks that begin with ``frame`` [N] of utterances ``which`` [N]: float
        [N, 96, 64], silent outside the utterance, and curves [N, 4, units]."""
        a, hop = self._config, MEL_FRAMES_PER_FRAME
        start, length = self._start[which][:, None], self._length[which][:, None]
        step = torch.arange(a.window_mels, device=self.device)
        index = (frame[:, None] - a.past_frames) * hop + step
        inside = (index >= 0) & (index < length * hop)
        mel = mel_nepers(self._mel[(start * hop + index).clamp(0, len(self._mel) - 1)])
        frames = frame[:, None] + torch.arange(FRAMES_PER_CHUNK, device=self.device)
        said = self._curves[start + torch.minimum(frames, length - 1)].float() / 255.0
        return (torch.where(inside[..., None], mel, MEL_FLOOR_LN),
                torch.where((frames < length)[..., None], said, 0.0))

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` windows, their curves, and the numbers of their utterances [count]."""
        which = torch.multinomial(self._chance, count, replacement=True)
        frame = (torch.rand(count, device=self.device) * self._length[which]).long()
        return *self.at(which, frame), which

    def whole(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All windows of utterances [n], their curves, and the numbers of their utterances."""
        chunks = (self._length[which] + FRAMES_PER_CHUNK - 1) // FRAMES_PER_CHUNK
        owner = which.repeat_interleave(chunks)
        first = (chunks.cumsum(0) - chunks).repeat_interleave(chunks)
        frame = (torch.arange(len(owner), device=self.device) - first) * FRAMES_PER_CHUNK
        return *self.at(owner, frame), owner


@torch.no_grad()
def heard_jaw(model: AudioEncoder, windows: Windows, together: int = 64) -> Tensor:
    """Correlation of the jaw's opening, as the model hears it, with the true one, for each
    utterance [utterances], of which ``together`` are heard at a time."""
    jaw, count = windows.units.index('jawOpen'), len(windows.utterances)
    # Of each utterance: how many values, and sums of both, of their squares and of their product.
    sums = torch.zeros((count, 6), dtype=torch.float64, device=windows.device)
    for start in range(0, count, together):
        which = torch.arange(start, min(start + together, count), device=windows.device)
        mel, said, owner = windows.whole(which)
        x = model.mouth(model(mel))[..., 0].double()
        y = said[..., jaw].double()
        terms = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1).sum(1)
        sums.index_add_(0, owner, terms)
    number, x, y, xx, yy, xy = sums.unbind(1)
    spread = ((xx - x * x / number) * (yy - y * y / number)).clamp_min(1e-12).sqrt()
    return ((xy - x * y / number) / spread).float()


@torch.no_grad()
def unit_scale(model: AudioEncoder, windows: Windows, count: int = 4096) -> tuple[Tensor, Tensor]:
    """What curves are in the model's mouth units, least squares: ``curves @ matrix + offset``."""
    mel, said, _ = windows.draw(count)
    curves = said.flatten(0, 1)
    units = model.mouth(model(mel)).float().flatten(0, 1)
    extended = torch.cat([curves, torch.ones_like(curves[:, :1])], 1)
    # Units that never move in the library would make this singular.
    gram = extended.T @ extended + 1e-3 * torch.eye(extended.shape[1], device=curves.device)
    solved = torch.linalg.solve(gram, extended.T @ units)
    return solved[:-1], solved[-1]


def by_voice(correlations: Tensor, windows: Windows) -> dict[str, float]:
    """Means of each voice."""
    result: dict[str, list[float]] = {}
    for utterance, value in zip(windows.utterances, correlations.tolist(), strict=True):
        result.setdefault(utterance.voice, []).append(value)
    return {voice: float(np.mean(values)) for voice, values in sorted(result.items())}


def train_hearing(model: AudioEncoder, library: SpeechLibrary, process: Process, run: Run,
                  options: HearingOptions | None = None) -> Optimiser:
    """Train in place; raw weights stay in ``model``, their average in the result.

    Args:
        model: a trained encoder; as it comes it is the tutor.
        library: whose training voices are heard; no pictures are needed.

    Raises:
        ValueError: if the library has no training voices.
    """
    options = options or HearingOptions()
    process.share_weights(model)
    device, cuda = process.device, process.device.type == 'cuda'
    tutor = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          average_decay=options.average_decay,
                          settle_steps=options.settle_steps)
    stage = Stage('audio', process, run)
    # A call that goes on may be given what the one before left, which is no tutor any more.
    stage.keep(model=optimiser, tutor=tutor)
    windows = Windows(library, model.config, device, voice_power=options.voice_power)
    low, high = options.trust
    trusted = ((heard_jaw(tutor, windows) - low) / (high - low)).clamp(0.0, 1.0)
    # The same windows in all processes and calls.
    torch.manual_seed(run.seed)
    matrix, offset = unit_scale(tutor, windows)
    with torch.no_grad():
        spread = tutor(windows.draw(1024)[0]).float().var((0, 1)).mean()
    if cuda and run.compiled:
        compile_layers('forward', model, tutor)
    for progress in stage.steps():
        for share in stage.parts():
            mel, said, which = windows.draw(options.batch)
            trust = trusted[which]
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                with torch.no_grad():
                    wanted = tutor(mel).float()
                tokens = model(another_voice(mel, options)).float()
                units = model.mouth(tokens).float()
            error = (tokens - wanted).square().mean((1, 2)) / spread
            same = (error * trust).mean()
            mouth = F.l1_loss(units, said @ matrix + offset)
            optimiser.backward(share * (options.token_weight * same
                                        + options.mouth_weight * mouth))
            stage.log.add(stage.step, tokens=same.detach(), mouth=mouth.detach())
        optimiser.step(progress)
    stage.close()
    return optimiser
