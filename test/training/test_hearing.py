# SPDX-License-Identifier: Apache-2.0
"""Hearing: what another voice does to a spectrum, which windows are drawn, and learning."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy import ALONE, CPU, TINY, trainee

from interactive_avatar.generator.networks import Generator
from interactive_avatar.media.mel import MEL_BANDS, MEL_CEILING_LN, MEL_FLOOR_LN, MEL_MAX_HZ
from interactive_avatar.training import pipeline
from interactive_avatar.training.hearing import (
    TELEPHONE_HZ,
    HearingOptions,
    Windows,
    another_voice,
    band_hz,
    by_voice,
    echoing,
    equalised,
    heard_jaw,
    hz_band,
    in_company,
    narrowed,
    train_hearing,
    unit_scale,
    warped,
)
from interactive_avatar.training.speech.curves import MOUTH_UNITS
from interactive_avatar.training.speech.library import SpeechLibrary, Utterance
from interactive_avatar.training.stage import Run

VOICES = ('low', 'low', 'high', 'unheard')


def library(length: int = 60) -> SpeechLibrary:
    """Utterances in which a louder spectrum means an open jaw."""
    rng = np.random.default_rng(0)
    count = len(VOICES)
    jaw = np.abs(np.sin(np.arange(length * count) * 0.4 + rng.random(length * count)))
    curves = np.zeros((length * count, len(MOUTH_UNITS)), np.uint8)
    curves[:, MOUTH_UNITS.index('jawOpen')] = np.rint(255 * jaw)
    loud = np.repeat(jaw, 4)[:, None] * 150 + 40 + rng.integers(0, 20, (4 * len(jaw), MEL_BANDS))
    return SpeechLibrary(loud.astype(np.uint8), curves, MOUTH_UNITS, [
        Utterance(i, voice, 'test' if voice == 'unheard' else 'train', 'a b c', i * length,
                  length, 4, length - 4) for i, voice in enumerate(VOICES)])


def peak(band: float) -> torch.Tensor:
    """A spectrum [1, 3, 64] with one formant."""
    bands = torch.arange(MEL_BANDS)
    return (-8.0 + 6.0 * torch.exp(-0.5 * ((bands - band) / 2.0) ** 2)).expand(1, 3, -1)


def test_bands_and_frequencies_are_each_others_reverse() -> None:
    bands = torch.arange(MEL_BANDS, dtype=torch.float32)
    hz = band_hz(bands)
    torch.testing.assert_close(hz_band(hz), bands, atol=1e-3, rtol=0)
    assert 60 < float(hz[0]) < 120 and 7000 < float(hz[-1]) < MEL_MAX_HZ


@pytest.mark.parametrize('factor', [0.8, 1.0, 1.25])
def test_a_formant_moves_by_the_factor_and_the_highest_band_stays(factor: float) -> None:
    mel = peak(25.0)
    made = warped(mel, torch.tensor([factor]))
    found = band_hz(made[0, 0].argmax().float()) / band_hz(torch.tensor(25.0))
    assert float(found) == pytest.approx(factor, rel=0.04)
    torch.testing.assert_close(made[..., -1], mel[..., -1], atol=0.05, rtol=0)
    if factor == 1.0:
        torch.testing.assert_close(made, mel, atol=1e-3, rtol=0)


def test_a_telephone_takes_the_heights_and_an_equaliser_leaves_silence() -> None:
    mel = peak(55.0)
    made = narrowed(mel)
    low = band_hz(torch.arange(MEL_BANDS, dtype=torch.float32)) < TELEPHONE_HZ[0]
    assert torch.equal(made[..., low], mel[..., low])
    assert float(made[..., -1].max()) < -13.0
    silent = torch.full((2, 3, MEL_BANDS), MEL_FLOOR_LN)
    assert torch.equal(equalised(silent, 0.5), silent)
    assert not torch.equal(equalised(mel, 0.5), mel)


def test_an_echo_sounds_on_after_the_sound_and_never_before() -> None:
    torch.manual_seed(0)
    mel = torch.full((2, 40, MEL_BANDS), MEL_FLOOR_LN)
    mel[:, 10:15] = 0.0
    made = echoing(mel)
    assert (made >= mel - 1e-4).all()
    torch.testing.assert_close(made[:, :10], mel[:, :10], atol=0.6, rtol=0)
    assert (made[:, 16] > MEL_FLOOR_LN + 5.0).all() and (made[:, 30] < made[:, 16]).all()
    torch.manual_seed(1)
    assert (in_company(mel) >= mel - 1e-5).all()


def test_some_windows_stay_clear_and_all_stay_in_range() -> None:
    torch.manual_seed(0)
    mel = torch.rand(64, 96, MEL_BANDS) * (MEL_CEILING_LN - MEL_FLOOR_LN) + MEL_FLOOR_LN
    made = another_voice(mel, HearingOptions(clear_share=0.5))
    same = (made == mel).all(-1).all(-1)
    assert 16 < int(same.sum()) < 48
    assert float(made.min()) >= MEL_FLOOR_LN and float(made.max()) <= MEL_CEILING_LN
    assert torch.equal(another_voice(mel, HearingOptions(clear_share=1.0)), mel)


def test_windows_are_of_one_utterance_of_training_voices_and_silent_outside_it() -> None:
    source = library()
    windows = Windows(source, TINY.audio, CPU)
    assert {u.voice for u in windows.utterances} == {'low', 'high'}
    mel, said = windows.at(torch.tensor([2]), torch.tensor([0]))
    past, hop = TINY.audio.past_frames * 4, 4
    assert torch.equal(mel[0, :past], torch.full_like(mel[0, :past], MEL_FLOOR_LN))
    first = source.mel_of(source.utterances[2])[:hop].astype(np.float32) / 255.0
    np.testing.assert_allclose(
        mel[0, past:past + hop].numpy(),
        first * (MEL_CEILING_LN - MEL_FLOOR_LN) + MEL_FLOOR_LN, atol=1e-4)
    np.testing.assert_allclose(said[0].numpy(), source.curves_of(source.utterances[2])[:4],
                               atol=1e-6)
    mel, said = windows.at(torch.tensor([0]), torch.tensor([58]))
    assert said[0, 2:].abs().max() == 0.0
    assert (mel[0, past + 2 * hop:] == MEL_FLOOR_LN).all()


def test_voices_are_drawn_by_a_power_of_their_speech() -> None:
    torch.manual_seed(0)
    def share(power: float) -> float:
        windows = Windows(library(), TINY.audio, CPU, voice_power=power)
        which = windows.draw(3000)[2]
        return float((which < 2).float().mean())
    assert share(1.0) == pytest.approx(2 / 3, abs=0.04)
    assert share(0.0) == pytest.approx(1 / 2, abs=0.04)


def test_it_learns_tokens_of_other_voices_and_what_the_tutor_does_not_know(
        tmp_path: Path) -> None:
    model = trainee().audio
    tutor = copy.deepcopy(model)
    source = library()
    logged: list[dict[str, float]] = []

    def each(step: int, values: object) -> None:
        assert isinstance(values, dict)
        logged.append({name: float(value) for name, value in values.items()})

    options = HearingOptions(batch=32, peak_rate=3e-3, average_decay=0.9, settle_steps=1,
                             trust=(-2.0, -1.0))
    train_hearing(model, source, ALONE, Run(out=tmp_path, state=tmp_path, steps=40, each=each),
                  options)
    def mean(name: str, some: slice) -> float:
        return float(np.mean([values[name] for values in logged[some]]))
    assert mean('tokens', slice(-5, None)) < 0.8 * mean('tokens', slice(0, 5))
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), tutor.parameters(),
                                                     strict=True))
    # Nobody is trusted: nothing is asked of the tokens.
    logged.clear()
    train_hearing(copy.deepcopy(tutor), source, ALONE,
                  Run(out=tmp_path, state=tmp_path, steps=2, each=each),
                  HearingOptions(batch=8, settle_steps=1, trust=(1.1, 1.2)))
    assert all(values['tokens'] == 0.0 and values['mouth'] > 0.0 for values in logged)


def test_correlations_are_by_voice_and_the_scale_is_the_models_own() -> None:
    windows = Windows(library(), TINY.audio, CPU)
    model = trainee().audio.eval()
    found = heard_jaw(model, windows)
    jaw = MOUTH_UNITS.index('jawOpen')
    for number, value in enumerate(found.tolist()):
        mel, said, owner = windows.whole(torch.tensor([number]))
        assert len(mel) == 15 and owner.unique().tolist() == [number]
        with torch.no_grad():
            heard = model.mouth(model(mel))[..., 0].flatten()
        expected = torch.corrcoef(torch.stack([heard, said[..., jaw].flatten()]))[0, 1]
        assert value == pytest.approx(float(expected), abs=1e-4)
    torch.testing.assert_close(heard_jaw(model, windows, together=2), found)
    assert by_voice(torch.tensor([0.2, 0.4, 0.9]), windows) == pytest.approx(
        {'high': 0.9, 'low': 0.3})
    with torch.no_grad():
        model.mouth_head.weight.zero_()
        model.mouth_head.bias.copy_(torch.arange(16) / 16.0)
    matrix, offset = unit_scale(model, windows, 256)
    torch.testing.assert_close(offset, torch.arange(16) / 16.0, atol=2e-3, rtol=0)
    assert float(matrix.abs().max()) < 5e-3


def packed(folder: Path) -> None:
    """The library as `training.speech.pack` leaves it."""
    source = library()
    (folder / 'speech').mkdir()
    np.savez(folder / 'speech' / 'speech.npz', curves=source.curves, units=MOUTH_UNITS,
             mel_differences=np.diff(source.mel, axis=1, prepend=np.uint8(0)),
             voice=[u.voice for u in source.utterances],
             test=[u.split == 'test' for u in source.utterances],
             text=[u.text for u in source.utterances],
             table=[(u.start, u.length, u.speech_start, u.speech_end)
                    for u in source.utterances])


def test_the_command_trains_the_audio_encoder_alone_and_goes_on(tmp_path: Path) -> None:
    packed(tmp_path)
    before = Generator(TINY)
    before.save(tmp_path / 'weights.safetensors', quantise=False)
    config = tmp_path / 'audio.yaml'
    config.write_text('batch: 8\npeak_rate: 0.1\nsettle_steps: 1\naverage_decay: 0.1\n')
    common = ['audio', '--assets', str(tmp_path), '--state', str(tmp_path / 'state'), '--config',
              str(config), '--out', str(tmp_path / 'out')]
    given = ['--weights', str(tmp_path / 'weights.safetensors')]
    assert pipeline.main([*common, *given, '--steps', '2', '--until', '0.5']) == 0
    halfway = torch.load(tmp_path / 'state' / 'audio.0.pt', weights_only=True)
    assert pipeline.main([*common, '--steps', '2', '--resume']) == 0
    finished = torch.load(tmp_path / 'state' / 'audio.0.pt', weights_only=True)
    # The tutor of a call that goes on is the first one's, not what that call left.
    for name, value in before.audio.state_dict().items():
        assert torch.equal(finished['tutor'][name], halfway['tutor'][name])
        torch.testing.assert_close(halfway['tutor'][name], value, atol=2e-3, rtol=0)
    assert (halfway['step'], finished['step']) == (1, 2)
    part = tmp_path / 'out' / 'generator.safetensors.part00'
    after = Generator(TINY)
    left = after.load(part, partial=True)
    assert not any(name.startswith('audio.') for name in left)
    assert any(name.startswith('denoiser.') for name in left)
    whole = Generator(TINY)
    assert not whole.load(tmp_path / 'state' / 'generator.safetensors')
    old, new = before.state_dict(), whole.state_dict()
    changed = {name for name in old if not torch.allclose(old[name], new[name], atol=2e-3)}
    assert changed and all(name.startswith('audio.') for name in changed)


def test_the_command_wants_a_trained_encoder(tmp_path: Path) -> None:
    packed(tmp_path)
    with pytest.raises(ValueError, match="goes on from a trained encoder, but 'audio"):
        pipeline.main(['audio', '--assets', str(tmp_path), '--state', str(tmp_path / 'state'),
                       '--out', str(tmp_path / 'out'), '--steps', '1'])


def test_trust_that_does_not_rise_is_refused() -> None:
    with pytest.raises(ValueError, match='the lower one first'):
        HearingOptions(trust=(0.9, 0.9))
