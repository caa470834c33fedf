"""World facts as cloze items, from data that installed packages carry: nothing is downloaded.

The sources are `tzdata` (the zone and country tables of the IANA time zone database: cities, countries,
regions), `locale` (languages and where they are spoken), `calendar`, `unicodedata` (the Greek alphabet),
`mimetypes` (what files hold). Items about one subject (a country, a month, a letter) are a cluster, and a
    subject is on one side of the split.
"""

import calendar
import locale
import mimetypes
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import pairwise

from tasks.quality.pack.item import Item, SplitName, draw_split, shuffled_item

CHOICES = 4
Fact = tuple[str, str, str, Sequence[str]]  # subject, context, right, all that could be wrong
REGIONS = {
    "Africa": "Africa",
    "America": "the Americas",
    "Asia": "Asia",
    "Europe": "Europe",
    "Pacific": "Oceania",
}
SHORT_NAMES = {"Britain (UK)": "Britain", "Korea (South)": "South Korea", "Korea (North)": "North Korea"}
WITH_ARTICLE = re.compile(r"^United|^Netherlands|^Philippines|^Bahamas|^Maldives|Islands$|Republic$")
NO_LANGUAGES = (
    "american",
    "bokmal",
    "cextend",
    "rumanian",
    "serbocroatian",
    "slovene",
    "univ",
    "universal",
    "english",
)


def world_fact_items(rng: random.Random) -> Iterator[Item]:
    """Every fact once in each of its templates, with wrong choices drawn by chance."""
    sides: dict[str, SplitName] = {}
    seen: set[str] = set()
    for source in (_cities, _regions, _languages, _calendar, _alphabet, _file_types):
        for number, (subject, context, right, others) in enumerate(source()):
            wrong = sorted({other for other in others if other != right})
            if context in seen or len(wrong) < CHOICES - 1:
                continue
            seen.add(context)
            side = sides.setdefault(subject, draw_split(rng))
            name = f"{source.__name__.strip('_')}-{number:04d}"
            yield shuffled_item(rng, name, subject, side, context, right, rng.sample(wrong, CHOICES - 1))


def _cities() -> Iterator[Fact]:
    countries, zones = _countries(), list(_zones())
    names = [countries[code] for code, _, _ in zones if code in countries]
    for code, _, city in zones:
        if code in countries and not _tells(city, countries[code]):
            country = countries[code]
            yield country, f"{city} is a city in the country of", country, names
            yield country, f"The people who live in {city} are citizens of", country, names
            yield country, f"We flew to {city}, which lies in", country, names


def _regions() -> Iterator[Fact]:
    countries = _countries()
    regions: dict[str, set[str]] = {}
    for code, region, _ in _zones():
        regions.setdefault(code, set()).add(region)
    known = {
        countries[c]: REGIONS[min(r)]
        for c, r in regions.items()
        if c in countries and len(r) == 1 and min(r) in REGIONS
    }
    for country, region in sorted(known.items()):
        yield country, f"{country} is a country in", region, list(REGIONS.values())
        yield country, f"On a map of the world, {country} is in", region, list(REGIONS.values())
        elsewhere = [other for other, there in known.items() if there != region]
        yield country, f"One of the countries in {region} is", country, elsewhere


def _languages() -> Iterator[Fact]:
    countries = _countries()
    spoken: dict[str, str] = {}
    for name, value in sorted(locale.locale_alias.items()):
        code = value.split(".")[0].partition("_")[2]
        if (
            name.isascii()
            and name.isalpha()
            and len(name) > 4
            and name not in NO_LANGUAGES
            and code in countries
        ):
            spoken.setdefault(countries[code], name.capitalize())
    for country, language in sorted(spoken.items()):
        yield country, f"The language that people speak in {country} is", language, list(spoken.values())
        yield country, f"The newspapers in {country} are written in", language, list(spoken.values())
        yield country, f"{language} is the language of the people of", country, list(spoken)
        yield country, f"Someone who speaks {language} often comes from", country, list(spoken)


def _calendar() -> Iterator[Fact]:
    for names, kind in ((list(calendar.month_name)[1:], "month"), (list(calendar.day_name), "day")):
        for at, name in enumerate(names):
            after, before = names[(at + 1) % len(names)], names[at - 1]
            yield name, f"The {kind} that comes after {name} is", after, [n for n in names if n != name]
            yield name, f"The {kind} before {name} is", before, [n for n in names if n != name]
            yield (
                name,
                f"First comes {before}, then {name}, then",
                after,
                [n for n in names if n not in (name, before)],
            )


def _alphabet() -> Iterator[Fact]:
    greek = [
        unicodedata.name(chr(point)).split()[-1].lower() for point in range(0x3B1, 0x3CA) if point != 0x3C2
    ]
    for first, second in pairwise(greek):
        yield (
            first,
            f"In the Greek alphabet, the letter after {first} is",
            second,
            [x for x in greek if x != first],
        )


def _file_types() -> Iterator[Fact]:
    kinds = {"audio": "sound", "image": "pictures", "video": "films", "text": "text"}
    # Built-in table only: a machine's own mime.types must not change the items.
    for ending, kind in sorted(mimetypes.MimeTypes(()).types_map[True].items()):
        if (major := kind.split("/")[0]) in kinds:
            yield ending, f"A file whose name ends in {ending} contains", kinds[major], list(kinds.values())


def _zones() -> Iterator[tuple[str, str, str]]:
    """(country code, region, city) of the zone table, without zones that are not named after a city."""
    for line in (files("tzdata") / "zoneinfo" / "zone.tab").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            code, _, zone = line.split("\t")[:3]
            region, *middle, city = zone.split("/")
            if region in REGIONS and middle in ([], ["Argentina"]):
                yield code, region, city.replace("_", " ")


def _countries() -> dict[str, str]:
    """Country code to a name that reads well in a sentence."""
    names = {}
    for line in (files("tzdata") / "zoneinfo" / "iso3166.tab").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            code, name = line.split("\t")
            name = SHORT_NAMES.get(name, name)
            if name.isascii() and re.fullmatch(r"[A-Za-z ]+", name) and not name.startswith("St "):
                names[code] = f"the {name}" if WITH_ARTICLE.search(name) else name
    return names


def _tells(city: str, country: str) -> bool:
    """Whether the city's name gives the country away."""
    return any(a[:4].lower() == b[:4].lower() for a in city.split() for b in country.split())
