# SPDX-License-Identifier: Apache-2.0
"""The words of prompts: per world and per action the phrasings that `prompts` puts together.

A row's index is the variant; `prompts.HELD_OUT_VARIANTS` says which are never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# --- subjects: (who, how worn things are attached) ------------------------------------------
SUBJECTS: Final = (
    ('a person', 'wearing'), ('the person', 'with'), ('someone', 'in'), ('the person', 'wearing'),
    ('a person', 'with'), ('the avatar', 'wearing'), ('this person', 'with'),
    ('the character', 'in'), ('somebody', 'wearing'), ('the avatar', 'with'), ('a person', 'in'),
    ('the character', 'with'), ('the speaker', 'wearing'), ('a human', 'with'),
)
WORN: Final = {(): '', ('glasses',): 'glasses', ('hat',): 'a hat',
               ('glasses', 'hat'): 'glasses and a hat'}

# --- stable prompts -------------------------------------------------------------------------
# Per variant: gaze user, gaze elsewhere (with {d}), expressions, listening. All end up in
# '<subject> <gaze><expression><listening>'.
STABLE: Final[tuple[tuple[str, str, tuple[str, str, str, str], str], ...]] = (
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
TO: Final = {'left': 'to the left', 'right': 'to the right', 'up': 'up', 'down': 'down'}
TO_ALT: Final = {'left': 'leftward', 'right': 'rightward', 'up': 'upward', 'down': 'downward'}

AWAY: Final = (
    'an empty view: the person{worn} has left', 'nobody is in view, the person{worn} is away',
    'the person{worn} is out of view', 'only the background, the person{worn} has gone',
    'the scene is empty after the person{worn} left', 'the avatar{worn} is off screen',
    'no one is here, the person{worn} stepped out', 'an empty picture without the person{worn}',
    'the person{worn} stays outside the frame', 'the character{worn} is not visible',
    'the person{worn} remains out of sight', 'empty background, the avatar{worn} is gone',
    'the person{worn} is absent from the picture', 'a vacant scene, the character{worn} is away',
)

# --- action prompts: what follows the subject, one per variant -------------------------------
ACTS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
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
MORE_SUBJECTS: Final = (
    ('a man', 'wearing'), ('a woman', 'with'), ('the host', 'in'), ('the actor', 'wearing'),
    ('a guest', 'with'), ('a player', 'wearing'), ('one person', 'in'), ('the woman', 'with'),
    ('the man', 'wearing'), ('the assistant', 'in'), ('a gentleman', 'with'),
    ('a lady', 'wearing'),
)
MORE_ACTS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
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

# Phrasings of actions that are never trained on, like `HELD_OUT_VARIANTS` of the others, and that
# were written by somebody who had seen none of those: how a prompt in anybody's words fares. The
# second is a slot's value.
FRESH_SUBJECTS: Final = (
    ('a young woman', 'wearing'), ('our host', 'with'), ('the figure', 'in'),
)
FRESH_ACTS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ('nod', ''): (
        'bobs their head up and down for yes', 'dips the chin in quiet assent',
        'gives a quick yes with the head'),
    ('shake_head', ''): (
        'wiggles their head side to side for no',
        'wordlessly refuses, head swinging from side to side', 'says no with just the head'),
    ('smile', ''): (
        'raises the corners of the mouth in a friendly expression',
        'lets a warm grin spread across the face', 'cracks a grin'),
    ('frown', ''): (
        'lowers the brows and turns down the mouth corners',
        'scowls, displeasure darkening the face', 'looks kinda annoyed'),
    ('look_surprised', ''): (
        'makes a wow face with big round eyes', 'gapes in silent amazement',
        'looks totally shocked'),
    ('look', 'left'): (
        'directs the gaze to the left edge of the frame', 'lets the eyes drift off to the left',
        'turns left'),
    ('look', 'right'): (
        'peeks over at the right side', 'directs the gaze to the right edge of the frame',
        'casts a long glance off to the right'),
    ('look', 'up'): (
        'stares up at the sky', 'directs the gaze at the top of the frame',
        'glances at the ceiling'),
    ('look', 'down'): (
        'stares at their shoes', 'lowers the gaze to the ground', 'glances at the floor'),
    ('look', 'user'): (
        'returns the gaze to the camera', "meets the viewer's eyes once more",
        'faces front again'),
    ('tilt_head', ''): (
        'tips their head over like a curious puppy', 'rolls the head sideways by fifteen degrees',
        'lets one ear sink toward the shoulder'),
    ('raise_eyebrows', ''): (
        'makes their eyebrows jump up', 'moves both brows upward, rest of the face unchanged',
        'arches both brows, otherwise unmoved'),
    ('think', ''): (
        'tries really hard to figure something out',
        'enters a pondering state as if solving a problem', 'sinks into deep contemplation'),
    ('lean_closer', ''): (
        'comes really close to the screen',
        'moves the upper body forward to reduce the camera distance',
        'bends forward as if to share a secret'),
    ('wear', 'glasses'): (
        'puts their specs on', 'slides a pair of spectacles onto the nose',
        'pops on some eyeglasses'),
    ('wear', 'hat'): (
        'adds headwear to the top of the head', 'sets a fedora upon the brow', 'pops on a cap'),
    ('remove', 'glasses'): (
        'removes the eyewear from the face', 'slips the spectacles from the nose',
        'ditches the eyeglasses'),
    ('remove', 'hat'): (
        'takes the cap off their head', 'removes the headwear, leaving the head bare',
        'doffs the cap with a flourish'),
    ('step_out', ''): (
        'goes away so nobody is there anymore', 'exits the frame until nobody is visible',
        'slips away, leaving the scene empty'),
    ('come_back', ''): (
        're-enters the empty frame', 'reappears where a moment ago nobody was',
        'returns to the shot'),
    ('talk', 'neutral'): (
        'says something in a normal voice', 'speaks in an even tone without emotion',
        'speaks in a calm, measured voice'),
    ('talk', 'happy'): (
        'tells a story in a really cheerful voice', 'speaks with a joyful tone and expression',
        'chatters away, delight in every word'),
    ('talk', 'sad'): (
        'speaks with a sorrowful tone and expression', 'speaks in a voice heavy with regret',
        'apologizes sadly'),
    ('talk', 'surprised'): (
        'says wow in a super amazed voice', 'stammers out words of utter disbelief',
        'exclaims in amazement'),
    ('listen', ''): (
        'pays attention to every word of mine', 'attends silently while the user speaks',
        "hangs on the viewer's every word"),
}
