"""Build ``bgl/datasets/data/emoji.zip``: emoji by different design teams, one class per emoji.

Fetch the icon sets, each with ``npm pack @iconify-json/NAME@VERSION``:

    npm pack @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/twemoji@1.2.5 \\
        @iconify-json/fluent-emoji@1.2.7 @iconify-json/fluent-emoji-flat@1.2.6 \\
        @iconify-json/fluent-emoji-high-contrast@1.2.6 @iconify-json/fxemoji@1.2.2 \\
        @iconify-json/emojione@1.2.3

and run ``python -m tools.build_emoji FOLDER`` on the folder with the .tgz files (or with one
folder for each, unpacked). It needs ``resvg-py`` and Pillow, and takes about a minute.

Icons are the same emoji if they have the same Unicode codepoints, ignoring variation selectors.
Sets that don't list codepoints take them from an icon or alias of the same name in the sets that
do; fxemoji writes names without hyphens. Skin tones and national flags are left out, and so are
emoji that appear in fewer than six sets. The same input and the same library versions give the
same bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import tarfile
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tools.emoji_groups import group_key, split_groups

VERSIONS = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "fxemoji": "1.2.2",
    "emojione": "1.2.3",
}
LICENCES = {"Apache-2.0", "CC-BY-4.0", "MIT"}  # no share-alike in an MIT package
SIZE = 64
QUALITY = 78
MIN_STYLES = 6
DATA = Path(__file__).resolve().parents[1] / "bgl" / "datasets" / "data"

# fxemoji's names that mean something else in the other sets, with the emoji's name there, or None
# for drawings of something that no other set has, or that are rendered black.
FXEMOJI: dict[str, str | None] = {
    "cat": "cat-face",
    "catside": "cat",
    "dog": "dog-face",
    "dogside": "dog",
    "mouse": "mouse-face",
    "mouseside": "mouse",
    "pig": "pig-face",
    "pigside": "pig",
    "tiger": "tiger-face",
    "tigerside": "tiger",
    "sunglasses": "smiling-face-with-sunglasses",
    "darksunglasses": "sunglasses",
    "keyboard": None,
    "window": None,
    "tramcar": None,
}

SKIN_TONE = re.compile(r"\b1f3f[b-f]\b")
NATIONAL_FLAG = re.compile(r"\b1f1[ef][0-9a-f]\b|\be00[0-9a-f]{2}\b")


@dataclass(frozen=True)
class IconSet:
    """An icon set: its licence note, icons, aliases, and names by codepoint (empty for some)."""

    name: str
    version: str
    info: dict[str, Any]
    icons: dict[str, Any]
    codepoints: dict[str, str]

    def names(self) -> list[str]:
        """List every icon once; aliases only where they flip the icon."""
        aliases = self.icons.get("aliases", {}).items()
        flipped = [name for name, alias in aliases if "hFlip" in alias]
        return [*(self.codepoints or self.icons["icons"]), *flipped]

    def other_names(self) -> dict[str, list[str]]:
        """Return the aliases of each icon, except flipped ones."""
        others: dict[str, list[str]] = defaultdict(list)
        for name, alias in self.icons.get("aliases", {}).items():
            if "hFlip" not in alias:
                others[alias["parent"]].append(name)
        return others

    def svg(self, name: str) -> str:
        """Return the icon as an SVG document with a square view box."""
        alias = self.icons.get("aliases", {}).get(name, {})
        while name not in self.icons["icons"]:
            name = self.icons["aliases"][name]["parent"]
        icon = {**{"left": 0, "top": 0}, **self.icons, **self.icons["icons"][name], **alias}
        left, top, width, height = (icon[key] for key in ("left", "top", "width", "height"))
        body = icon["body"]
        if icon.get("hFlip"):
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        side = max(width, height)
        box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{SIZE}" height="{SIZE}" viewBox="{box}" color="#222222">{body}</svg>'
        )


def read_set(folder: Path, name: str, any_version: bool) -> IconSet:
    """Read a set from its tarball, or from its unpacked folder.

    Raises:
        SystemExit: If it is missing, of another version, or under another licence.
    """
    files = _tarball(folder, name) or _unpacked(folder, name)
    if files is None:
        raise SystemExit(f"No @iconify-json/{name} in {folder}: npm pack it there first")
    package, info, icons, chars = (
        json.loads(files[f"{file}.json"]) for file in ("package", "info", "icons", "chars")
    )
    if package["version"] != VERSIONS[name] and not any_version:
        raise SystemExit(
            f"@iconify-json/{name} is version {package['version']}, not {VERSIONS[name]}: "
            "fetch that one, or pass --any-version for another dataset"
        )
    if info["license"]["spdx"] not in LICENCES:
        raise SystemExit(f"@iconify-json/{name} is under {info['license']['spdx']}")
    codepoints = {icon: _plain(points) for points, icon in chars.items()}
    return IconSet(name, package["version"], info, icons, codepoints)


def _tarball(folder: Path, name: str) -> dict[str, bytes] | None:
    found = sorted(folder.glob(f"iconify-json-{name}-[0-9]*.tgz"))
    if not found:
        return None
    with tarfile.open(found[-1]) as archive:
        return {
            member.name.removeprefix("package/"): file.read()
            for member in archive
            if member.name.endswith(".json") and (file := archive.extractfile(member))
        }


def _unpacked(folder: Path, name: str) -> dict[str, bytes] | None:
    for package in sorted([*folder.glob("*/package.json"), *folder.glob("*/package/package.json")]):
        if json.loads(package.read_bytes())["name"] == f"@iconify-json/{name}":
            return {file.name: file.read_bytes() for file in package.parent.glob("*.json")}
    return None


def _plain(codepoints: str) -> str:
    """Drop variation selectors from codepoints."""
    return "-".join(point for point in codepoints.split("-") if point not in ("fe0e", "fe0f"))


def join(sets: dict[str, IconSet]) -> dict[str, dict[str, str]]:
    """Map the codepoints of every emoji with enough styles to its icon name in each style."""
    known: dict[str, str] = {}
    for icons in sets.values():
        known.update(icons.codepoints)
    for icons in sets.values():
        for name, others in icons.other_names().items():
            if name in icons.codepoints:
                for other in others:
                    known.setdefault(other, icons.codepoints[name])
    squashed = {name.replace("-", ""): points for name, points in reversed(known.items())}
    emoji: dict[str, dict[str, str]] = defaultdict(dict)
    for style, icons in sets.items():
        aliases = icons.other_names()
        for name in icons.names():
            points = icons.codepoints.get(name)
            if points is None and style == "fxemoji":
                points = squashed.get((FXEMOJI.get(name, name) or "").replace("-", ""))
            elif points is None:
                # Names before aliases: "cricket" used to name the game and now names the insect.
                points = next((known[n] for n in (name, *aliases[name]) if n in known), None)
            if points and not SKIN_TONE.search(points) and not NATIONAL_FLAG.search(points):
                emoji[points].setdefault(style, name)
    return {points: styles for points, styles in emoji.items() if len(styles) >= MIN_STYLES}


def render(svg: str) -> bytes:
    """Render a drawing on white as lossy WebP.

    Raises:
        ValueError: If the drawing is blank.
    """
    import resvg_py  # here, so that the rest can be tested without it

    png = resvg_py.svg_to_bytes(
        svg_string=svg, background="#ffffff", width=SIZE, height=SIZE, skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    if image.size != (SIZE, SIZE) or np.asarray(image).std() < 2:
        raise ValueError("the drawing is blank")
    data = io.BytesIO()
    image.save(data, "WEBP", quality=QUALITY, method=6)
    return data.getvalue()


def build(sets: dict[str, IconSet]) -> tuple[dict[str, Any], bytes]:
    """Build the index and the images, those of each class together in the order of the index."""
    emoji = {styles["noto"]: (points, styles) for points, styles in join(sets).items()}
    groups = {name: group_key(name) for name in emoji}
    parts = split_groups(groups)
    classes = []
    blob = bytearray()
    for name in sorted(emoji):
        points, styles = emoji[name]
        images = {}
        for style in (style for style in sets if style in styles):
            try:
                data = render(sets[style].svg(styles[style]))
            except ValueError as error:
                raise SystemExit(f"{style}:{styles[style]}: {error}") from error
            images[style] = len(data)
            blob += data
        classes.append(
            {
                "name": name,
                "codepoints": points,
                "group": groups[name],
                "part": parts[name],
                "images": images,
            }
        )
    return {"size": SIZE, "classes": classes}, bytes(blob)


def write_zip(path: Path, index: dict[str, Any], blob: bytes) -> None:
    """Write both to a temporary file next to ``path`` and rename it when it is complete."""
    temporary = path.with_suffix(".tmp")
    lines = ",\n".join(json.dumps(entry) for entry in index["classes"])
    text = f'{{"size": {index["size"]}, "classes": [\n{lines}\n]}}\n'
    with zipfile.ZipFile(temporary, "w") as archive:
        for name, data, how in (
            ("index.json", text.encode(), zipfile.ZIP_DEFLATED),
            ("images.bin", blob, zipfile.ZIP_STORED),  # WebP does not compress further
        ):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, data, compress_type=how)
    os.replace(temporary, path)


def credits(sets: dict[str, IconSet]) -> str:
    """Return the authors and licences of the sets, as in ``NOTICE``."""
    lines = []
    for icons in sets.values():
        author, licence = icons.info["author"], icons.info["license"]
        lines += [
            f"{icons.info['name']} (style `{icons.name}`)",
            f"  author:  {author['name']}, {author['url']}",
            f"  version: @iconify-json/{icons.name} {icons.version}",
            f"  licence: {licence['spdx']}, {licence['url']}",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Build the data file and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="folder with the icon sets")
    parser.add_argument(
        "--any-version", action="store_true", help="accept other versions of the sets"
    )
    parser.add_argument("--output", type=Path, default=DATA / "emoji.zip")
    args = parser.parse_args()

    sets = {name: read_set(args.folder, name, args.any_version) for name in VERSIONS}
    index, blob = build(sets)
    write_zip(args.output, index, blob)

    print(credits(sets))
    classes, images = Counter[str](), Counter[str]()
    for entry in index["classes"]:
        classes[entry["part"]] += 1
        images[entry["part"]] += len(entry["images"])
    for part in ("train", "val", "test"):
        print(f"{part}: {classes[part]} classes, {images[part]} images")
    print(f"all: {classes.total()} classes, {images.total()} images")
    print(f"{args.output}: {args.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
