# SPDX-License-Identifier: Apache-2.0
"""``avatar average``: weights of several runs, part by part."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'generator'))

from tiny import TINY

from interactive_avatar.generator.networks import Generator, saved_config, saved_weights
from interactive_avatar.training.average import WEIGHTS, add_arguments, average, main, shares_of

DOWN, UP = 'denoiser.blocks.0.down.weight', 'denoiser.blocks.0.up.weight'


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def stage(folder: Path, seed: int, quantise: bool = False,
          prefixes: tuple[str, ...] = ('denoiser.', 'audio.')) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    folder.mkdir()
    Generator(TINY).save(folder / WEIGHTS, quantise=quantise, prefixes=prefixes)
    return {name: value.float() for name, value in saved_weights(folder / WEIGHTS).items()}


def test_parts_have_shares_and_factors_of_their_own(tmp_path: Path) -> None:
    one, two = stage(tmp_path / 'one', 1), stage(tmp_path / 'two', 2, quantise=True)
    assert main(arguments('--weights', tmp_path / 'one', tmp_path / 'two', '--shares', '0.25,0.75',
                          '--part', '.down.=1,0', '--part', 'denoiser.blocks.=0,1',
                          '--scale', '.up.=1.5', '--out', tmp_path / 'out')) == 0
    made = saved_weights(tmp_path / 'out' / WEIGHTS)
    assert set(made) == set(one)
    near = {'atol': 2e-3, 'rtol': 2e-3}
    torch.testing.assert_close(made[DOWN].float(), one[DOWN], **near)
    torch.testing.assert_close(made[UP].float(), 1.5 * two[UP], **near)
    audio = 'audio.mouth_head.weight'
    torch.testing.assert_close(made[audio].float(), 0.25 * one[audio] + 0.75 * two[audio], **near)
    assert saved_config(tmp_path / 'out' / WEIGHTS) == TINY


def test_what_one_of_them_lacks_is_left_out(tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    stage(tmp_path / 'all', 1)
    stage(tmp_path / 'some', 2, prefixes=('audio.',))
    main(arguments('--weights', tmp_path / 'all', tmp_path / 'some', '--shares', '0.5,0.5',
                   '--out', tmp_path / 'out'))
    made = saved_weights(tmp_path / 'out' / WEIGHTS)
    assert made and all(name.startswith('audio.') for name in made)
    assert 'others are not in all of them' in capsys.readouterr().out


@pytest.mark.parametrize('text', ['0.5,0.6', '1', 'a,b', '0.5,0.25,0.25'])
def test_shares_must_be_one_for_each_and_sum_up(text: str) -> None:
    with pytest.raises(ValueError, match='not 2 numbers whose sum is 1'):
        shares_of(text, 2)


def test_weights_that_cannot_be_averaged_are_refused() -> None:
    one = {'a': torch.zeros(2), 'b': torch.zeros(3)}
    with pytest.raises(ValueError, match='no name in common'):
        average([one, {'c': torch.zeros(2)}], (0.5, 0.5))
    with pytest.raises(ValueError, match="'a' has the shapes"):
        average([one, {'a': torch.zeros(4)}], (0.5, 0.5))
    with pytest.raises(ValueError, match="no weight has 'x' in its name"):
        average([one, one], (0.5, 0.5), {'x': (1.0, 0.0)})


def test_arguments_without_a_name_are_refused(tmp_path: Path) -> None:
    stage(tmp_path / 'one', 1)
    with pytest.raises(ValueError, match=r"--part '\.up\.' is not NAME=VALUE"):
        main(arguments('--weights', tmp_path / 'one', '--shares', '1', '--part', '.up.', '--out',
                       tmp_path / 'out'))
    with pytest.raises(ValueError, match=r"--scale: 'twice' is no number"):
        main(arguments('--weights', tmp_path / 'one', '--shares', '1', '--scale', '.up.=twice',
                       '--out', tmp_path / 'out'))


def test_what_a_stage_wrote_is_not_written_over(tmp_path: Path) -> None:
    stage(tmp_path / 'one', 1)
    (tmp_path / 'one' / f'{WEIGHTS}.part00').write_bytes((tmp_path / 'one' / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match='give --out another folder'):
        main(arguments('--weights', tmp_path / 'one', '--shares', '1', '--out', tmp_path / 'one'))
