# SPDX-License-Identifier: Apache-2.0
"""The prompts that the generator is trained on, and the world that they describe.

Two kinds of prompt exist (DESIGN section 8). A *stable* prompt describes the world while nothing
happens: what is worn, where the person looks, the expression, whether they listen. An *action*
prompt describes what happens now. Reasoning emits prompts only through `stable_prompt` and
`action_prompt`, so nothing reaches the generator that it was not trained on; free text from a
user is left to the text encoder to generalise to.

Every prompt has several phrasings, its variants. Variant 0 is the canonical one, used at run time.
`HELD_OUT_VARIANTS` are never trained on: they measure how well other wordings are understood.
Actions have further ones, since an action that is known by a few phrases only is missed in others.

Directions are the viewer's: `left` is the left of the picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Final

GAZES: Final = ('user', 'left', 'right', 'up', 'down')
EXPRESSIONS: Final = ('neutral', 'smile', 'frown', 'surprise')
EMOTIONS: Final = ('neutral', 'happy', 'sad', 'surprised')
OBJECTS: Final = ('glasses', 'hat')

# Phrasings of stable prompts; action prompts have these and `MORE_VARIANTS`.
VARIANTS: Final = 14
HELD_OUT_VARIANTS: Final = (12, 13)
MORE_VARIANTS: Final = 12
# Averted gazes have 128 worlds, each rarer than the 32 that look at the user: fewer phrasings of
# each keep the table of text embeddings small on the training machine.
TRAINED_VARIANTS_AVERTED: Final = 8
MAX_WORD_PIECES: Final = 20

# Slots of each action and the values they take. An action without slots has an empty mapping.
ACTION_SLOTS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    'nod': {},
    'shake_head': {},
    'smile': {},
    'frown': {},
    'look_surprised': {},
    'look': {'direction': GAZES},
    'tilt_head': {},
    'raise_eyebrows': {},
    'think': {},
    'lean_closer': {},
    'wear': {'object': OBJECTS},
    'remove': {'object': OBJECTS},
    'step_out': {},
    'come_back': {},
    'talk': {'emotion': EMOTIONS},
    'listen': {},
}
ACTIONS: Final = tuple(ACTION_SLOTS)
_DEFAULT_SLOTS: Final = {'direction': 'user', 'emotion': 'neutral'}


@dataclass(frozen=True)
class WorldState:
    """What a stable prompt describes.

    Attributes:
        glasses: worn or not.
        hat: worn or not.
        in_view: False after `step_out`, until `come_back`.
        gaze: one of `GAZES`; held while stable.
        expression: one of `EXPRESSIONS`; held while stable.
        listening: attentive to the user who speaks.

    Raises:
        ValueError: on a gaze or expression outside those tuples.
    """

    glasses: bool = False
    hat: bool = False
    in_view: bool = True
    gaze: str = 'user'
    expression: str = 'neutral'
    listening: bool = False

    def __post_init__(self) -> None:
        if self.gaze not in GAZES:
            raise ValueError(f'gaze {self.gaze!r} is unknown; use one of {", ".join(GAZES)}')
        if self.expression not in EXPRESSIONS:
            raise ValueError(f'expression {self.expression!r} is unknown; use one of '
                             f'{", ".join(EXPRESSIONS)}')

    @property
    def worn(self) -> tuple[str, ...]:
        """Names of the objects worn, in the order of `OBJECTS`."""
        return tuple(name for name in OBJECTS if getattr(self, name))


@dataclass(frozen=True)
class Prompt:
    """One entry of the training table.

    Attributes:
        text: the English prompt.
        action: None for a stable prompt, else one of `ACTIONS`.
        slots: the action's slots as sorted (name, value) pairs.
        world: the world described (stable) or in which the action starts; only what the text
            depends on is set, the rest is at its default.
        variant: phrasing, as in `stable_prompt` and `action_prompt`.
    """

    text: str
    action: str | None
    slots: tuple[tuple[str, str], ...]
    world: WorldState
    variant: int


# --- subjects: (who, how worn things are attached) ------------------------------------------
_SUBJECTS: Final = (
    ('a person', 'wearing'), ('the person', 'with'), ('someone', 'in'), ('the person', 'wearing'),
    ('a person', 'with'), ('the avatar', 'wearing'), ('this person', 'with'),
    ('the character', 'in'), ('somebody', 'wearing'), ('the avatar', 'with'), ('a person', 'in'),
    ('the character', 'with'), ('the speaker', 'wearing'), ('a human', 'with'),
)
_WORN: Final = {(): '', ('glasses',): 'glasses', ('hat',): 'a hat',
                ('glasses', 'hat'): 'glasses and a hat'}

# --- stable prompts -------------------------------------------------------------------------
# Per variant: gaze user, gaze elsewhere (with {d}), expressions, listening. All end up in
# '<subject> <gaze><expression><listening>'.
_STABLE: Final[tuple[tuple[str, str, tuple[str, str, str, str], str], ...]] = (
    ('looks at the viewer', 'looks {to}',
     ('', ', smiling', ', frowning', ', surprised'), ', listening'),
    ('faces the camera', 'gazes {to}',
     ('', ' with a smile', ' with a frown', ' with a surprised face'), ' and listens'),
    ('watches you', 'is looking {to}',
     (' calmly', ' and smiles', ' and frowns', ' in surprise'), ', listening closely'),
    ('is looking ahead', 'turned the eyes {to}',
     ('', ' happily', ' sadly', ' with wide eyes'), ' while listening'),
    ('keeps eye contact', 'keeps looking {to}',
     ('', ', smiling gently', ', looking worried', ', looking amazed'), ', paying attention'),
    ('looks straight ahead', 'stays looking {to}',
     ('', ', mouth smiling', ', brows lowered', ', brows raised'), ' and hears you'),
    ('waits for the viewer', 'waits, looking {to}',
     ('', ', cheerful', ', unhappy', ', astonished'), ', all ears'),
    ('looks into the camera', 'glances {to}',
     (' quietly', ', smiling warmly', ', looking sad', ', with surprise'),
     ', hearing you'),
    ('looks at the user', 'rests the gaze {to}',
     (', relaxed', ', pleased', ', concerned', ', startled'), ', listening to them'),
    ('is facing us', 'is facing us but looks {to}',
     ('', ' and is smiling', ' and is frowning', ' and is surprised'), ', attentively'),
    ('sits still, looking at you', 'sits still, looking {to}',
     ('', ' with a grin', ' with a scowl', ' with astonishment'),
     ', following'),
    ('rests, looking forward', 'rests, looking {to}',
     (' at ease', ' in a good mood', ' in a bad mood', ' full of wonder'), ', listening now'),
    ('gazes at the viewer', 'peers {to}',
     ('', ', grinning', ', upset', ', stunned'), ', listening with care'),
    ('has eyes on the camera', 'has eyes {to}',
     (' in calm', ' and smiles', ' and frowns', ' in surprise'),
     ', tuned in'),
)
_TO: Final = {'left': 'to the left', 'right': 'to the right', 'up': 'up', 'down': 'down'}
_TO_ALT: Final = {'left': 'leftward', 'right': 'rightward', 'up': 'upward', 'down': 'downward'}

_AWAY: Final = (
    'an empty view: the person{worn} has left', 'nobody is in view, the person{worn} is away',
    'the person{worn} is out of view', 'only the background, the person{worn} has gone',
    'the scene is empty after the person{worn} left', 'the avatar{worn} is off screen',
    'no one is here, the person{worn} stepped out', 'an empty picture without the person{worn}',
    'the person{worn} stays outside the frame', 'the character{worn} is not visible',
    'the person{worn} remains out of sight', 'empty background, the avatar{worn} is gone',
    'the person{worn} is absent from the picture', 'a vacant scene, the character{worn} is away',
)

# --- action prompts: what follows the subject, one per variant -------------------------------
_ACTS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ('nod', ''): (
        'nods', 'nods the head', 'nods yes', 'is nodding in agreement', 'agrees with a nod',
        'moves the head up and down', 'gives a clear nod', 'nods a few times',
        'says yes by nodding',
        'bobs the head to agree', 'nods to confirm', 'answers with a nod', 'nods approvingly',
        'lowers and lifts the head to say yes'),
    ('shake_head', ''): (
        'shakes the head', 'shakes the head no', 'says no by shaking the head',
        'turns the head from side to side', 'disagrees, shaking the head', 'is shaking the head',
        'moves the head left and right to refuse', 'shakes the head a few times',
        'answers no with the head', 'refuses with a shake of the head', 'denies it with the head',
        'slowly shakes the head', 'swings the head side to side', 'signals no with the head'),
    ('smile', ''): (
        'smiles', 'smiles at the viewer', 'gives a big smile', 'is smiling warmly',
        'starts to smile', 'shows a happy face', 'breaks into a smile', 'grins', 'beams with joy',
        'looks happy', 'lifts the corners of the mouth', 'puts on a friendly smile',
        'lights up with a smile', 'cheers up and smiles'),
    ('frown', ''): (
        'frowns', 'frowns at the viewer', 'makes a frown', 'is frowning', 'looks displeased',
        'lowers the brows', 'shows a sad face', 'knits the brows', 'looks worried',
        'pulls the mouth corners down', 'makes an unhappy face', 'starts to frown',
        'looks upset', 'furrows the brow'),
    ('look_surprised', ''): (
        'looks surprised', 'is surprised', 'shows surprise', 'opens the eyes wide in surprise',
        'looks amazed', 'reacts with surprise', 'makes a surprised face', 'looks astonished',
        'is startled, mouth open', 'raises the brows in surprise', 'gasps in surprise',
        'acts surprised', 'looks shocked', 'cannot believe it, eyes wide'),
    ('look', 'away'): (
        'turns to look {to}', 'starts looking {to}', 'moves the gaze {to}', 'now looks {to}',
        'moves the eyes {to}', 'turns the head {to}', 'shifts the gaze {to}', 'looks away, {to}',
        'looks over {alt}', 'turns the eyes {alt}', 'directs the gaze {alt}',
        'is turning to face {alt}', 'peeks {to}', 'casts a look {alt}'),
    ('look', 'user'): (
        'looks back at the viewer', 'looks at you', 'turns back to the camera',
        'returns the gaze to the user', 'looks at the camera again', 'turns to face the viewer',
        'makes eye contact', 'looks straight at the user', 'brings the eyes back to you',
        'faces forward again', 'moves the gaze to the viewer', 'looks ahead again',
        'meets your eyes', 'looks here again'),
    ('tilt_head', ''): (
        'tilts the head', 'tilts the head to one side', 'leans the head sideways',
        'is tilting the head', 'cocks the head', 'bends the head to the side',
        'lets the head tip sideways', 'gives a head tilt', 'rolls the head toward a shoulder',
        'puts the head at an angle', 'tips the head curiously', 'inclines the head to the side',
        'slants the head', 'drops the head to one side'),
    ('raise_eyebrows', ''): (
        'raises the eyebrows', 'lifts the eyebrows', 'raises both brows', 'moves the eyebrows up',
        'is raising the eyebrows', 'shows raised eyebrows', 'arches the eyebrows',
        'pushes the brows up', 'gives an eyebrow raise', 'lifts the brows with interest',
        'flashes the eyebrows', 'pulls the eyebrows high', 'hikes the eyebrows up',
        'shoots the eyebrows up'),
    ('think', ''): (
        'thinks', 'is thinking', 'thinks it over', 'looks up, thinking', 'ponders',
        'looks thoughtful', 'considers the question', 'is deep in thought',
        'searches for an answer', 'takes a moment to think', 'wonders about it',
        'reflects quietly', 'mulls it over', 'tries to remember something'),
    ('lean_closer', ''): (
        'leans closer', 'leans in', 'leans forward', 'comes closer to the camera',
        'moves toward the viewer', 'is leaning in', 'bends forward to the camera',
        'brings the face nearer', 'leans toward you', 'gets closer', 'moves the head closer',
        'leans in to see better', 'edges nearer', 'draws near'),
    ('wear', ''): (
        'puts on {object}', 'puts {object} on', 'is putting on {object}',
        'starts wearing {object}',
        'gets {object} and wears it', 'places {object} on', 'now wears {object}',
        'adds {object}', 'slips on {object}', 'tries on {object}', 'takes {object} and puts it on',
        'gets dressed with {object}', 'dons {object}', 'fits {object} on'),
    ('remove', ''): (
        'takes off the {object}', 'removes the {object}', 'takes the {object} off',
        'is taking off the {object}', 'lifts the {object} off', 'puts the {object} away',
        'stops wearing the {object}', 'pulls off the {object}', 'gets rid of the {object}',
        'slips off the {object}', 'lets the {object} go', 'sets the {object} aside',
        'strips off the {object}', 'no longer keeps the {object} on'),
    ('step_out', ''): (
        'steps out of view', 'leaves the view', 'walks away', 'moves out of the picture',
        'goes away', 'is leaving', 'exits the frame', 'steps aside and leaves',
        'goes off screen', 'disappears to the side', 'walks out of the scene',
        'leaves the picture', 'departs', 'slides out of sight'),
    ('come_back', ''): (
        'comes back', 'returns', 'comes back into view', 'walks back in', 'steps back in',
        'is coming back', 'enters the frame again', 'returns to the picture',
        'appears again', 'comes on screen again', 'is back in view', 'moves back into the picture',
        'reappears', 'shows up again'),
    ('talk', 'neutral'): (
        'talks', 'is talking', 'speaks to the viewer', 'talks to the camera', 'is speaking',
        'answers', 'says something', 'explains something', 'tells you something',
        'replies calmly', 'speaks', 'talks to you', 'chats', 'holds a talk'),
    ('talk', 'happy'): (
        'talks happily', 'talks with a smile', 'speaks cheerfully', 'is talking, smiling',
        'smiles while speaking', 'says something happy', 'speaks in a good mood',
        'talks joyfully', 'answers with a smile', 'tells good news, smiling',
        'greets you with a smile', 'replies in a friendly way', 'chats merrily',
        'speaks full of joy'),
    ('talk', 'sad'): (
        'talks sadly', 'talks with concern', 'speaks with a sad face', 'is talking, worried',
        'says something sad', 'apologizes', 'speaks in a sad mood', 'talks with a frown',
        'answers with regret', 'says sorry', 'tells bad news, frowning', 'replies with worry',
        'speaks gloomily', 'laments'),
    ('talk', 'surprised'): (
        'talks in surprise', 'talks with surprise', 'speaks with wide eyes',
        'is talking, surprised', 'says something in surprise', 'answers in amazement',
        'speaks excitedly, eyes wide', 'talks with raised brows', 'sounds surprised',
        'replies, astonished', 'exclaims', 'asks in surprise', 'speaks, stunned',
        'blurts out in wonder'),
    ('listen', ''): (
        'listens', 'is listening', 'listens to the user', 'listens and nods a little',
        'pays attention', 'listens closely', 'hears the user out', 'follows what you say',
        'listens with interest', 'attends to the speaker', 'turns to listen',
        'is all ears', 'lends an ear', 'hearkens'),
}

# More wordings of actions, trained on as the first ones are, by other subjects in turn. Without
# them an action is known by a dozen phrases, and a rarer verb ("dons glasses") changes nothing.
_MORE_SUBJECTS: Final = (
    ('a man', 'wearing'), ('a woman', 'with'), ('the host', 'in'), ('the actor', 'wearing'),
    ('a guest', 'with'), ('a player', 'wearing'), ('one person', 'in'), ('the woman', 'with'),
    ('the man', 'wearing'), ('the assistant', 'in'), ('a gentleman', 'with'),
    ('a lady', 'wearing'),
)
_MORE_ACTS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ('nod', ''): (
        'gives a nod', 'dips the head in agreement', 'nods twice', 'nods slowly',
        'signals yes with the head', 'nods along', 'makes a nodding movement',
        'agrees, nodding', 'moves the chin down and up', 'approves with a nod',
        'nods the head firmly', 'shows agreement'),
    ('shake_head', ''): (
        'gives a shake of the head', 'wags the head from side to side', 'shakes the head firmly',
        'expresses no with the head', 'rejects it, shaking the head', 'disagrees with the head',
        'turns the head left and right', 'does a head shake', 'declines by shaking the head',
        'rocks the head side to side', 'shows disagreement', 'moves the head in a no'),
    ('smile', ''): (
        'gives a smile', 'shows a smile', 'smiles broadly', 'flashes a smile', 'smiles kindly',
        'is beaming', 'looks delighted', 'makes a happy face', 'curls the lips into a smile',
        'brightens up', 'smiles now', 'looks glad'),
    ('frown', ''): (
        'gives a frown', 'shows a frown', 'wrinkles the brow', 'scowls', 'looks annoyed',
        'makes a sad face', 'contracts the brows', 'looks troubled', 'frowns deeply',
        'draws the brows together', 'looks sad', 'grimaces unhappily'),
    ('look_surprised', ''): (
        'is astonished', 'makes big eyes', 'drops the jaw in surprise', 'appears surprised',
        'is amazed', 'reacts, startled', 'shows astonishment', 'stares in surprise',
        'is taken aback', 'has a surprised look', 'is stunned', 'looks startled'),
    ('look', 'away'): (
        'glances {to}', 'gazes {to}', 'stares {to}', 'faces {to}', 'looks off {to}',
        'rolls the eyes {to}', 'turns {to}', 'aims the gaze {alt}', 'watches something {to}',
        'points the head {alt}', 'lets the eyes wander {to}', 'checks what is {to}'),
    ('look', 'user'): (
        'gazes at you', 'faces the camera', 'looks toward the viewer', 'stares at the camera',
        'looks to the front', 'watches the viewer again', 'turns to you', 'centers the gaze',
        'looks into your eyes', 'turns the head back to the front', 'glances at the viewer',
        'faces the user'),
    ('tilt_head', ''): (
        'tips the head', 'leans the head to one side', 'tilts the head sideways',
        'holds the head at a slant', 'angles the head', 'lays the head to the side',
        'tilts the head in curiosity', 'lowers an ear to the shoulder', 'has the head tilted',
        'bows the head sideways', 'does a head tilt', 'sways the head to one side'),
    ('raise_eyebrows', ''): (
        'has the eyebrows raised', 'lifts the brows', 'puts the eyebrows up',
        'raises the brows high', 'draws the eyebrows upward', 'wiggles the eyebrows up',
        'pops the eyebrows', 'moves both eyebrows higher', 'brings the brows up',
        'jerks the eyebrows up', 'elevates the eyebrows', 'shows high brows'),
    ('think', ''): (
        'is pondering', 'starts to think', 'thinks about it', 'has to think', 'contemplates',
        'looks away to think', 'weighs an answer', 'tries to recall it', 'is musing',
        'gets lost in thought', 'thinks hard', 'ponders an answer'),
    ('lean_closer', ''): (
        'comes nearer', 'moves in', 'approaches the camera', 'leans to the viewer',
        'puts the head forward', 'moves forward', 'is coming closer', 'nears the camera',
        'brings the head to the front', 'bends closer', 'inches closer', 'leans over'),
    ('wear', ''): (
        'takes on {object}', 'pulls on {object}', 'sets {object} in place',
        'equips {object}', 'slides on {object}', 'begins to wear {object}',
        'attaches {object}', 'puts on the new {plain}', 'is dressed in {object} now',
        'throws on {object}', 'is fitted with {object}', 'has {object} on now'),
    ('remove', ''): (
        'slides the {object} off', 'drops the {object}', 'pulls the {object} away',
        'discards the {object}', 'is removing the {object}', 'puts down the {object}',
        'draws the {object} off', 'undoes the {object}', 'has the {object} off now',
        'lays the {object} down', 'parts with the {object}', 'throws off the {object}'),
    ('step_out', ''): (
        'exits', 'walks off', 'goes out of sight', 'moves away', 'leaves the scene',
        'is gone from the picture', 'heads off', 'walks out of view', 'steps away',
        'vanishes from view', 'goes out', 'leaves'),
    ('come_back', ''): (
        'is here again', 'walks into view', 'enters', 'arrives again', 'steps into the picture',
        'enters the scene', 'comes in again', 'is visible again', 'turns up again',
        'moves into view', 'comes into the frame', 'steps into view'),
    ('talk', 'neutral'): (
        'gives an answer', 'tells a story', 'speaks up', 'has a talk', 'makes a remark',
        'utters some words', 'is answering', 'speaks into the camera', 'states something',
        'talks on', 'reads something out', 'converses'),
    ('talk', 'happy'): (
        'speaks happily', 'talks cheerfully', 'talks in delight', 'speaks with a smile',
        'answers happily', 'says something nice, smiling', 'says something funny, smiling',
        'speaks warmly', 'is talking in a good mood', 'replies with joy', 'talks, beaming',
        'chats happily'),
    ('talk', 'sad'): (
        'speaks sadly', 'talks, frowning', 'talks with regret', 'speaks with worry',
        'answers sadly', 'is sorry to say something', 'talks unhappily', 'replies with a frown',
        'speaks with concern', 'regrets something aloud', 'is talking sadly', 'complains'),
    ('talk', 'surprised'): (
        'speaks in surprise', 'talks, amazed', 'replies in surprise', 'speaks, startled',
        'says something, astonished', 'talks with wide eyes', 'answers, surprised',
        'wonders aloud', 'talks in astonishment', 'cries out in surprise', 'speaks in wonder',
        'is talking with raised brows'),
    ('listen', ''): (
        'is listening to you', 'keeps listening', 'listens carefully', 'gives you attention',
        'hears you', 'listens in silence', 'lets the user speak', 'listens attentively',
        'concentrates on your words', 'starts to listen', 'stays quiet and listens',
        'is attentive'),
}


def _subject(worn: tuple[str, ...], variant: int) -> str:
    who, how = (*_SUBJECTS, *_MORE_SUBJECTS)[variant]
    return f'{who} {how} {_WORN[worn]}' if worn else who


def _with_object(world: WorldState, name: str, worn: bool) -> WorldState:
    return replace(world, glasses=worn) if name == 'glasses' else replace(world, hat=worn)


def _check_variant(variant: int, count: int) -> None:
    if not 0 <= variant < count:
        raise ValueError(f'variant {variant} does not exist; use 0 to {count - 1}')


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def check_slots(action: str, slots: Mapping[str, str]) -> dict[str, str]:
    """Validate an action and its slots, filling in defaults.

    Args:
        action: one of `ACTIONS`.
        slots: by name, see `ACTION_SLOTS`; `direction` defaults to user, `emotion` to neutral.

    Returns:
        All slots of the action, by name.

    Raises:
        ValueError: on an unknown action, slot or value, or a missing `object`.
    """
    if action not in ACTION_SLOTS:
        raise ValueError(f'action {action!r} is unknown; use one of {", ".join(ACTIONS)}')
    allowed = ACTION_SLOTS[action]
    for name in slots:
        if name not in allowed:
            raise ValueError(f'action {action!r} has no slot {name!r}; it takes '
                             f'{", ".join(allowed) or "none"}')
    filled = {}
    for name, values in allowed.items():
        value = slots.get(name, _DEFAULT_SLOTS.get(name))
        if value not in values:
            raise ValueError(f'{name}={value!r} does not fit action {action!r}; use one of '
                             f'{", ".join(values)}')
        filled[name] = value
    return filled


def stable_prompt(world: WorldState, variant: int = 0) -> str:
    """English description of a world in which nothing happens.

    Args:
        world: the world; when out of view, gaze, expression and listening do not show.
        variant: phrasing, 0 to `VARIANTS` - 1; 0 is the one used at run time.

    Raises:
        ValueError: if there is no such variant.
    """
    _check_variant(variant, VARIANTS)
    if not world.in_view:
        how = _SUBJECTS[variant][1]
        worn = f' {how} {_WORN[world.worn]}' if world.worn else ''
        return _sentence(_AWAY[variant].format(worn=worn))
    at_user, elsewhere, expressions, listening = _STABLE[variant]
    gaze = at_user if world.gaze == 'user' else elsewhere.format(to=_TO[world.gaze])
    expression = expressions[EXPRESSIONS.index(world.expression)]
    return _sentence(f'{_subject(world.worn, variant)} {gaze}{expression}'
                     f'{listening if world.listening else ""}')


def action_prompt(action: str, world: WorldState, variant: int = 0, **slots: str) -> str:
    """English description of an action that starts in a world.

    Out of view nothing but `come_back` can be seen, so any other action there gives the stable
    prompt of that world (the voice is heard all the same).

    Args:
        action: one of `ACTIONS`.
        world: the world before the action; only worn objects and `in_view` matter.
        variant: phrasing, 0 to `VARIANTS` + `MORE_VARIANTS` - 1; 0 is the one used at run time.
        **slots: see `ACTION_SLOTS`.

    Raises:
        ValueError: on an unknown action, slot, value or variant, or a missing `object`.
    """
    _check_variant(variant, VARIANTS + MORE_VARIANTS)
    filled = check_slots(action, slots)
    if not world.in_view and action != 'come_back':
        return stable_prompt(world, variant % VARIANTS)
    worn = world.worn
    values: dict[str, str] = {}
    key = ''
    if action in ('wear', 'remove'):
        name = filled['object']
        worn = tuple(item for item in worn if item != name)
        values = {'object': name if action == 'remove' else _WORN[(name,)], 'plain': name}
    elif action == 'look':
        direction = filled['direction']
        key = 'user' if direction == 'user' else 'away'
        if key == 'away':
            values = {'to': _TO[direction], 'alt': _TO_ALT[direction]}
    elif action == 'talk':
        key = filled['emotion']
    phrase = (*_ACTS[action, key], *_MORE_ACTS[action, key])[variant].format(**values)
    if values.get('plain') == 'glasses':
        phrase = phrase.replace(' it', ' them')
    return _sentence(f'{_subject(worn, variant)} {phrase}')


def after(action: str, world: WorldState, **slots: str) -> WorldState:
    """The world after an action, as the next stable prompt describes it.

    A smile stays; a frown and surprise are passing and relax to neutral. `look` is held until
    another action, which turns back to the user.

    Raises:
        ValueError: on an unknown action, slot or value, or a missing `object`.
    """
    filled = check_slots(action, slots)
    if action in ('wear', 'remove'):
        world = _with_object(world, filled['object'], action == 'wear')
    if action == 'step_out':
        return replace(world, in_view=False, gaze='user', expression='neutral', listening=False)
    if action == 'come_back':
        return replace(world, in_view=True, gaze='user', listening=False)
    if not world.in_view:
        return world
    gaze = filled['direction'] if action == 'look' else 'user'
    expression = {'smile': 'smile', 'frown': 'neutral', 'look_surprised': 'neutral'}.get(
        action, world.expression)
    if action == 'talk' and filled['emotion'] != 'neutral':
        expression = 'smile' if filled['emotion'] == 'happy' else 'neutral'
    return replace(world, gaze=gaze, expression=expression, listening=action == 'listen')


@cache
def trained_variants(world: WorldState, action: str | None = None) -> tuple[int, ...]:
    """The phrasings of a stable or action prompt that are trained on."""
    if action is None and world.in_view and world.gaze != 'user':
        return tuple(range(TRAINED_VARIANTS_AVERTED))
    # Where an action cannot be seen, its prompt is the stable one.
    seen = action is not None and (world.in_view or action == 'come_back')
    return tuple(variant for variant in range(VARIANTS + (MORE_VARIANTS if seen else 0))
                 if variant not in HELD_OUT_VARIANTS)


def shown(world: WorldState, action: str | None = None,
          slots: Mapping[str, str] | None = None) -> WorldState:
    """The world reduced to what its stable prompt (or the prompt of an action in it) tells."""
    if action is None:
        return world if world.in_view else WorldState(world.glasses, world.hat, False)
    reduced = WorldState(world.glasses, world.hat, action != 'come_back')
    if action in ('wear', 'remove') and slots:
        reduced = _with_object(reduced, slots['object'], action == 'remove')
    return reduced


@lru_cache(maxsize=2)
def prompt_table(held_out: bool = False) -> tuple[Prompt, ...]:
    """All prompts trained on, in a fixed order, or the held-out phrasings.

    Args:
        held_out: give the `HELD_OUT_VARIANTS` of each prompt instead.
    """
    table: list[Prompt] = []

    def add(action: str | None, slots: Mapping[str, str], world: WorldState) -> None:
        for variant in HELD_OUT_VARIANTS if held_out else trained_variants(world, action):
            text = (stable_prompt(world, variant) if action is None
                    else action_prompt(action, world, variant, **slots))
            table.append(Prompt(text, action, tuple(sorted(slots.items())), world, variant))

    for glasses, hat in itertools.product((False, True), repeat=2):
        for gaze, expression, listening in itertools.product(GAZES, EXPRESSIONS, (False, True)):
            add(None, {}, WorldState(glasses, hat, True, gaze, expression, listening))
        add(None, {}, WorldState(glasses, hat, False))
        for action, allowed in ACTION_SLOTS.items():
            for values in itertools.product(*allowed.values()):
                slots = dict(zip(allowed, values, strict=True))
                world = WorldState(glasses, hat, action != 'come_back')
                if shown(world, action, slots) == world:
                    add(action, slots, world)
    return tuple(table)


@lru_cache(maxsize=1)
def _index() -> dict[str, int]:
    return {prompt.text: number for number, prompt in enumerate(prompt_table())}


def prompt_id(text: str) -> int:
    """Index of a trained prompt in `prompt_table()`.

    Raises:
        KeyError: if the text is not in the table.
    """
    try:
        return _index()[text]
    except KeyError:
        raise KeyError(f'prompt {text!r} is not trained on; take it from stable_prompt or '
                       f'action_prompt with a trained variant') from None
