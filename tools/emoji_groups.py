"""Group emoji that are variants of one another and so belong in the same part of the dataset."""

from __future__ import annotations

import random
import re
from collections import defaultdict

TRAIN_CLASSES = 300
SEED = 0


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PERSON = _words(
    """
    man men mans mens woman women womans womens person people boy girl prince princess
    """
)
VARIANT = _words(
    """
    red orange yellow green blue purple black white large medium small old incoming
    oncoming open closed soft button face japanese slightly
    """
)
DETAIL = _words(
    """
    with without on behind over at in and not done arrival departure
    """
)
FAMILIES = [
    (re.compile(pattern), key)
    for pattern, key in (
        (r".*-(oclock|thirty)|.*clock|stopwatch|watch", "clock"),
        (r"keycap-.*", "keycap"),
        (r"old-(man|woman)", "person"),
        (r".*-medal", "medal"),
        (r".*\bmoon\b(?!-viewing).*", "moon"),
        (r"(.*-)?hearts?(-.*)?(?<!-eyes)", "heart"),
        (
            r"(.*-)?(circle|square|triangle|diamond)(-button|-pointed-\w+|-with-a-dot)?",
            "geometric-shape",
        ),
        (r"(up|down|left|right|back|end|on|soon|top)(-\w+)*-arrow(-.*)?", "arrow"),
        (r".*mailbox.*", "mailbox"),
        (r"(.*-)?flags?(?!-in).*", "flag"),
        (r".*index-pointing.*", "index-pointing"),
        (r".*fist", "fist"),
        (r"thumbs-.*", "thumbs"),
        (r"raised-hand|raised-back-of-hand|hand-with-fingers-splayed|vulcan-salute", "raised-hand"),
        (r"magnifying-glass.*", "magnifying-glass"),
        (r"(a|b|ab|o)-button.*", "blood-type"),
        (r"japanese-.*-button", "japanese-button"),
        (r"input-.*", "input"),
        (r"(bright|dim)-button", "brightness"),
        (
            r"(fast-\w+|play|play-or-pause|pause|stop|record|eject|reverse|upwards|downwards"
            r"|last-track|next-track|repeat|repeat-single|shuffle-tracks)-button",
            "media-button",
        ),
        (r"speaker-.*|muted-speaker", "speaker"),
        (r"globe-.*", "globe"),
        (r".*(speech|thought|anger)-(balloon|bubble)", "bubble"),
        (r".*-no-evil-monkey", "no-evil-monkey"),
        (r"(un)?locked.*", "lock"),
        (r"busts?-in-silhouette", "bust"),
        (r".*chick", "chick"),
        (r"(.*-)?mountain|mount-fuji", "mountain"),
        (r"(.*-)?star|star-.*", "star"),
        (r"tram(-car)?", "tram"),
        (r"(high-speed|bullet)-train", "bullet-train"),
        (r"(fe)?male-sign", "gender-sign"),
        (r".*-banknote", "banknote"),
        (r"plus|minus|multiply|divide", "arithmetic"),
        (r"(.*-)?(question|exclamation)(-question)?-mark", "question-exclamation-mark"),
        (r"(.*-)?camel", "camel"),
        (r"(.*-)?beer-mugs?", "beer-mug"),
        (r".*calendar", "calendar"),
        (r"dvd|.*-disk", "disk"),
        (r".*paperclips?", "paperclip"),
        (r"(.*-)?whale", "whale"),
        (r"(.*-)?tickets?", "ticket"),
        (r"mobile-phone.*|vibration-mode", "mobile-phone"),
        (r"musical-notes?", "musical-note"),
        (r"houses?(-.*)?|derelict-house", "house"),
        (r"(open-|closed-|\w+-)?books?", "book"),
        (r"eyes?(-.*)?", "eye"),
        (r"chart-.*", "chart"),
        (r"(.*-)?envelope(-.*)?|e-mail|love-letter", "envelope"),
        (r".*traffic-light", "traffic-light"),
        (r"mrs-claus|santa-claus", "claus"),
        (r"(smiling|angry)-face-with-horns", "imp"),
        (r"(mens-room|womens-room|restroom|water-closet)", "restroom"),
        (r"(\w+-)?frowning-face.*", "frowning-face"),
        (r"(loudly-)?crying-face", "crying-face"),
        (r"(grinning|beaming)-.*face.*", "grinning-face"),
        (r"(angry|enraged)-face", "angry-face"),
        (r"(.*-)?cat(-.*)?", "cat"),
        (r"face-.*", "face"),
    )
]


def group_key(name: str) -> str:
    """Return a key that variants of one emoji share, so that a split can keep them together.

    A family of look-alikes (clock faces, hearts, keycaps, arrows, ...) has one key. From other
    names, words for sex, age, colour, size and state are removed, and everything after a word like
    "with" or "behind". The rest is the key, or "person" if nothing is left.

    >>> group_key("woman-running"), group_key("two-thirty"), group_key("house-with-garden")
    ('running', 'clock', 'house')
    """
    for pattern, key in FAMILIES:
        if pattern.fullmatch(name):
            return key
    words = [word for word in name.split("-") if word not in PERSON]
    while words and words[0] in DETAIL:  # women-with-bunny-ears: bunny-ears
        words = words[1:]
    cut = next((i for i, word in enumerate(words) if word in DETAIL), len(words))
    key = "-".join(word for word in words[:cut] if word not in VARIANT)
    return key or "person"


def split_groups(classes: dict[str, str]) -> dict[str, str]:
    """Assign every class to a part by its group: 300 to train, half to test, the rest to val."""
    members: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        members[classes[name]].append(name)
    room = {"train": TRAIN_CLASSES, "test": len(classes) // 2, "val": len(classes)}
    parts: dict[str, str] = {}
    for group in random.Random(SEED).sample(sorted(members), len(members)):
        part = next(part for part in room if len(members[group]) <= room[part])
        room[part] -= len(members[group])
        parts.update(dict.fromkeys(members[group], part))
    return parts
