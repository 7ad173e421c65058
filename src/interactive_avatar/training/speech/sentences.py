# SPDX-License-Identifier: Apache-2.0
"""What the training voices say: conversational English, written for this project.

Fixed lines cover assistant replies, questions, statements and phonetic variety; patterns with
slots multiply them. Every word must be in the pronouncing dictionary that aligns the phones;
`sentences` takes a filter for that.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable

_FIXED = """
Hello, it is very nice to meet you.
Hi there, how can I help you today?
Good morning, I hope you slept well.
Good evening, and welcome back.
Goodbye, and take good care of yourself.
See you soon, I will be right here.
Thank you so much, that is very kind.
You are welcome, any time.
I am sorry, I did not catch that.
Could you please say that again?
Sorry about that, let me try once more.
Yes, of course, I would be glad to.
No, I am afraid that is not possible.
I am an avatar, and I live on this screen.
My name is Joe, and I am a talking face.
I can nod, smile, look around, and answer questions.
I am doing well, thank you for asking.
I do not know the answer to that one.
That is a good question, let me think about it.
Let me see what I can find for you.
Just a moment please, I am working on it.
Alright, I am putting on my glasses now.
There we go, how do I look with this hat?
I will take the hat off again.
Sure, I will look to the left.
I am looking up at the ceiling now.
Watch me, I am going to step out for a moment.
I am back, did you miss me?
Would you like me to repeat that?
I can hear you clearly.
Please speak a little louder.
I will be quiet while you think.
Why did the robot cross the road?
Because it was programmed by the chicken.
What do you call a bear with no teeth? A gummy bear.
I would tell you a joke about time travel, but you did not like it.
You look great today, if I may say so.
That made me smile.
Oh wow, I did not expect that at all.
Really? That is wonderful news.
I am so happy for you.
I am sorry to hear about your trouble.
That must have been hard for you.
Please do not worry, we will fix it together.
The museum opens at nine and closes at five.
The elevator is behind you, on the right.
Take the stairs up to the third floor.
Walk straight ahead and turn left at the corner.
The next bus leaves in about twelve minutes.
Your meeting has moved to Thursday afternoon.
It will be sunny with a light breeze.
Bring an umbrella, because it may rain later.
The coffee machine is out of order again.
Would you prefer tea or coffee?
Lunch is served from noon until two.
My favorite color is probably blue.
I have never tasted chocolate, but people seem to love it.
Fresh bread smells better than anything else.
The quick brown fox jumps over the lazy dog.
She sells sea shells by the sea shore.
Peter Piper picked a peck of pickled peppers.
How much wood would a woodchuck chuck?
A big black bug bit a big black bear.
Five fine fishermen found fifty fat fish.
We were away a year ago.
The rainbow is a division of white light into many beautiful colors.
When the sunlight strikes raindrops in the air, they act as a prism.
Please call Stella and ask her to bring these things.
Six spoons of fresh snow peas and five thick slabs of blue cheese.
Move the vat over the hot fire.
The birch canoe slid on the smooth planks.
Glue the sheet to the dark blue background.
It is easy to tell the depth of a well.
These days a chicken leg is a rare dish.
Rice is often served in round bowls.
The juice of lemons makes fine punch.
The box was thrown beside the parked truck.
Four hours of steady work faced us.
A large size in stockings is hard to sell.
The boy was there when the sun rose.
Mama and papa bought a map of Panama.
Bob brought both boxes up the ramp.
Maybe my memory might improve by Monday.
Puppies jump up and bump into people.
Baby bumblebees buzz by the balcony.
Pam and Ben made plum jam for Bob.
Move over, my mother moved from Vermont.
Very few of the five vans have a full view.
Fifty of the leaves fell off before fall.
Who threw the blue shoe through the roof?
You should choose the new blue suit soon.
Two cool rooms with a view of the moon.
Joe showed the old boat to those we know.
Go slow, do not open the window.
Our brown cow found a way out of town.
The boy enjoyed the noise of his toys.
She teaches each of us to read and speak.
Please see that these green leaves are clean.
My eyes like the bright light of the night sky.
They may take a train to Spain today.
Ask Jack to pack the black hat in the bag.
Father parked the car far from the barn.
All the tall trees fall in the storm.
Look, the good book is full of wood.
Her first nurse learned the words in church.
The bird heard the early worm stir.
Choose a chair and watch the church choir.
Judge Jones enjoys ginger and orange jam.
She wishes to wash the dishes and brush the shoes.
The treasure is usually a pleasure to measure.
Both of them think that the thing is worth nothing.
This is the other brother of my father.
Will you walk with us while we wait?
Young lions yell at yellow yards.
Lily will really love all the little yellow lilies.
Ring the long gong and sing along.
Can Nancy and Ken run ten miles in one morning?
Take the cake and kick the can.
Did Dad decide to do the deed today?
Get the big dog a good bag.
He has a habit of hiding behind the house.
Simple machines amaze people who observe them.
Robots perceive, reason, and move.
A camera sees the room, and a microphone hears it.
My face is drawn twenty five times every second.
Battery level is at eighty percent.
Charging will take roughly forty minutes.
I moved the appointment to half past three.
The number you need is four one five, six two eight.
Please wait behind the yellow line.
The package should arrive before Friday.
Mind the gap between the train and the platform.
You may now remove your badge.
Open the window, it is warm in here.
Close the door behind you, please.
I prefer to listen before I speak.
May I introduce my colleague Maria?
Pleased to meet you, my friend.
Perhaps we could begin with a simple example.
Push the button twice, then release it.
Put the blue cup beside the purple plate.
Bring me the empty box from the basement.
Maybe it was a problem with the pump.
The baby is sleeping, please be quiet.
Help yourself to some soup and bread.
It is impossible to be bored with this job.
Every problem is an opportunity to improve.
My brother became a famous piano player.
The map shows a path above the river.
Believe me, the view from above is superb.
We have five available rooms for the weekend.
The film festival is very popular in February.
I forgot to feed the fish before we left.
Over half of the visitors come from far away.
Water boils at one hundred degrees.
The moon moves around the earth in about a month.
Plants need water, light, and air.
Whales are mammals, and they breathe air.
An octopus has three hearts and blue blood.
Honey never goes bad if you keep it closed.
Light from the sun takes eight minutes to reach us.
Bananas grow upward, toward the sky.
Paper was invented in China a long time ago.
The human body has about two hundred bones.
Some turtles can breathe through their skin.
A group of owls is called a parliament.
I think therefore I am, or so they say.
Excuse me, may I have your attention please?
Well, what shall we talk about next?
Tell me more about your work.
How was your weekend? Did you rest a bit?
What kind of music do you enjoy?
Which movie did you watch last night?
Where did you grow up?
When would you like to begin?
Who is coming to the party tonight?
Why is the sky blue?
How far is it from here to the station?
Are you ready to go?
Is there anything else I can do for you?
Can you hear me now?
Do you want me to look at you?
Shall I put the glasses on or off?
Was that what you wanted?
Have you ever visited Portugal?
Did anyone leave a message for me?
Oh no, that is terrible.
Ouch, that must hurt.
Bravo, you did it!
Amazing, I could not have done better.
Perfect, thank you.
Okay.
Yes.
No.
Maybe.
Sure.
Hello.
Goodbye.
Of course.
No problem.
I see.
Absolutely.
Please wait.
One moment.
Good idea.
Not at all.
Me too.
Very well.
You bet.
Hmm, let me think.
Oh, I see what you mean.
Well, that depends on the weather.
Um, I am not quite sure.
Wow, what a beautiful view!
"""

_NAMES = ('Anna', 'Bob', 'Maria', 'Peter', 'Sophie', 'Michael', 'Emma', 'Paul', 'Olivia', 'David',
          'Rebecca', 'Thomas', 'Julia', 'Ben', 'Victoria', 'Frank', 'Helen', 'William', 'Zoe',
          'George', 'Phoebe', 'Joseph', 'Amy', 'Brian', 'Fiona', 'Matthew')
_PLACES = ('library', 'kitchen', 'museum', 'laboratory', 'office', 'garden', 'workshop', 'airport',
           'pharmacy', 'restaurant', 'theater', 'hospital', 'meeting room', 'parking garage',
           'reception desk', 'main entrance', 'bookshop', 'post office', 'swimming pool', 'bakery')
_THINGS = ('umbrella', 'package', 'book', 'map', 'blue jacket', 'phone', 'cup of coffee',
           'warm blanket', 'paper bag', 'small box', 'purple pen', 'fresh apple',
           'bottle of water', 'pair of gloves', 'music box', 'movie ticket', 'white shirt',
           'shopping basket', 'pumpkin pie', 'toy robot', 'silver spoon', 'wooden chair',
           'vegetable soup')
_DAYS = ('Monday', 'Tuesday', 'Wednesday', 'Thursday', 'Friday', 'Saturday', 'Sunday', 'tomorrow',
         'next week', 'this evening', 'in February', 'in April', 'in August', 'in November')
_NUMBERS = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten',
            'eleven', 'twelve', 'thirteen', 'fifteen', 'twenty', 'thirty one', 'forty two',
            'fifty five', 'sixty seven', 'seventy', 'eighty six', 'ninety nine', 'one hundred',
            'five thousand')
_ADJECTIVES = ('wonderful', 'simple', 'beautiful', 'expensive', 'peaceful', 'funny', 'important',
               'awful', 'charming', 'impressive', 'familiar', 'strange', 'valuable', 'noisy',
               'comfortable', 'helpful', 'possible', 'rather boring', 'very old', 'brave')
_TOPICS = ('the weather', 'your family', 'modern robots', 'big animals', 'outer space',
           'classical music', 'old movies', 'healthy food', 'public transport', 'my job',
           'football', 'computer vision', 'the human voice', 'philosophy', 'volcanoes',
           'bumblebees', 'photography', 'mathematics', 'jazz', 'chocolate')
_VERBS = ('open', 'find', 'borrow', 'move', 'wash', 'measure', 'buy', 'carry', 'choose', 'fix',
          'push', 'show you', 'remember', 'bring', 'wrap', 'save')

_PATTERNS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ('Nice to meet you, {}. I hope you are having a {} day.', (_NAMES, _ADJECTIVES)),
    ('{} will meet you at the {} {}.', (_NAMES, _PLACES, _DAYS)),
    ('You can find the {} right next to the {}.', (_PLACES, _PLACES)),
    ('Did {} remember to bring the {}?', (_NAMES, _THINGS)),
    ('I believe the {} costs about {} dollars.', (_THINGS, _NUMBERS)),
    ('There are {} people waiting at the {}.', (_NUMBERS, _PLACES)),
    ('Would you like to talk about {} or about {}?', (_TOPICS, _TOPICS)),
    ('In my opinion, {} can be {}.', (_TOPICS, _ADJECTIVES)),
    ('Please {} the {} before {} arrives.', (_VERBS, _THINGS, _NAMES)),
    ('What a {} {} you have there, {}.', (_ADJECTIVES, _THINGS, _NAMES)),
    ('The {} opens again {}, at {}.', (_PLACES, _DAYS, _NUMBERS)),
    ('{} plus {} makes a bigger number.', (_NUMBERS, _NUMBERS)),
    ('Sorry {}, I cannot {} the {} for you.', (_NAMES, _VERBS, _THINGS)),
    ('How {} is the way from the {} to the {}?', (_ADJECTIVES, _PLACES, _PLACES)),
    ('My friend {} knows everything about {}.', (_NAMES, _TOPICS)),
    ('We have {} of them left, plus a {}.', (_NUMBERS, _THINGS)),
    ('Well, {}, it was {} to hear about {}.', (_NAMES, _ADJECTIVES, _TOPICS)),
    ('Maybe {} we could visit the {} with {}.', (_DAYS, _PLACES, _NAMES)),
    ('I put the {} on the table in the {}.', (_THINGS, _PLACES)),
    ('If it is {}, we should {} another {}.', (_ADJECTIVES, _VERBS, _THINGS)),
    ('Yes, {}, the answer is {}.', (_NAMES, _NUMBERS)),
    ('Have you read the book about {} by {}?', (_TOPICS, _NAMES)),
    ('Above all, be {} and keep an open mind about {}.', (_ADJECTIVES, _TOPICS)),
    ('Room {} is on floor {}, beside the {}.', (_NUMBERS, _NUMBERS, _PLACES)),
)


def is_test_sentence(text: str) -> bool:
    """True for the tenth of all sentences, chosen by a hash of the text, never trained on."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], 'big') % 10 == 9


def words(text: str) -> list[str]:
    """The words of a sentence as the pronouncing dictionary spells them."""
    kept = ''.join(letter if letter.isalpha() or letter == "'" else ' ' for letter in text.lower())
    return kept.split()


def sentences(count: int, seed: int, known: Callable[[str], bool] = bool) -> list[str]:
    """Distinct sentences in a shuffled order fixed by the seed.

    Args:
        count: how many; all fixed lines are included if they fit.
        seed: fixes which pattern fillings are taken and the order.
        known: tells whether a word can be aligned; sentences with another word are left out.

    Raises:
        ValueError: if the patterns do not hold as many.
    """
    rng = random.Random(seed)
    fixed = [line for line in _FIXED.strip().splitlines() if all(map(known, words(line)))]
    chosen = dict.fromkeys(fixed[:count])
    pools = [list(itertools.product(*slots)) for _, slots in _PATTERNS]
    for pool in pools:
        rng.shuffle(pool)
    for turn in range(max(map(len, pools))):
        for (pattern, _), pool in zip(_PATTERNS, pools, strict=True):
            if len(chosen) >= count:
                break
            if turn < len(pool):
                text = pattern.format(*pool[turn])
                text = text[0].upper() + text[1:]
                if len(set(pool[turn])) == len(pool[turn]) and all(map(known, words(text))):
                    chosen[text] = None
    if len(chosen) < count:
        raise ValueError(f'only {len(chosen)} distinct sentences exist, {count} were asked for')
    result = list(chosen)
    rng.shuffle(result)
    return result
