"""216 short requests in three domains of two intents, made of their parts, for runs of seconds without any download."""

import numpy as np

from clbench.config import DataConfig
from clbench.data.images import SourceData
from clbench.data.location import verified
from clbench.data.text import note_of_cut, text_set
from clbench.registry import SOURCES

OPENINGS = ("please", "i want to", "can you", "how do i", "today we", "let us")

REQUESTS = {
    "kitchen": {"cook": "c cook boil fry bake roast grill", "clean": "w wash scrub rinse wipe dry polish"},
    "travel": {"ride": "r take catch board miss book find", "stay": "h rent leave lock share paint see"},
    "money": {"pay": "p owe send pay lend wire give", "save": "s keep save store hold hide guard"},
}
"""Of every intent: the letter that is its answer, and six verbs."""

OBJECTS = {
    "kitchen": ("the rice", "the fish", "the pan", "an egg", "the plates", "two pots"),
    "travel": ("the bus", "the room", "a train", "a house", "the ferry", "the flat"),
    "money": ("ten euros", "the rent", "a coin", "my wages", "the cash", "some pounds"),
}


@SOURCES.register("small_requests")
def small_requests(config: DataConfig) -> SourceData:
    """216 requests such as "can you wash the pan:", of six intents, whose answers are single letters; a quarter are for test.

    An opening, a verb of the intent and an object of the domain; each verb meets each opening once. The verb alone tells the
    intent, so that bytes have to be put together, and a test text's verb has been seen.
    """
    names = [name for intents in REQUESTS.values() for name in intents]
    found: dict[bool, tuple[list[str], list[int]]] = {True: ([], []), False: ([], [])}
    answers = []
    for domain, intents in REQUESTS.items():
        for name, words in intents.items():
            answer, *verbs = words.split()
            answers.append(answer)
            for v, verb in enumerate(verbs):
                for o, opening in enumerate(OPENINGS):
                    texts, labels = found[(v + o) % 4 == 3]
                    texts.append(f"{opening} {verb} {OBJECTS[domain][(v + 2 * o) % 6]}:")
                    labels.append(names.index(name))
    train, test = (text_set(*found[is_test], config) for is_test in (False, True))
    superclass = np.repeat(np.arange(len(REQUESTS)), 2)
    note = note_of_cut(train, test)
    data = SourceData(train, test, names, (), (), superclass=superclass, note=note, answers=tuple(answers))
    return verified("small_requests", data, "clbench itself")
