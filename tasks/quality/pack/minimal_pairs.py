"""Grammatical minimal pairs: one prefix, two words, one of which is English.

In the spirit of BLiMP, with our own templates and words. The pair is decided at one word after a shared
prefix ("The keys to the cabinet" - "are", "is"), BLiMP's one-prefix method: one pass over the prefix answers
both. A template with one choice of construction and verb is a cluster.
"""

import random
from collections.abc import Iterator
from itertools import product

from tasks.quality.pack import lexicon as words
from tasks.quality.pack.item import Item, draw_split, shuffled_item

Pair = tuple[str, str, str, str]  # cluster, context, right word, wrong word
ITEMS_A_TEMPLATE = 60
AUXILIARIES = (("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"))


def minimal_pair_items(rng: random.Random) -> Iterator[Item]:
    """At most `ITEMS_A_TEMPLATE` items of each template, each pair once."""
    templates: dict[str, set[Pair]] = {}
    for source in (_agreement, _anaphors, _noun_phrases, _verb_forms, _small_words):
        for pair in source():
            templates.setdefault(pair[0], set()).add(pair)
    for template, pairs in sorted(templates.items()):
        drawn = rng.sample(sorted(pairs), min(ITEMS_A_TEMPLATE, len(pairs)))
        for number, (_, context, right, wrong) in enumerate(drawn):
            yield shuffled_item(
                rng, f"{template}-{number:03d}", template, draw_split(rng), context, right, [wrong]
            )


def _agreement() -> Iterator[Pair]:
    """Subject and verb, with nouns of the other number in between."""
    openings = (
        ("of", "The {thing} of the {people}"),
        ("near", "The {person} near the {things}"),
        ("near-behind", "The {person} near the {things} behind the {people}"),
        ("bought", "The {thing} that the {people} near the {things2} bought"),
        ("liked", "The {person} who liked the {things}"),
        ("called", "The {person} that the {people} called"),
        ("like", "The {person}, like the {people},"),
        ("not", "The {thing}, not the {things2},"),
    )
    for (person, others), (thing, things), (thing2, things2) in product(
        words.PEOPLE, words.THINGS, words.THINGS[:6]
    ):
        one = {
            "person": person,
            "people": others,
            "thing": thing,
            "things": things,
            "thing2": thing2,
            "things2": things2,
        }
        many = {"person": others, "people": person, "thing": things, "things": thing, "things2": thing2}
        if thing != thing2:
            for (name, opening), (singular, plural) in product(openings, AUXILIARIES):
                yield f"agree-{name}-{singular}", opening.format(**one), singular, plural
                yield f"agree-{name}-{plural}", opening.format(**many), plural, singular
    for (one_, many_), (third, plain), (other, others) in product(words.PEOPLE, words.VERBS, words.PEOPLE):
        if one_ != other:
            yield "verb-near-one", f"The {one_} near the {others} often", third, plain
            yield "verb-near-many", f"The {many_} near the {other} often", plain, third
            yield "verb-who-one", f"The {one_} who helped the {others} always", third, plain
            yield "verb-who-many", f"The {many_} who helped the {other} always", plain, third
            yield "verb-of-one", f"The {one_} of the old {others} sometimes", third, plain
            yield "verb-of-many", f"The {many_} of the old {other} sometimes", plain, third
            yield "verb-neither", f"Neither of the {others} ever", third, plain
            yield "verb-each", f"Each of the {others} always", third, plain
            yield "verb-and", f"The {one_} and the {other} always", plain, third


def _anaphors() -> Iterator[Pair]:
    """Reflexives agree with the subject, not with the noun beside them; pronouns have a case."""
    for man, woman, verb in product(words.MEN, words.WOMEN, ("hurt", "blamed", "saw", "loved", "taught")):
        for he, she, sex, self, other in (
            (man, woman, "he", "himself", "herself"),
            (woman, man, "she", "herself", "himself"),
        ):
            yield f"reflexive-{sex}", f"The {he} {verb}", self, other
            yield f"reflexive-{sex}-beside", f"The {he} beside the {she} {verb}", self, other
            yield f"reflexive-{sex}-who", f"The {he} who knew the {she} {verb}", self, other
            yield f"reflexive-{sex}-not", f"The {he}, not the {she}, {verb}", self, other
            yield f"reflexive-{sex}-says", f"The {she} said that the {he} {verb}", self, other
            yield f"reflexive-{sex}-of", f"The {he} of the {she} {verb}", self, other
    for (one, many), (other, _), verb in product(
        words.PEOPLE, words.PEOPLE, ("hurt", "blamed", "saw", "helped", "taught")
    ):
        if one != other:
            yield "reflexive-they", f"The {many} beside the {other} {verb}", "themselves", "himself"
            yield "reflexive-they-who", f"The {many} who met the {other} {verb}", "themselves", "himself"
            yield "reflexive-they-and", f"The {one} and the {other} {verb}", "themselves", "himself"
    for man, (_, others), verb in product(words.MEN, words.PEOPLE, ("hurt", "blamed", "saw", "taught")):
        yield "reflexive-one", f"The {man} beside the {others} {verb}", "himself", "themselves"
        yield "reflexive-one-who", f"The {man} who met the {others} {verb}", "himself", "themselves"
    for man, woman, thing in product(
        words.NAMES_OF_MEN, words.NAMES_OF_WOMEN, ("dinner", "work", "a walk", "school")
    ):
        yield "pronoun-he", f"{man} met {woman} after {thing} because", "he", "him"
        yield "pronoun-between", f"Between {man} and", "me", "I"
        yield "pronoun-with-and", f"After {thing} she went home with {man} and", "me", "I"


def _noun_phrases() -> Iterator[Pair]:
    """Determiners, numbers and quantities with the number of their noun."""
    openings = ("We looked at", "They talked about", "She paid for", "He found", "I remember")
    singular, plural = ("this", "that", "each", "every"), ("these", "those", "many", "both")
    for start, (one, many) in product(openings, words.THINGS + words.PEOPLE):
        for determiner in singular:
            yield f"determiner-{determiner}", f"{start} {determiner}", one, many
        for determiner in plural:
            yield f"determiner-{determiner}", f"{start} {determiner}", many, one
        yield "number-two", f"{start} two or three", many, one
        yield "number-one", f"{start} more than one", one, many
    for start, mass, (_, many) in product(openings, words.MASS, words.THINGS):
        yield "fewer-count", f"{start} fewer", many, mass
        yield "amount-mass", f"{start} a small amount of", mass, many
        yield "number-count", f"{start} a large number of", many, mass


def _verb_forms() -> Iterator[Pair]:
    """Tense, participles and plain forms after what governs them."""
    for (who, others), (plain, past, participle) in product(words.PEOPLE, words.IRREGULAR):
        yield "perfect-has", f"The {who} has", participle, past
        yield "perfect-far", f"The {who} has, like the other {others}, sometimes", participle, past
        yield "past-yesterday", f"Yesterday the {who} suddenly", past, participle
        yield "modal-far", f"The {who} could, like the other {others}, easily", plain, past
        yield "infinitive-far", f"The {who} wanted the {others} to quickly", plain, past
        yield "causative-make", f"They made the {who} and the others", plain, past
    for (one, many), (third, plain) in product(words.PEOPLE, words.VERBS):
        yield "question-do", f"Why do the {many}", plain, third
        yield "question-does-who", f"What does the {one} who always comes late", plain, third
        yield "let", f"Let the {one}", plain, third


def _small_words() -> Iterator[Pair]:
    """Articles, comparatives, conjunctions."""
    openings = ("She wanted", "He drew", "We saw", "They bought", "I need", "There was", "It was", "Give me")
    for start, vowel, consonant in product(openings, words.VOWEL_WORDS, words.CONSONANT_WORDS):
        yield "article-an", f"{start} an", vowel, consonant
        yield "article-a", f"{start} a", consonant, vowel
    for (one, many), (other, _), (plain, comparative) in product(
        words.PEOPLE, words.PEOPLE, words.ADJECTIVES
    ):
        if one != other:
            yield "comparative-than", f"The {one} looks {comparative} to the {other}", "than", "as"
            yield "comparative-as", f"The {many} are not as {plain} or as clever", "as", "than"
            yield "conjunction-neither", f"Neither the {one} near the {other}", "nor", "or"
            yield "conjunction-both", f"Both the {plain} {one} beside the {other}", "and", "or"
