# SPDX-License-Identifier: Apache-2.0
"""Stage: reading other words, learnt by a token refiner from the denoiser's own text attention.

The denoiser knows an action by the two dozen phrasings that it was trained on, and others change
little or something else: all nine trained ways to say that somebody looks surprised worked, and
"looks shocked" never did. But it need not be trained on more. What a prompt does to a picture is
what text attention adds to its tokens, in every layer. So the refiner (`generator.refiner`) is
given a prompt in any words, and asked for states from which the frozen denoiser's attention reads
just what it reads from the canonical prompt, for queries that it really asks (kept from streams).
Text alone is trained on: no picture is made, so thousands of phrasings cost seconds.

What is asked for need not be what was read. A distilled generator carries out some actions weakly;
what text attention adds for the action, less what it adds for the world at rest, is then asked for
enlarged (``emphasis``), as classifier-free guidance (Ho and Salimans, arXiv 2207.12598) enlarges
velocities, but without a second pass in the stream.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interactive_avatar.generator.backends.base import MASKED
from interactive_avatar.generator.denoiser import Denoiser, attend
from interactive_avatar.generator.prompts import (
    ACTION_SLOTS,
    HELD_OUT_VARIANTS,
    MAX_WORD_PIECES,
    Prompt,
    WorldState,
    action_prompt,
    in_words,
    passing_table,
    prompt_id,
    prompt_table,
    shown,
    stable_prompt,
)
from interactive_avatar.generator.wordings import MORE_SUBJECTS, SUBJECTS
from interactive_avatar.training.common import Process
from interactive_avatar.training.data import Shard
from interactive_avatar.training.denoiser import Trainee
from interactive_avatar.training.prompts import Prompts, packed, table_digest, unpacked
from interactive_avatar.training.rollout import Rollout
from interactive_avatar.training.stage import Optimiser, Run, Stage, averaged, freeze_but

PARAPHRASES_PATH: Final = Path(__file__).parent / 'paraphrases.tsv'
WORN_WORLDS: Final = tuple(WorldState(glasses, hat) for glasses, hat in
                           itertools.product((False, True), repeat=2))
SUBJECTS_READ: Final = (
    *(who for number, who in enumerate((*SUBJECTS, *MORE_SUBJECTS))
      if number not in HELD_OUT_VARIANTS),
    ('an old man', 'with'), ('an elderly woman', 'wearing'), ('the girl', 'in'),
    ('a boy', 'wearing'), ('the young man', 'with'), ('our guide', 'in'), ('a teacher', 'with'),
    ('the presenter', 'wearing'), ('the robot', 'with'), ('the face', 'with'),
    ('the receptionist', 'in'), ('a friend', 'wearing'), ('the doctor', 'with'),
    # Some subjects say by themselves what they are likely to do, and are not to.
    ('the narrator', 'with'), ('a newsreader', 'wearing'), ('the announcer', 'in'),
    ('a lecturer', 'with'), ('the interviewer', 'wearing'), ('a storyteller', 'in'),
    ('the caller', 'with'), ('a listener', 'wearing'), ('a singer', 'with'),
    ('the translator', 'in'), ('the moderator', 'with'), ('a reporter', 'wearing'),
    ('the listener', 'in'), ('the thinker', 'with'), ('a spectator', 'wearing'),
    ('the onlooker', 'in'), ('a clown', 'with'), ('the visitor', 'wearing'),
    ('an actress', 'in'), ('the student', 'with'), ('a nurse', 'in'), ('the clerk', 'wearing'),
    ('a customer', 'with'), ('the man on the screen', 'wearing'), ('the kid', 'in'),
    ('a teenager', 'wearing'), ('he', 'wearing'), ('she', 'with'), ('an adult', 'with'),
    ('the middle-aged man', 'in'), ('the grandmother', 'wearing'), ('my colleague', 'with'),
    ('your partner', 'in'), ('the concierge', 'wearing'), ('a talking head', 'with'),
    ('the person in the video', 'wearing'), ('the chatbot', 'with'), ('our assistant', 'in'))
"""Who does what a paraphrase says, and how what is worn is attached."""


@dataclass(frozen=True)
class ReadingOptions:
    """Options of the stage; batch counts prompts per process and part.

    Attributes:
        layers: of the refiner, where the weights come without one.
        queries: of each layer that a step compares; streams, segments: how many streams are
            played, and how long (in segments of 20 chunks), to keep ``kept`` queries of each
            layer.
        table_share, canonical_share: of a batch, prompts that the denoiser was trained on, and
            canonical ones; the rest are paraphrases.
        judge_steps: after how many steps phrasings that nothing is trained on are judged.
        noise: standard deviation of what is added to states, in units of theirs.
        word_drop: share of tokens that are taken from who learns.
        emphasis: by action (and its slot, as 'look up'), by how much the difference to the world
            at rest is enlarged.
        leaning: by action, others whose difference to rest is added, and how much of it.
        passing: of the moment in which an expression ends (`passing_prompt`), by how much the
            difference of the world without it to that with it is enlarged.
        passing_share: of a batch, prompts of such moments.
        taught: actions whose canonical prompts are read as a tutor's refiner reads them, that the
            stage *act* has taught what pictures want; what is enlarged is enlarged from there.
            Others are read as the denoiser alone does.
    """

    layers: int = 2
    batch: int = 128
    queries: int = 96
    streams: int = 8
    segments: int = 3
    kept: int = 16384
    table_share: float = 0.3
    canonical_share: float = 0.2
    noise: float = 0.05
    word_drop: float = 0.05
    emphasis: Mapping[str, float] = field(default_factory=dict)
    leaning: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    passing: float = 1.2
    passing_share: float = 0.05
    taught: tuple[str, ...] = ()
    judge_steps: int = 500
    peak_rate: float = 1e-3
    weight_decay: float = 0.05
    average_decay: float = 0.998
    settle_steps: int = 50


@dataclass(frozen=True)
class Phrase:
    """A line of the paraphrases: what follows the subject of an action prompt."""

    action: str
    slots: dict[str, str]
    text: str


def slots_of(action: str, value: str) -> dict[str, str]:
    """Slots of an action that takes at most one, from its value.

    Raises:
        ValueError: on an unknown action or value.
    """
    if action not in ACTION_SLOTS:
        raise ValueError(f'unknown action {action!r}')
    allowed = ACTION_SLOTS[action]
    name = next(iter(allowed), '')
    if value not in allowed.get(name, ('',)):
        raise ValueError(f'action {action!r} takes {allowed.get(name) or "no slot"}, '
                         f'not {value!r}')
    return {name: value} if name else {}


def read_paraphrases(path: Path = PARAPHRASES_PATH) -> list[Phrase]:
    """The paraphrases of a file with lines ``action[ slot]<tab>phrase``; ``#`` begins a comment.

    Raises:
        ValueError: on a line that is none, naming it.
    """
    phrases = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith('#'):
            continue
        key, tab, text = line.partition('\t')
        action, _, value = key.partition(' ')
        try:
            if not tab or not text.strip():
                raise ValueError('no phrase after a tab')
            phrases.append(Phrase(action, slots_of(action, value), text.strip()))
        except ValueError as error:
            raise ValueError(f'{str(path)!r}, line {number}: {error}') from None
    return phrases


def meant(action: str | None, slots: dict[str, str], world: WorldState) -> int:
    """Number of the canonical prompt, in the table, for what a prompt means."""
    world = shown(world, action, slots)
    return prompt_id(stable_prompt(world) if action is None
                     else action_prompt(action, world, 0, **slots))


@dataclass
class Texts:
    """Prompts as states, and the canonical prompts that they mean.

    Attributes:
        states: float16 [N, n, width]; mask: float32 [N, n]; target: int64 [N], of the table, or
            after it of `passing_table`.
    """

    states: Tensor
    mask: Tensor
    target: Tensor

    @classmethod
    def of_table(cls, prompts: Prompts) -> Texts:
        """The prompts that the denoiser is trained on."""
        meanings = [meant(prompt.action, dict(prompt.slots), prompt.world)
                    for prompt in prompt_table()]
        return cls(prompts.states, prompts.mask,
                   torch.tensor(meanings, device=prompts.states.device))


def bake_paraphrases(path: Path, draws: int = 2, tokens: int = MAX_WORD_PIECES,
                     phrases: Sequence[Phrase] | None = None) -> int:
    """Encode the paraphrases (those of the package if None), and the phrasings that nothing is
    trained on.

    Args:
        draws: with how many worlds of what is worn each paraphrase is encoded, each time with
            another subject.
        tokens: states kept of each prompt.

    Returns:
        how many prompts they make.
    """
    phrases = read_paraphrases() if phrases is None else phrases
    arrays: dict[str, NDArray[Any]] = {'table': np.array(table_digest())}
    made = 0
    for name, (texts, targets) in (('trained', paraphrased(phrases, draws, 0)),
                                   ('unseen', unseen()), ('passing', passing())):
        arrays |= {f'{name}_{key}': value for key, value in packed(texts, tokens).items()}
        arrays[f'{name}_target'] = np.array(targets, np.int64)
        made += len(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return made


def load_paraphrases(path: Path, tokens: int,
                     device: torch.device) -> tuple[Texts, Texts, Texts]:
    """Paraphrases to train on, phrasings to test with, and prompts of the moments in which an
    expression ends, as `bake_paraphrases` left them.

    Raises:
        FileNotFoundError: if they have not been baked.
        ValueError: if they are of another version's prompts.
    """
    again = f"make them with 'python -m interactive_avatar.training.reading --out {path}'"
    if not path.is_file():
        raise FileNotFoundError(f'no paraphrases at {str(path)!r}; {again}')
    with np.load(path) as stored:
        if 'passing_target' not in stored or str(stored['table']) != table_digest():
            raise ValueError(f'{str(path)!r} holds the paraphrases of another version of this '
                             f'project; {again}')
        trained, tests, moments = (
            Texts(*unpacked(stored, tokens, device, f'{name}_'),
                  torch.from_numpy(stored[f'{name}_target']).to(device))
            for name in ('trained', 'unseen', 'passing'))
    return trained, tests, moments


def paraphrased(phrases: Sequence[Phrase], draws: int, seed: int) -> tuple[list[str], list[int]]:
    """Paraphrases as prompts, ``draws`` of each with worlds of what is worn and subjects drawn at
    random, and what they mean."""
    rng = np.random.default_rng(seed)
    texts, targets = [], []
    for phrase in phrases:
        worlds = sorted({shown(replace(world, in_view=phrase.action != 'come_back'),
                               phrase.action, phrase.slots) for world in WORN_WORLDS}, key=repr)
        for number in rng.choice(len(worlds), min(draws, len(worlds)), replace=False):
            texts.append(in_words(phrase.action, worlds[number], phrase.text,
                                  SUBJECTS_READ[int(rng.integers(len(SUBJECTS_READ)))],
                                  **phrase.slots))
            targets.append(meant(phrase.action, phrase.slots, worlds[number]))
    return texts, targets


def passing() -> tuple[list[str], list[int]]:
    """Prompts of the moments in which an expression ends, and their numbers after the table's."""
    texts = [moment.text for moment in passing_table().values()]
    first = len(prompt_table())
    return texts, list(range(first, first + len(texts)))


def unseen() -> tuple[list[str], list[int]]:
    """Phrasings of actions that nothing is trained on, and what they mean: `HELD_OUT_VARIANTS`, by
    which settings may be chosen. `FRESH_VARIANTS` are left to the evaluation."""
    texts, targets = [], []
    for action, allowed in ACTION_SLOTS.items():
        for values in itertools.product(*allowed.values()):
            slots = dict(zip(allowed, values, strict=True))
            world = shown(WorldState(in_view=action != 'come_back'), action, slots)
            for variant in HELD_OUT_VARIANTS:
                texts.append(action_prompt(action, world, variant, **slots))
                targets.append(meant(action, slots, world))
    return texts, targets


@torch.no_grad()
def collect_queries(model: Trainee, shard: Shard, prompts: Prompts,
                    options: ReadingOptions) -> Tensor:
    """Queries that text attention asks while streams are played, float32 [L, H, kept, hw]."""
    denoiser = model.denoiser
    found: list[list[Tensor]] = [[] for _ in denoiser.layers]
    hooks = []
    for queries, block in zip(found, denoiser.layers, strict=True):
        # A quarter of the tokens, at random, are enough.
        def keep(module: object, inputs: object, output: Tensor,
                 queries: list[Tensor] = queries) -> None:
            flat = output.detach().float().flatten(0, -2)
            queries.append(flat[torch.rand(len(flat), device=flat.device) < 0.25].cpu())

        hooks.append(block.text.norm_q.register_forward_hook(keep))
    try:
        rollout = Rollout(denoiser, shard, prompts, options.streams, 20, 0.0, captured=False)
        for _ in range(options.segments):
            rollout.advance(model.audio, shard.config.sampler.levels)
    finally:
        for hook in hooks:
            hook.remove()
    heads = denoiser.layers[0].text.heads
    every = [torch.cat(queries) for queries in found]
    count = min(options.kept, *map(len, every))
    return torch.stack([queries[torch.randperm(len(queries))[:count]].unflatten(
        -1, heads).transpose(0, 1) for queries in every]).to(shard.device)


def read(denoiser: Denoiser, states: Tensor, mask: Tensor, queries: Tensor,
         refined: bool = True) -> Tensor:
    """What text attention adds in every layer.

    Args:
        states: [N, n, width]; mask: [N, n]; queries: [L, H, Q, hw].
        refined: whether the refiner reads the states first.

    Returns:
        float32 [N, L, Q, denoiser width].
    """
    embedded = denoiser.embed_text(states) if refined else denoiser.text_embedding(states)
    bias = mask[:, None, None].to(embedded.dtype)
    added = []
    for own, block in zip(queries, denoiser.layers, strict=True):
        k, v = block.text.project(embedded)
        q = own.to(k.dtype)[None].expand(len(states), -1, -1, -1)
        added.append(block.text.o(attend(q, k, v, bias)))
    return torch.stack(added, 1).float()


class Wanted:
    """What is asked for of each canonical prompt: a weighted sum of what such prompts add.

    Attributes:
        rows: int64 [P of the table and of `passing_table`, terms], numbers of canonical prompts;
            weights: float32, of the same shape, summing to 1.
        canonical: int64, numbers of the canonical prompts, sorted.
    """

    def __init__(self, options: ReadingOptions, device: torch.device) -> None:
        table = prompt_table()
        sums: dict[int, dict[int, float]] = {}
        known: set[str] = set()
        for prompt in table:
            number = meant(prompt.action, dict(prompt.slots), prompt.world)
            if number not in sums:
                sums[number] = self._sum(prompt, number, options, known)
        for name in {*options.emphasis, *options.leaning,
                     *itertools.chain(*options.leaning.values())} - known:
            raise ValueError(f'emphasis of {name!r}, which is no action: use one of '
                             f'{", ".join(sorted(known))}')
        canonical = sorted(sums)
        for number, moment in enumerate(passing_table().values(), len(table)):
            sums[number] = {prompt_id(moment.after): 1.0 + options.passing,
                            prompt_id(moment.before): -options.passing}
        terms = max(map(len, sums.values()))
        rows = torch.zeros((len(table) + len(passing_table()), terms), dtype=torch.int64)
        weights = torch.zeros(rows.shape)
        for number, parts in sums.items():
            rows[number, :len(parts)] = torch.tensor(list(parts))
            weights[number, :len(parts)] = torch.tensor(list(parts.values()))
        self.rows, self.weights = rows.to(device), weights.to(device)
        self.canonical = torch.tensor(canonical, device=device)

    @staticmethod
    def _sum(prompt: Prompt, number: int, options: ReadingOptions,
             known: set[str]) -> dict[int, float]:
        if prompt.action is None:
            return {number: 1.0}
        slots, world = dict(prompt.slots), prompt.world
        name = ' '.join([prompt.action, *slots.values()])
        known.add(name)
        rest = meant(None, {}, world)
        more = options.emphasis.get(name, 0.0)
        parts = {number: 1.0 + more, rest: -more}
        for other, share in options.leaning.get(name, {}).items():
            action, _, value = other.partition(' ')
            lean = meant(action, slots_of(action, value), world)
            parts[lean] = parts.get(lean, 0.0) + share
            parts[rest] -= share
        return {key: value for key, value in parts.items() if value}

    def of(self, target: Tensor, added: Tensor) -> Tensor:
        """From what all needed prompts add, [P needed, …] in the order of `needed`, what is asked
        for of ``target`` [N]."""
        needed = self.needed(target)
        place = torch.searchsorted(needed, self.rows[target])
        weights = self.weights[target].view(*self.rows[target].shape, *[1] * (added.dim() - 1))
        return (added[place] * weights).sum(1)

    def needed(self, target: Tensor) -> Tensor:
        """Numbers of the prompts whose attention `of` needs, sorted."""
        return self.rows[target].unique()


@dataclass
class Judge:
    """How well texts are read: by distance of what they add to what is asked for.

    Attributes:
        missed: share of the variance between prompts that is not explained, mean over texts.
        right: share of texts that are nearest to what they mean, among the canonical prompts.
    """

    missed: float
    right: float


def read_in_parts(denoiser: Denoiser, states: Tensor, mask: Tensor, queries: Tensor,
                  refined: bool, together: int = 256) -> Tensor:
    """As `read`, of many prompts, some at a time."""
    return torch.cat([read(denoiser, part.float(), own, queries, refined) for part, own in zip(
        states.split(together), mask.split(together), strict=True)])


class Source:
    """What canonical prompts add, by those whose reading is asked for.

    Args:
        tutor: whose refiner reads the actions ``taught``; others are not refined.

    Raises:
        ValueError: if there are such actions and no tutor with a refiner, or unknown ones.
    """

    def __init__(self, denoiser: Denoiser, table: Prompts, taught: Sequence[str],
                 tutor: Denoiser | None) -> None:
        names = table_names()
        for name in taught:
            if not name or name not in names:
                raise ValueError(f'taught {name!r}, which is no action: use some of '
                                 f'{", ".join(sorted({*names} - {""}))}')
        if taught and (tutor is None or tutor.refiner is None):
            raise ValueError(f'nobody has taught {", ".join(taught)}: give the weights that the '
                             f'stage act left with --teacher')
        self._denoiser, self._table, self._tutor = denoiser, table, tutor
        self._taught = torch.tensor([name in taught for name in names],
                                    device=table.states.device)

    @torch.no_grad()
    def read(self, numbers: Tensor, queries: Tensor) -> Tensor:
        """What the table's prompts with these numbers [N] add, as `read`."""
        def of(by: Denoiser, some: Tensor, refined: bool) -> Tensor:
            return read_in_parts(by, self._table.states[some], self._table.mask[some], queries,
                                 refined)

        added = of(self._denoiser, numbers, False)
        taught = self._taught[numbers]
        if self._tutor is not None and taught.any():
            added[taught] = of(self._tutor, numbers[taught], True)
        return added


def table_names() -> list[str]:
    """Of each prompt in the table, its action with its slot, '' for stable ones."""
    return [' '.join([prompt.action or '', *dict(prompt.slots).values()])
            for prompt in prompt_table()]


@torch.no_grad()
def judge(denoiser: Denoiser, texts: Texts, source: Source, wanted: Wanted, queries: Tensor,
          refined: bool = True) -> Judge:
    """Compare what texts add with what is asked for of every canonical action prompt."""
    targets = texts.target.unique()
    goals = wanted.of(targets, source.read(wanted.needed(targets), queries))
    scale = spread(goals)
    found = read_in_parts(denoiser, texts.states, texts.mask, queries, refined)
    distance = torch.stack([(((found - goal).square().mean((2, 3))) / scale).mean(1)
                            for goal in goals], 1)
    own = torch.searchsorted(targets, texts.target)
    return Judge(float(distance.gather(1, own[:, None]).mean()),
                 float((distance.argmin(1) == own).float().mean()))


def spread(added: Tensor) -> Tensor:
    """Variance between prompts of what they add [P, L, Q, width], by layer [L]."""
    return added.var(0).mean((1, 2)).clamp_min(1e-12)


def train_reading(model: Trainee, shard: Shard, prompts: Prompts, others: Texts, tests: Texts,
                  moments: Texts, process: Process, run: Run,
                  options: ReadingOptions | None = None,
                  tutor: Trainee | None = None) -> Optimiser:
    """Train the refiner in place; raw weights stay in ``model``, their average in the result.

    Args:
        shard: clips whose references, sound and prompts streams are played with, for queries.
        prompts: the table. others: paraphrases of it.
        tests: what is only judged, before and after.
        moments: in which an expression ends.
        tutor: who has been taught actions; needed if options name some.

    Raises:
        ValueError: if the denoiser has no refiner, options name an unknown action, or nobody has
            taught those that are to be.
    """
    options = options or ReadingOptions()
    denoiser, device = model.denoiser, process.device
    if denoiser.refiner is None:
        raise ValueError('this denoiser has no token refiner: give refiner_layers in its config')
    if run.sharded:
        raise ValueError('the refiner is too small to be split: leave out --fsdp')
    process.share_weights(model)
    thaw = freeze_but(model, denoiser.refiner.parameters())
    optimiser = Optimiser(model, process, options.peak_rate, options.weight_decay,
                          average_decay=options.average_decay,
                          settle_steps=options.settle_steps)
    stage = Stage('text', process, run)
    stage.keep(weights=optimiser)
    wanted = Wanted(options, device)
    source = Source(denoiser, prompts, options.taught, None if tutor is None else tutor.denoiser)
    torch.manual_seed(run.seed)
    queries = collect_queries(model, shard, prompts, options)
    table = Texts.of_table(prompts)
    some = queries[:, :, :256]
    with torch.no_grad():
        scale = spread(source.read(wanted.needed(wanted.canonical), some))
    counts = [round(options.batch * share)
              for share in (options.canonical_share, options.table_share,
                            options.passing_share)]
    counts.append(options.batch - sum(counts))
    deviation = float(prompts.states[prompts.mask == 0.0].float().std())

    def report(judged: Judge) -> None:
        stage.log.add(stage.step, unseen_right=judged.right, unseen_missed=judged.missed)

    report(judge(denoiser, tests, source, wanted, some, refined=False))
    for progress in stage.steps():
        for share in stage.parts():
            picks = [wanted.canonical[torch.randint(len(wanted.canonical), (counts[0],))],
                     torch.randint(len(table.target), (counts[1],), device=device),
                     torch.randint(len(moments.target), (counts[2],), device=device),
                     torch.randint(len(others.target), (counts[3],), device=device)]
            sources = (table, table, moments, others)
            states = torch.cat([texts.states[pick].float()
                                for texts, pick in zip(sources, picks, strict=True)])
            mask = torch.cat([texts.mask[pick] for texts, pick in zip(sources, picks,
                                                                      strict=True)])
            target = torch.cat([texts.target[pick] for texts, pick in zip(sources, picks,
                                                                          strict=True)])
            # What is played, canonical prompts and moments, is learnt as it is.
            played = torch.tensor([1, 0, 1, 0], dtype=torch.bool, device=device)
            changed = ~played.repeat_interleave(torch.tensor(counts, device=device))[:, None]
            there = mask == 0.0
            states = states + (options.noise * deviation * torch.randn_like(states)
                               * (changed & there)[..., None])
            gone = changed & (torch.rand_like(mask) < options.word_drop)
            gone[:, 0] = False
            states = states.masked_fill(gone[..., None], 0.0)
            mask = mask.masked_fill(gone, float(MASKED))
            at = torch.randint(queries.shape[2], (options.queries,), device=device)
            asked = queries[:, :, at]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
                goal = wanted.of(target, source.read(wanted.needed(target), asked))
                added = read(denoiser, states, mask, asked)
            error = ((added - goal).square().mean((2, 3)) / scale).mean(1)
            optimiser.backward(share * error.mean())
            canonical, known, passed, other = error.detach().split(counts)
            stage.log.add(stage.step, canonical=canonical.mean(), table=known.mean(),
                          passing=passed.mean(), paraphrases=other.mean())
        optimiser.step(progress)
        if (stage.step + 1) % options.judge_steps == 0:
            with averaged(optimiser):
                report(judge(denoiser, tests, source, wanted, some))
    with averaged(optimiser):
        report(judge(denoiser, tests, source, wanted, some))
    stage.close()
    thaw()
    return optimiser


def main() -> None:
    """Encode the paraphrases that the stage text draws from."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('--out', type=Path, default=Path('assets/paraphrases.npz'),
                        metavar='FILE', help='the file to write (default: %(default)s)')
    parser.add_argument('--phrases', type=Path, default=PARAPHRASES_PATH, metavar='FILE',
                        help='lines of an action (and its slot), a tab, and what follows the '
                             "subject (default: the package's own)")
    options = parser.parse_args()
    made = bake_paraphrases(options.out, phrases=read_paraphrases(options.phrases))
    print(f'{options.out}: {made} prompts')


if __name__ == '__main__':
    main()
