"""The closed word lists of the curriculum, and made-up words for what must not be learned by heart."""

import random

NAMES = [
    "Anna",
    "Bruno",
    "Carla",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Irene",
    "Jonas",
    "Karin",
    "Louis",
    "Maria",
    "Nadia",
    "Oscar",
    "Paula",
    "Quinn",
    "Rosa",
    "Simon",
    "Tara",
    "Ugo",
    "Vera",
    "Walter",
    "Xenia",
    "Yusuf",
    "Zoe",
    "Adam",
    "Bella",
    "Cyrus",
    "Diana",
    "Ethan",
    "Flora",
]
CITIES = [
    "Oslo",
    "Rome",
    "Paris",
    "Lima",
    "Cairo",
    "Delhi",
    "Tokyo",
    "Quito",
    "Vienna",
    "Athens",
    "Berlin",
    "Dublin",
    "Lagos",
    "Madrid",
    "Nairobi",
    "Prague",
    "Riga",
    "Seoul",
    "Tunis",
    "Warsaw",
    "Zagreb",
    "Boston",
    "Denver",
    "Havana",
]
THINGS = [
    "lamp",
    "chair",
    "table",
    "clock",
    "spoon",
    "knife",
    "plate",
    "glass",
    "brush",
    "towel",
    "pillow",
    "mirror",
    "basket",
    "candle",
    "hammer",
    "ladder",
    "bucket",
    "pencil",
    "ruler",
    "stamp",
    "ticket",
    "wallet",
    "button",
    "ribbon",
    "bottle",
    "kettle",
    "carpet",
    "drawer",
    "guitar",
    "violin",
    "drum",
    "piano",
]
ANIMALS = [
    "cat",
    "dog",
    "fox",
    "owl",
    "bear",
    "wolf",
    "goat",
    "duck",
    "swan",
    "crow",
    "lion",
    "tiger",
    "horse",
    "mouse",
    "snake",
    "whale",
]
COLORS = ["red", "blue", "green", "white", "black", "brown", "pink", "gray", "gold", "purple", "orange", "yellow"]
PLACES = [
    "river",
    "forest",
    "garden",
    "market",
    "bridge",
    "tower",
    "station",
    "harbor",
    "valley",
    "island",
    "castle",
    "school",
    "museum",
    "library",
]
PLAIN = [
    "old",
    "new",
    "small",
    "large",
    "quiet",
    "bright",
    "early",
    "late",
    "open",
    "near",
    "far",
    "warm",
    "cold",
    "clean",
    "empty",
    "heavy",
    "light",
    "simple",
    "long",
    "short",
    "soft",
    "strong",
    "round",
    "flat",
    "deep",
    "wide",
    "narrow",
    "fresh",
    "sweet",
    "calm",
]
VERBS = ["sees", "likes", "visits", "paints", "follows", "carries", "finds", "keeps", "leaves", "opens"]

NOUNS = THINGS + ANIMALS + PLACES
WORDS = NOUNS + COLORS + PLAIN

_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def made_up(rng: random.Random, *, syllables: int = 2) -> str:
    """A pronounceable word that means nothing, such as `zumo`."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(syllables))


def code(rng: random.Random) -> str:
    """Four digits, the first not zero."""
    return str(rng.randrange(1000, 10000))


def sentence(rng: random.Random) -> str:
    """Filler with no facts that a question could be about."""
    subject = f"The {rng.choice(PLAIN)} {rng.choice(ANIMALS)}"
    place = f"the {rng.choice(PLAIN)} {rng.choice(PLACES)}"
    match rng.randrange(3):
        case 0:
            return f"{subject} {rng.choice(VERBS)} {place}."
        case 1:
            return f"{subject} {rng.choice(VERBS)} the {rng.choice(COLORS)} {rng.choice(THINGS)} near {place}."
        case _:
            return f"Near {place}, {subject.lower()} is {rng.choice(PLAIN)} and {rng.choice(PLAIN)}."
