"""Words of the minimal pairs: short and frequent, so that most are one token in any vocabulary."""


def _forms(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(entry.split("/")) for entry in text.split())


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# singular, plural
PEOPLE = _forms(
    "boy/boys girl/girls doctor/doctors teacher/teachers student/students farmer/farmers driver/drivers "
    "lawyer/lawyers friend/friends artist/artists nurse/nurses soldier/soldiers child/children man/men "
    "woman/women king/kings writer/writers worker/workers"
)
MEN = _words("boy man king father brother uncle son prince gentleman husband grandfather monk")
WOMEN = _words("girl woman queen mother sister aunt daughter princess lady wife grandmother nun")
THINGS = _forms(
    "book/books car/cars house/houses table/tables letter/letters picture/pictures chair/chairs door/doors "
    "bottle/bottles tree/trees box/boxes key/keys boat/boats phone/phones window/windows road/roads "
    "bridge/bridges garden/gardens city/cities knife/knives"
)
MASS = _words(
    "water milk sand money music rice bread sugar salt oil snow furniture advice information homework traffic"
)
# third person, plain form
VERBS = _forms(
    "likes/like knows/know wants/want needs/need sees/see hears/hear helps/help finds/find makes/make "
    "takes/take sings/sing works/work lives/live runs/run speaks/speak plays/play"
)
# plain form, past tense, participle, all different
IRREGULAR = _forms(
    "go/went/gone take/took/taken see/saw/seen write/wrote/written break/broke/broken eat/ate/eaten "
    "speak/spoke/spoken choose/chose/chosen drive/drove/driven give/gave/given know/knew/known "
    "fall/fell/fallen begin/began/begun drink/drank/drunk sing/sang/sung swim/swam/swum "
    "forget/forgot/forgotten steal/stole/stolen wear/wore/worn do/did/done ride/rode/ridden "
    "rise/rose/risen show/showed/shown draw/drew/drawn "
)
NAMES_OF_MEN = _words("John David Peter James Robert Paul George Henry")
NAMES_OF_WOMEN = _words("Mary Anna Susan Linda Sarah Emma Laura Alice")
PLACES = ("near", "behind", "beside", "in front of")
VOWEL_WORDS = _words("apple orange egg engine island office umbrella elephant idea answer airport")
CONSONANT_WORDS = _words("book car house table dog letter bridge picture garden river key")
# plain form, comparative
ADJECTIVES = _forms(
    "tall/taller old/older fast/faster small/smaller strong/stronger rich/richer young/younger cheap/cheaper "
    "cold/colder loud/louder"
)
