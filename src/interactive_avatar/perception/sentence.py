# SPDX-License-Identifier: Apache-2.0
"""Has the speaker finished, judging by the words alone? English; other languages are not judged.

A recogniser puts a full stop behind nearly everything or nothing, so its punctuation says little.
The last word says more: nobody ends a sentence with `the` or `your`. A wrong `no` costs a quarter
of a second, a wrong `yes` cuts the speaker off, so the list of words that want another is long.
"""

from __future__ import annotations

import re
from typing import Final

JUDGED_LANGUAGES: Final = ('en',)

# Words that want another after them, however they are punctuated.
_UNFINISHED: Final = frozenset((
    # articles, determiners, possessives
    'a an the my your his its our their every each some any this these those '
    # prepositions, without those that end phrasal verbs (put it on, come in, look up)
    'to of for with at from by into onto about between than as like without '
    # conjunctions
    'and but or because if when although unless until since plus '
    # auxiliaries and copulas
    'is are was were am be been being do does did can could will would shall should may might '
    'must have has had let '
    # half of a phrase
    "i'm i'd i'll i've you're we're they're it's that's there's what's let's don't doesn't "
    'very please also just i we they who whose which what where why how um uh er hm hey').split())
# These end questions: `what can you do?`, `where are you from?`, `what time is it like?`
_END_QUESTIONS: Final = frozenset('do is are have from for of to at with about like be'.split())
_QUESTION_WORDS: Final = frozenset('what which who where how why when'.split())
# Alone, these are whole sentences all the same.
_WHOLE: Final = frozenset('what why how who where hey please'.split())
# `Can you.` and `Would you.` are beginnings, `How are you?` is not.
_BEGINNINGS: Final = re.compile(
    r'^(?:(?:so|and|okay|hi|hello|hey|please) )*(?:can|could|would|will|do|did|have|are) you$|'
    r'\b(?:want you|like you|need you|tell me|show me|give me|my name|going to|able to)$')
_TRAILING_OFF: Final = re.compile(r'(?:\.\.\.|\u2026|[-\u2013\u2014,:;])\s*$')


def sounds_complete(text: str) -> bool:
    """Whether an English speaker who stops after these words has probably finished.

    Args:
        text: the words so far, with the recogniser's punctuation.
    """
    stripped = text.strip()
    if _TRAILING_OFF.search(stripped):
        return False
    words = re.sub(r"[^\w' -]+", ' ', stripped.lower().replace('\u2019', "'")).split()
    if not words:
        return False
    if len(words) == 1:
        return words[0] in _WHOLE or words[0] not in _UNFINISHED
    if words[-1] == 'please':
        return True
    if stripped[-1] == '?' and words[-1] in _END_QUESTIONS and len(words) > 2 \
            and _QUESTION_WORDS & set(words[:-1]):
        return True
    return words[-1] not in _UNFINISHED and not _BEGINNINGS.search(' '.join(words))
