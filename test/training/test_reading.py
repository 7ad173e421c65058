# SPDX-License-Identifier: Apache-2.0
"""Reading: what paraphrases mean, what is asked for of them, and learning it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from toy import ALONE, CPU, TINY, shard

from interactive_avatar.generator.networks import Generator, saved_config
from interactive_avatar.generator.prompts import (
    ACTION_SLOTS,
    FRESH_VARIANTS,
    HELD_OUT_VARIANTS,
    WorldState,
    action_prompt,
    passing_table,
    prompt_id,
    prompt_table,
    stable_prompt,
)
from interactive_avatar.training import pipeline
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.prompts import Prompts, packed, unpacked
from interactive_avatar.training.reading import (
    ReadingOptions,
    Source,
    Texts,
    Wanted,
    bake_paraphrases,
    collect_queries,
    judge,
    load_paraphrases,
    meant,
    paraphrased,
    read,
    read_paraphrases,
    train_reading,
    unseen,
)
from interactive_avatar.training.stage import Run

CONFIG = replace(TINY, denoiser=replace(
    TINY.denoiser, text_width=384, text_tokens=20, refiner_layers=1, refiner_ffn_width=64))
OPTIONS = ReadingOptions(batch=16, queries=8, streams=2, segments=1, kept=64, settle_steps=2)
TABLE = prompt_table()


def reader() -> Trainee:
    """A tiny generator whose text attention does something."""
    torch.manual_seed(0)
    generator = Generator(CONFIG)
    for block in generator.denoiser.layers:
        torch.nn.init.normal_(block.text.o.weight, std=0.3)
    return Trainee(generator.audio, generator.denoiser)


@pytest.fixture(scope='module')
def prompts() -> Prompts:
    """The canonical prompts' states; those of others, which take long to encode, are zeros."""
    canonical = sorted({meant(p.action, dict(p.slots), p.world) for p in TABLE})
    own, own_mask = unpacked(packed([TABLE[number].text for number in canonical], 20), 20, CPU)
    states = torch.zeros((len(TABLE), *own.shape[1:]))
    mask = torch.full((len(TABLE), 20), -1e4)
    states[canonical], mask[canonical] = own.float(), own_mask
    return Prompts.of(states, mask)


def test_paraphrases_are_of_all_actions_and_of_no_phrasing_that_is_tested() -> None:
    phrases = read_paraphrases()
    counts = Counter((phrase.action, *phrase.slots.values()) for phrase in phrases)
    wanted = {(action, *((value,) if value else ())) for action, allowed in ACTION_SLOTS.items()
              for value in next(iter(allowed.values()), ('',))}
    assert set(counts) == wanted and min(counts.values()) >= 60
    texts = {(phrase.action, *phrase.slots.values(), phrase.text) for phrase in phrases}
    assert len(texts) == len(phrases)
    for action, allowed in ACTION_SLOTS.items():
        for value in next(iter(allowed.values()), ('',)):
            slots = dict(zip(allowed, [value], strict=False))
            world = WorldState(in_view=action != 'come_back')
            for variant in (*HELD_OUT_VARIANTS, *FRESH_VARIANTS):
                tested = action_prompt(action, world, variant, **slots)
                for phrase in phrases:
                    assert not tested.endswith(f' {phrase.text}') or (
                        len(tested) - len(phrase.text) > 25), (tested, phrase)


@pytest.mark.parametrize('line', ['nod', 'nod\t', 'dance\tdances', 'look behind\tlooks back',
                                  'wear\tputs it on'])
def test_a_line_that_is_no_paraphrase_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / 'p.tsv'
    path.write_text(f'# action\tphrase\nnod\tnods\n{line}\n')
    with pytest.raises(ValueError, match='line 3'):
        read_paraphrases(path)


def test_paraphrases_mean_the_canonical_prompt_of_their_world() -> None:
    phrases = [phrase for phrase in read_paraphrases() if phrase.action == 'wear'][:1]
    texts, targets = paraphrased(phrases, 4, 0)
    name = phrases[0].slots['object']
    other = 'hat' if name == 'glasses' else 'glasses'
    assert len(texts) == 2 and sum(other in text for text in texts) == 1
    assert {TABLE[target].text for target in targets} == {
        action_prompt('wear', WorldState(), 0, object=name),
        action_prompt('wear', WorldState(**{other: True}), 0, object=name)}
    assert TABLE[meant(None, {}, WorldState(hat=True, in_view=False, gaze='left'))].text == \
        stable_prompt(WorldState(hat=True, in_view=False))


def test_what_is_asked_for_is_enlarged_against_the_world_at_rest() -> None:
    options = replace(OPTIONS, emphasis={'nod': 0.5}, leaning={'think': {'look up': 0.25}})
    wanted = Wanted(options, CPU)
    glasses = WorldState(glasses=True)
    nod, think, up, rest = (meant('nod', {}, glasses), meant('think', {}, glasses),
                            meant('look', {'direction': 'up'}, glasses),
                            meant(None, {}, glasses))
    target = torch.tensor([nod, think, rest])
    needed = wanted.needed(target)
    assert set(needed.tolist()) >= {nod, think, up, rest}
    added = needed.float()[:, None]
    asked = wanted.of(target, added)[:, 0].tolist()
    assert asked == pytest.approx([1.5 * nod - 0.5 * rest, think + 0.25 * (up - rest), rest])
    with pytest.raises(ValueError, match='dance'):
        Wanted(replace(OPTIONS, emphasis={'dance': 1.0}), CPU)


def test_the_end_of_an_expression_is_enlarged() -> None:
    wanted = Wanted(replace(OPTIONS, passing=1.5), CPU)
    moments = list(passing_table().values())
    target = torch.tensor([len(TABLE), len(TABLE) + len(moments) - 1])
    needed = wanted.needed(target)
    asked = wanted.of(target, needed.float()[:, None])[:, 0].tolist()
    assert asked == pytest.approx([
        2.5 * prompt_id(moment.after) - 1.5 * prompt_id(moment.before)
        for moment in (moments[0], moments[-1])])
    assert wanted.canonical.max() < len(TABLE)


@torch.no_grad()
def test_queries_are_those_that_streams_ask(prompts: Prompts) -> None:
    model = reader().eval()
    queries = collect_queries(model, shard(), prompts, OPTIONS)
    d = CONFIG.denoiser
    assert queries.shape == (d.layers, d.heads, OPTIONS.kept, d.head_width)
    # They have passed the norm, up to its learnt scale of one.
    joined = queries.transpose(1, 2).flatten(2)
    assert joined.square().mean(-1).sqrt().mean().item() == pytest.approx(1.0, abs=0.1)
    added = read(model.denoiser, prompts.states[:2], prompts.mask[:2], queries[:, :, :5])
    assert added.shape == (2, d.layers, 5, d.width)


def test_the_refiner_alone_learns_and_what_nobody_trained_on_is_read_better(
        prompts: Prompts, tmp_path: Path) -> None:
    few = [phrase for phrase in read_paraphrases() if phrase.action in ('nod', 'smile')][::4]
    path = tmp_path / 'paraphrases.npz'
    assert bake_paraphrases(path, 4, phrases=few) == (
        4 * len(few) + len(unseen()[0]) + len(passing_table()))
    others, tests, moments = load_paraphrases(path, 20, CPU)
    assert moments.target.tolist() == list(range(len(TABLE), len(TABLE) + len(passing_table())))
    model = reader()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # Nothing but canonical prompts has states here.
    options = replace(OPTIONS, table_share=0.0, canonical_share=0.25, peak_rate=3e-3)
    wanted = Wanted(options, CPU)
    queries = collect_queries(model, shard(), prompts, options)
    source = Source(model.denoiser, prompts, (), None)
    plain = judge(model.denoiser, tests, source, wanted, queries)
    train_reading(model, shard(), prompts, others, tests, moments, ALONE,
                  Run(tmp_path / 'out', tmp_path / 'state', steps=60), options)
    changed = {name for name, value in model.state_dict().items()
               if not torch.equal(value, before[name])}
    assert changed and all('.refiner.' in name for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())
    about = [i for i, target in enumerate(tests.target.tolist())
             if TABLE[target].action in ('nod', 'smile')]
    own = replace(tests, states=tests.states[about], mask=tests.mask[about],
                  target=tests.target[about])
    assert judge(model.denoiser, own, source, wanted, queries).missed < 0.8 * plain.missed


def test_taught_actions_are_read_as_the_tutor_reads_them(prompts: Prompts) -> None:
    model, tutor = reader(), reader()
    assert tutor.denoiser.refiner is not None
    for parameter in tutor.denoiser.refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    queries = collect_queries(model, shard(), prompts, OPTIONS)
    think, nod = (meant(name, {}, WorldState(hat=True)) for name in ('think', 'nod'))
    numbers = torch.tensor([nod, think])
    states, mask = prompts.states[numbers].float(), prompts.mask[numbers]
    plain, taught = (read(by.denoiser, states, mask, queries, refined).detach()
                     for by, refined in ((model, False), (tutor, True)))
    added = Source(model.denoiser, prompts, ('think',), tutor.denoiser).read(numbers, queries)
    torch.testing.assert_close(added, torch.stack([plain[0], taught[1]]))
    assert not torch.allclose(plain[1], taught[1])


def test_what_nobody_has_taught_is_said(prompts: Prompts, tmp_path: Path) -> None:
    denoiser = reader().denoiser
    with pytest.raises(ValueError, match=r'nobody has taught think: .*--teacher'):
        Source(denoiser, prompts, ('think',), None)
    with pytest.raises(ValueError, match="taught 'dance'"):
        Source(denoiser, prompts, ('dance',), denoiser)
    generator = Generator(CONFIG)
    generator.save(tmp_path / 'audio.safetensors', quantise=False, prefixes=('audio.',))
    with pytest.raises(ValueError, match='has no token refiner'):
        pipeline.load_tutor(tmp_path / 'audio.safetensors', CONFIG, generator, ALONE)
    generator.save(tmp_path / 'refiner.safetensors', quantise=False,
                   prefixes=('denoiser.refiner.',))
    other = Generator(CONFIG)
    tutor = pipeline.load_tutor(tmp_path / 'refiner.safetensors', CONFIG, other, ALONE)
    state = tutor.denoiser.state_dict()
    for name, value in other.denoiser.state_dict().items():
        expected = generator.denoiser.state_dict()[name] if 'refiner' in name else value
        torch.testing.assert_close(state[name], expected, rtol=0.0, atol=1e-3)  # kept in 16 bits


def test_a_denoiser_without_a_refiner_is_refused(prompts: Prompts, tmp_path: Path) -> None:
    generator = Generator(TINY)
    with pytest.raises(ValueError, match='no token refiner'):
        train_reading(Trainee(generator.audio, generator.denoiser), shard(), prompts,
                      *[Texts.of_table(prompts)] * 3, ALONE,
                      Run(tmp_path, tmp_path, steps=1))


def test_paraphrases_that_are_missing_or_of_another_version_say_what_to_do(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'paraphrases.npz'
    with pytest.raises(FileNotFoundError, match=r'training\.reading --out'):
        load_paraphrases(path, 20, CPU)
    bake_paraphrases(path, phrases=read_paraphrases()[:1])
    monkeypatch.setattr('interactive_avatar.training.reading.table_digest', lambda: 'later')
    with pytest.raises(ValueError, match='another version'):
        load_paraphrases(path, 20, CPU)


def test_the_command_adds_a_refiner_to_weights_that_have_none(
        prompts: Prompts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = replace(CONFIG, denoiser=replace(CONFIG.denoiser, refiner_layers=0))
    before = Generator(plain)
    before.save(tmp_path / 'weights.safetensors', quantise=False)
    monkeypatch.setattr(pipeline, 'Prompts', lambda *_: prompts)
    monkeypatch.setattr(pipeline, 'prepare_shard', lambda *_: shard())
    monkeypatch.setattr(pipeline, 'write_samples', lambda *_: None)
    bake_paraphrases(tmp_path / 'paraphrases.npz', phrases=read_paraphrases()[:2])
    config = tmp_path / 'text.yaml'
    config.write_text('layers: 1\nbatch: 8\nqueries: 4\nstreams: 2\nsegments: 1\nkept: 16\n'
                      'table_share: 0.0\naverage_decay: 0.1\n')
    common = ['text', '--assets', str(tmp_path), '--state', str(tmp_path / 'state'), '--config',
              str(config), '--out', str(tmp_path / 'out'), '--steps', '2']
    assert pipeline.main([*common, '--weights', str(tmp_path / 'weights.safetensors')]) == 0
    part = tmp_path / 'out' / 'generator.safetensors.part00'
    after = Generator(saved_config(part))
    assert after.config.denoiser.refiner_layers == 1 and after.config.denoiser.passing
    left = after.load(part, partial=True)
    assert not any('.refiner.' in name for name in left) and len(left) == len(before.state_dict())
    # It goes on from what it left.
    assert pipeline.main(common) == 0
    assert not after.load(tmp_path / 'state' / 'generator.safetensors')


def test_the_command_wants_paraphrases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       prompts: Prompts) -> None:
    Generator(CONFIG).save(tmp_path / 'weights.safetensors', quantise=False)
    monkeypatch.setattr(pipeline, 'Prompts', lambda *_: prompts)
    monkeypatch.setattr(pipeline, 'prepare_shard', lambda *_: shard())
    with pytest.raises(FileNotFoundError, match='no paraphrases'):
        pipeline.main(['text', '--assets', str(tmp_path), '--state', str(tmp_path / 'state'),
                       '--out', str(tmp_path / 'out'), '--steps', '1', '--weights',
                       str(tmp_path / 'weights.safetensors')])
