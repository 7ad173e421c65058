# SPDX-License-Identifier: Apache-2.0
"""Slots: the name, direction or object that a sentence speaks of, found by rules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from interactive_avatar.reasoning.intents import normalise
from interactive_avatar.reasoning.turn import clean_name

_DIRECTIONS: Final[tuple[tuple[str, str], ...]] = (
    ('left', r'left|leftwards?|left-hand'),
    ('right', r'right|rightwards?|right-hand'),
    ('up', r'up|upwards?|above|ceiling|sky|overhead|skywards?|roof|higher'),
    ('down', r'down|downwards?|below|floor|ground|feet|beneath|desk|table|shoes|lower|underneath'),
    ('user', r'at me|to me|me|my (?:eyes?|face|direction|way)|us|camera|lens|straight|ahead|'
             r'forwards?|front|this way|here|viewer|user|cent(?:er|re)|middle|back|into the eyes'),
)
_DIRECTION_PATTERNS: Final = tuple(
    (name, re.compile(rf"(?<![\w'])(?:{words})(?![\w'])")) for name, words in _DIRECTIONS)
_OBJECTS: Final = (
    ('glasses', re.compile(r'\b(?:eye ?glasses|sun ?glasses|glasses|glass|spectacles?|specs|'
                           r'shades|goggles|lenses)\b')),
    ('hat', re.compile(r'\b(?:hats?|caps?|beanie|headgear|headwear|bonnet|fedora)\b')),
)
_ON_HEAD = re.compile(r'\b(?:on|off|from) (?:top of )?your head\b')
_ON_NOSE = re.compile(r'\b(?:on|off|from) your (?:nose|eyes|face)\b')
_PLURAL = re.compile(r'\b(?:them|those|these|a pair)\b')

# The words that come before a name, longest first; a name's own capital letters are not relied
# on, since recognisers and typists leave them out.
_NAME_CUES: Final = re.compile(
    r"\b(?:my (?:first |full |given )?name(?:'s| is| was|s)|the name(?:'s| is)|"
    r"(?:you (?:can|may|should|could) |please |just |would like you to |people |they |everybody |"
    r"everyone |friends |my friends |friends usually |usually )?call(?:s)? me|"
    r"(?:people |they |you )?(?:may |might )?know me as|i go by(?: the name(?: of)?)?|"
    r"i am called|i'm called|i'm named|i am named|address me as|refer to me as|"
    r"introduce myself,? (?:i am|i'm|as)|remember my name,? it(?:'s| is)|"
    r"it's me,?|it is me,?|this is|i am|i'm|im|name:?)\s+", re.IGNORECASE)
_NAME_FIRST: Final = re.compile(
    r"\b(?P<name>[^\W\d_][\w'.-]*(?: [^\W\d_][\w'.-]*)?),? (?:is my name|is what (?:people|they) "
    r"call me|is the name|here|at your service)\b", re.IGNORECASE)
_TITLES: Final = frozenset('mr mrs ms miss doctor dr professor prof sir lady captain aunt uncle '
                           'father sister brother madam'.split())
# A name ends before these.
_AFTER_NAME: Final = frozenset(
    'and but by the from nice pleased good who what how are is i it speaking here again so if '
    'because with at in on to for please okay though or not robot glad happy my your you can '
    'could would thanks thank'.split())
_NOT_NAMES: Final = _AFTER_NAME | frozenset(
    'a an fine ok well tired sad hungry back home sorry sure done ready late leaving going here '
    'afraid bored angry called named very really just still also new alone lost ill sick busy '
    'doing feeling looking talking trying thinking using working having getting being great all '
    'right alright we he she they this that there me us them hello hi hey yes no'.split())


def find_direction(text: str) -> str | None:
    """The direction that a sentence names: left, right, up, down or user; None if none."""
    clean = normalise(text)
    # `look up to the left`, `look over your right shoulder`: sides tell more than up and down,
    # and both tell more than the speaker, who may be mentioned in passing (`look left for me`).
    clean = re.sub(r"\b(?:for me|tell me|show me|let me|give me|right now|right away|all right|"
                   r"alright|that's right|you're right|right (?=at|here|into|in|this)|"
                   r"look up to (?=me))\b", ' ', clean)
    for name, pattern in _DIRECTION_PATTERNS:
        if pattern.search(clean):
            return name
    return None


def find_object(text: str, worn: Sequence[str] = (), last: str | None = None,
                removing: bool = False) -> str | None:
    """The object that a sentence names, glasses or hat; None if it is not clear.

    Args:
        text: the sentence.
        worn: what is worn now, for `take it off`.
        last: the object that was last spoken of, for `put it on`.
        removing: whether the sentence asks to take something off.
    """
    clean = normalise(text)
    named = [name for name, pattern in _OBJECTS if pattern.search(clean)]
    if len(named) == 1:
        return named[0]
    if named:
        # Both are named: the one that stands last is what is asked for (`no hat, the glasses`).
        return max(named, key=lambda name: [m.start() for m in
                                            dict(_OBJECTS)[name].finditer(clean)][-1])
    if _ON_HEAD.search(clean):
        return 'hat'
    if _ON_NOSE.search(clean):
        return 'glasses'
    if removing and len(worn) == 1:
        return worn[0]
    if last is not None and re.search(r'\b(?:it|them|those|these|that|again|back)\b', clean):
        return last
    if _PLURAL.search(clean):
        return 'glasses'
    return None


def find_name(text: str, bare: bool = False) -> str | None:
    """The user's name in a sentence in which they introduce themselves; None if there is none.

    Args:
        text: the sentence.
        bare: the sentence may be nothing but the name, since it was asked for.
    """
    text = ' '.join(text[:400].replace('\u2019', "'").split())
    for match in _NAME_CUES.finditer(text):
        name = _name_words(text[match.end():])
        if name is not None:
            return name
    first = _NAME_FIRST.search(text)
    if first is not None:
        words = [word for word in first['name'].split()
                 if word.lower().strip(",.'") not in _NOT_NAMES]
        if words:
            return clean_name(' '.join(words))
    if bare:
        stripped = re.sub(r"^(?:it's|it is|that's|i'm|i am|yes|oh|well|just|hi|hello)[ ,]+", '',
                          text.strip(' .!,'), flags=re.IGNORECASE)
        if len(stripped.split()) <= 3:
            return _name_words(stripped)
    return None


def _name_words(text: str) -> str | None:
    # The pieces of a name are words; a comma or full stop (but for a title's) ends it.
    kept: list[str] = []
    for word in text.split():
        plain = word.strip(",.!?;:\"'()")
        lower = plain.lower()
        if not plain or any(char.isdigit() for char in plain):
            break
        if (kept and lower in _AFTER_NAME) or (not kept and lower in _NOT_NAMES):
            break
        if kept and len(kept) >= 1 and not plain[0].isupper() \
                and kept[-1].lower() not in _TITLES:
            # A second word without a capital letter is a name only after a title.
            break
        kept.append(plain)
        ends = word[-1] in ',.!?;:' and lower not in _TITLES
        if ends or len(kept) == 3:
            break
    if not kept or (len(kept) == 1 and kept[0].lower() in _TITLES):
        return None
    return clean_name(' '.join(kept))
