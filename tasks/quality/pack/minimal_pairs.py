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
    for (one, many), (other, others), place in product(words.PEOPLE, words.THINGS, words.PLACES):
        for singular, plural in AUXILIARIES:
            yield f"agree-pp-{singular}", f"The {one} {place} the {others}", singular, plural
            yield f"agree-pp-{plural}", f"The {many} {place} the {other}", plural, singular
    for (one, many), (other, others) in product(words.THINGS, words.PEOPLE):
        for singular, plural in AUXILIARIES:
            yield f"agree-relative-{singular}", f"The {one} that the {others} bought", singular, plural
            yield f"agree-relative-{plural}", f"The {many} that the {other} bought", plural, singular
            yield f"agree-of-{singular}", f"The {one} of the {others}", singular, plural
            yield f"agree-of-{plural}", f"The {many} of the {other}", plural, singular
    for (one, many), (third, plain), (other, others) in product(words.PEOPLE, words.VERBS, words.PEOPLE):
        if one != other:
            yield "agree-verb-near-one", f"The {one} near the {others} often", third, plain
            yield "agree-verb-near-many", f"The {many} near the {other} often", plain, third
            yield "agree-verb-who-one", f"The {one} who helped the {others} always", third, plain
            yield "agree-verb-who-many", f"The {many} who helped the {other} always", plain, third
            yield "agree-verb-neither", f"Neither of the {others} ever", third, plain
            yield "agree-verb-and", f"The {one} and the {other} always", plain, third


def _anaphors() -> Iterator[Pair]:
    """Reflexives and possessives agree with the subject, not with the noun beside them."""
    people = [one for one, _ in words.PEOPLE]
    for man, woman, verb in product(words.MEN, words.WOMEN, ("hurt", "blamed", "saw", "loved", "taught")):
        yield "reflexive-he", f"The {man} {verb}", "himself", "herself"
        yield "reflexive-she", f"The {woman} {verb}", "herself", "himself"
        yield "reflexive-he-beside", f"The {man} beside the {woman} {verb}", "himself", "herself"
        yield "reflexive-she-beside", f"The {woman} beside the {man} {verb}", "herself", "himself"
        yield "reflexive-he-who", f"The {man} who knew the {woman} {verb}", "himself", "herself"
        yield "reflexive-she-who", f"The {woman} who knew the {man} {verb}", "herself", "himself"
    for man, woman, thing in product(
        words.NAMES_OF_MEN, words.NAMES_OF_WOMEN, ("dinner", "work", "a walk", "school")
    ):
        yield "subject-pronoun-he", f"{man} met {woman} after {thing} because", "he", "him"
        yield "subject-pronoun-she", f"{woman} met {man} after {thing} because", "she", "her"
        yield "object-pronoun", f"{man} and {woman} came after {thing} and we saw", "them", "they"
    for (one, many), other, verb in product(words.PEOPLE, people, ("hurt", "blamed", "saw", "helped")):
        if one != other:
            yield "reflexive-they", f"The {many} beside the {other} {verb}", "themselves", "himself"
            yield "reflexive-they-of", f"All the {many} who met the {other} {verb}", "themselves", "herself"


def _noun_phrases() -> Iterator[Pair]:
    """Determiners, numbers and quantities with the number of their noun."""
    openings = ("We looked at", "They talked about", "She paid for", "He found", "I remember")
    singular, plural = (
        ("this", "that", "each", "every", "another"),
        ("these", "those", "several", "many", "both"),
    )
    for start, (one, many) in product(openings, words.THINGS + words.PEOPLE):
        for determiner in singular:
            yield f"determiner-{determiner}", f"{start} {determiner}", one, many
            yield f"determiner-old-{determiner}", f"{start} {determiner} very old", one, many
        for determiner in plural:
            yield f"determiner-{determiner}", f"{start} {determiner}", many, one
            yield f"determiner-old-{determiner}", f"{start} {determiner} very old", many, one
        yield "number-one", f"{start} one more", one, many
        yield "number-two", f"{start} two or three", many, one
        yield "one-of-the", f"{start} one of the", many, one
    for start, mass, (_, many) in product(openings, words.MASS, words.THINGS):
        yield "much-mass", f"{start} too much", mass, many
        yield "fewer-count", f"{start} fewer", many, mass
        yield "amount-mass", f"{start} a small amount of", mass, many
        yield "number-count", f"{start} a large number of", many, mass


def _verb_forms() -> Iterator[Pair]:
    """Tense, participles and plain forms after what governs them."""
    people = [one for one, _ in words.PEOPLE]
    for who, (plain, past, participle) in product(people, words.IRREGULAR):
        yield "perfect-has", f"The {who} has", participle, past
        yield "perfect-had-never", f"The {who} had never", participle, past
        yield "perfect-should", f"The {who} should have", participle, past
        yield "past-yesterday", f"Yesterday the {who} suddenly", past, participle
        yield "past-ago", f"Two years ago the {who}", past, plain
        yield "modal-can", f"The {who} can", plain, past
        yield "modal-will-soon", f"The {who} will soon", plain, past
        yield "question-did", f"When did the {who}", plain, past
        yield "infinitive-want", f"The {who} wanted to", plain, past
        yield "infinitive-too", f"The {who} was too tired to", plain, participle
        yield "causative-make", f"They made the {who}", plain, past
    for (one, many), (third, plain) in product(words.PEOPLE, words.VERBS):
        yield "question-does", f"What does the {one}", plain, third
        yield "question-do", f"Why do the {many}", plain, third
        yield "negation-doesnt", f"The {one} doesn't", plain, third
        yield "modal-must", f"The {one} must", plain, third
        yield "let", f"Let the {one}", plain, third


def _small_words() -> Iterator[Pair]:
    """Articles, comparatives, relative pronouns, polarity, conjunctions."""
    openings = ("She wanted", "He drew", "We saw", "They bought", "I need", "There was", "It was", "Give me")
    for start, vowel, consonant in product(openings, words.VOWEL_WORDS, words.CONSONANT_WORDS):
        yield "article-an", f"{start} an", vowel, consonant
        yield "article-a", f"{start} a", consonant, vowel
    for (one, _), (other, _) in product(words.PEOPLE, words.PEOPLE):
        for plain, comparative in words.ADJECTIVES:
            yield "comparative-than", f"The {one} is {comparative}", "than", "as"
            yield "comparative-as", f"The {one} is as {plain}", "as", "than"
            yield "comparative-much", f"The {one} is much", comparative, plain
            yield "comparative-very", f"The {one} is very", plain, comparative
        if one != other:
            yield "polarity-no", f"No {one} has", "ever", "already"
            yield "conjunction-neither", f"Neither the {one}", "nor", "or"
            yield "conjunction-either", f"Either the {one} or the {other} will", "be", "been"
            yield "conjunction-both", f"Both the {one}", "and", "or"
    for (one, _), (thing, _) in product(words.PEOPLE, words.THINGS):
        yield "relative-who", f"The {one} near the {thing} is someone", "who", "which"
        yield "relative-which", f"The {thing} of the {one} is a thing", "which", "who"
        yield "preposition-depend", f"The {one} depends", "on", "of"
        yield "preposition-interested", f"The {one} is interested", "in", "at"
        yield "preposition-afraid", f"The {one} was afraid", "of", "on"
        yield "passive-by", f"The {thing} was given to the {one}", "by", "than"
