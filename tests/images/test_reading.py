"""Reading image files of every mode, one by one and in batches."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bgl.datasets import ImageDataset
from bgl.images import BrokenImageError, read_image
from bgl.images.converting import as_image
from bgl.images.reading import printable


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_modes_are_read_as_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (6, 4), (255, 0, 0))
    clear = Image.new("RGBA", (6, 4), (0, 0, 255, 0))
    palette = Image.new("P", (6, 4), 0)
    palette.putpalette([0, 255, 0, 0, 0, 0])
    holes = Image.new("P", (6, 4), 1)
    holes.putpalette([0, 255, 0, 0, 0, 0])
    deep = Image.fromarray(np.full((4, 6), 100 * 256, dtype=np.uint16))
    cases = {
        save(red, tmp_path / "rgb.png"): (255, 0, 0),
        save(Image.new("L", (6, 4), 90), tmp_path / "grey.jpg"): (90, 90, 90),
        save(Image.new("1", (6, 4), 1), tmp_path / "bits.png"): (255, 255, 255),
        save(Image.new("LA", (6, 4), (0, 0)), tmp_path / "la.png"): (255, 255, 255),
        save(clear, tmp_path / "rgba.png"): (255, 255, 255),
        save(Image.new("RGBA", (6, 4), (0, 0, 0, 128)), tmp_path / "half.png"): (127, 127, 127),
        save(palette, tmp_path / "palette.png"): (0, 255, 0),
        save(holes, tmp_path / "holes.png", transparency=1): (255, 255, 255),
        save(deep, tmp_path / "deep.png"): (100, 100, 100),
        save(red.convert("CMYK"), tmp_path / "cmyk.jpg", quality=100): (255, 0, 0),
        save(red, tmp_path / "rgb.webp", lossless=True): (255, 0, 0),
    }
    for path, colour in cases.items():
        image = read_image(path)
        assert image.dtype == torch.uint8, path
        assert image.shape == (3, 4, 6), path
        distance = image.int() - torch.tensor(colour)[:, None, None]
        assert distance.abs().max() <= 2, path


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_camera_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3), np.full((16, 16), 40, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"png": {}, "jpg": {"quality": 100}, "webp": {"lossless": True}}[suffix]
    path = save(Image.fromarray(pixels), tmp_path / f"x.{suffix}", exif=exif, **options)
    upright = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: pixels[::-1].T,
        7: pixels[::-1, ::-1].T,
        8: pixels[:, ::-1].T,
    }.get(orientation, pixels)
    found = read_image(path).numpy().astype(int)
    assert found.shape == (3, *upright.shape)
    assert np.abs(found - upright).max() <= 2


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A block of EXIF; each entry is a tag, a type, a count and four bytes."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + b"\0" * 4


UPSIDE_DOWN = (0x0112, 3, 1, b"\x03\0\0\0")
DAMAGED_EXIF = {
    "prefix twice": b"Exif\0\0" + exif_block(UPSIDE_DOWN),
    "empty": b"Exif\0\0",
    "no header": b"Exif\0\0garbage garbage",
    "half a header": b"Exif\0\0II*\0",
    "far away": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "cut off": exif_block(UPSIDE_DOWN)[:16],
    "text for a number": exif_block((0x0112, 2, 2, b"6\0\0\0")),
    "wrong type of another tag": exif_block(UPSIDE_DOWN, (0x9286, 7, 4, b"\1\2\3\4")),
    "three values": exif_block((0x0112, 3, 2, b"\x03\0\x06\0")),
}


@pytest.mark.parametrize("exif", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_leaves_the_pixels(tmp_path: Path, suffix: str, exif: bytes) -> None:
    noise = Image.effect_noise((24, 16), 80).convert("RGB")
    plain = read_image(save(noise, tmp_path / f"plain.{suffix}"))
    found = read_image(save(noise, tmp_path / f"x.{suffix}", exif=exif))
    assert torch.equal(found, plain) or torch.equal(found, plain.flip(1, 2))


def png_chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", b"key\0text", crc=1),
        png_chunk(b"zTXt", b"key\0\7garbage"),
        png_chunk(b"iTXt", b"key\0\1\0\0\0" + zlib.compress(bytes(1 << 21))),
        png_chunk(b"iCCP", b"profile\0\7garbage"),
        png_chunk(b"gAMA", b""),
        png_chunk(b"pHYs", b"\0"),
        png_chunk(b"cHRM", b"\0\1"),
        png_chunk(b"acTL", b""),
        png_chunk(b"eXIf", b"garbage"),
    ],
    ids=lambda chunk: chunk[4:8].decode(),
)
@pytest.mark.parametrize("place", [33, -12], ids=["before the pixels", "behind them"])
def test_damaged_metadata_of_png_leave_the_pixels(tmp_path: Path, chunk: bytes, place: int) -> None:
    path = tmp_path / "x.png"
    noise = Image.effect_noise((24, 16), 80)
    content = save(noise.convert("P"), path, transparency=3).read_bytes()
    plain = read_image(path)
    path.write_bytes(content[:place] + chunk + content[place:])
    assert torch.equal(read_image(path), plain)
    assert torch.equal(as_image(path.read_bytes()), plain)


@pytest.mark.parametrize("min_side", [None, 20, 50])
def test_bytes_are_decoded_as_the_file(tmp_path: Path, min_side: int | None) -> None:
    path = save(Image.effect_noise((200, 160), 80).convert("RGB"), tmp_path / "x.jpg")
    found = as_image(path.read_bytes(), min_side)
    assert torch.equal(found, read_image(path, min_side))
    assert (min(found.shape[1:]) < 160) == (min_side is not None)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("marker", [b"\xe0JFIF\0", b"\xe2ICC_PROFILE\0", b"\xeeAdobe"])
def test_damaged_metadata_of_jpeg_leave_the_pixels(
    tmp_path: Path, mode: str, marker: bytes
) -> None:
    path = tmp_path / "x.jpg"
    content = save(Image.effect_noise((24, 16), 80).convert(mode), path).read_bytes()
    plain = read_image(path)
    segment = b"\xff" + marker[:1] + struct.pack(">H", len(marker) + 1) + marker[1:]
    path.write_bytes(content[:2] + segment + content[2:])
    assert torch.equal(read_image(path), plain)


@pytest.mark.parametrize("suffix", ["png", "tif", "big-endian.tif", "ppm"])
def test_grey_values_of_16_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    path = tmp_path / f"x.{suffix}"
    if suffix == "ppm":
        path.write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
    elif suffix == "big-endian.tif":
        save(Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes()), path)
    else:
        save(Image.fromarray(values), path)
    expected = (values >> 8).astype(np.uint8)
    assert (read_image(path).numpy() == expected).all()


@pytest.mark.parametrize(
    ("kind", "colour", "key", "expected"),
    [(0, [90 * 257], [1000], [90] * 3), (2, [0x4000, 0x5000, 0x6000], [0x1234] * 3, [64, 80, 96])],
    ids=["grey", "colour"],
)
def test_a_transparent_value_of_16_bits_is_white(
    tmp_path: Path, kind: int, colour: list[int], key: list[int], expected: list[int]
) -> None:
    """Two pixels, the second of the transparent value; older Pillows do not write such files."""
    channels = len(key)
    row = b"\0" + struct.pack(f">{2 * channels}H", *colour, *key)
    (tmp_path / "key.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, kind, 0, 0, 0))
        + png_chunk(b"tRNS", struct.pack(f">{channels}H", *key))
        + png_chunk(b"IDAT", zlib.compress(row))
        + png_chunk(b"IEND", b"")
    )
    assert read_image(tmp_path / "key.png")[:, 0].T.tolist() == [expected, [255] * 3]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_values_of_unknown_range_are_refused(tmp_path: Path, dtype: type) -> None:
    path = save(Image.fromarray(np.full((4, 4), 70000, dtype=dtype)), tmp_path / "deep.tif")
    with pytest.raises(BrokenImageError, match=r"deep.tif: .*mode [IF]\); save the image with 8"):
        read_image(path)


def test_an_image_beyond_pillows_limit_says_how_to_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(Image.new("1", (40, 40)), tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(BrokenImageError, match="MAX_IMAGE_PIXELS = None"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(path).shape == (3, 40, 40)


def test_a_phones_formats_are_read_or_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ".avif" in Image.registered_extensions():
        path = save(Image.new("RGB", (16, 8), (250, 250, 250)), tmp_path / "x.avif")
        assert read_image(path).float().mean() > 240
    monkeypatch.setattr(Image, "registered_extensions", dict)
    for suffix in ("heic", "heif", "avif"):
        (tmp_path / f"y.{suffix}").write_bytes(b"\0\0\0\x18ftypnone\0\0\0\0mif1")
        with pytest.raises(BrokenImageError, match=r"pip install 'bgl\[heic\]'"):
            read_image(tmp_path / f"y.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_broken_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    path = save(noise, tmp_path / f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BrokenImageError, match=f"cut.{suffix}") as caught:
        ImageDataset([path], torch.tensor([0]), ["x"])[0]
    assert isinstance(caught.value, ValueError)
    assert caught.value.path == path
    # A DataLoader's worker sends its error to the main process as a pickle.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    for name, reason in (("empty.jpg", "Unidentified"), ("missing.jpg", "it does not exist")):
        with pytest.raises(BrokenImageError, match=f"{name}: {reason}"):
            read_image(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(BrokenImageError, match=f"{name}: it is a folder, a pipe"):
            read_image(tmp_path / name)


def test_names_are_shown_without_what_a_terminal_would_obey(tmp_path: Path) -> None:
    assert printable("caf\xe9 \u65e5\u672c \U0001f600.png") == "caf\xe9 \u65e5\u672c \U0001f600.png"
    assert printable("a\x1b[31m\x07\x9b\n\udce9.png") == "a\\x1b[31m\\x07\\x9b\\x0a\ufffd.png"
    with pytest.raises(BrokenImageError) as caught:
        read_image(tmp_path / "\x1b]0;title\x07.png")
    assert str(caught.value).isprintable()


def test_a_heic_image_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra heic")
    image = read_image(save(Image.new("RGB", (64, 48), (250, 250, 250)), tmp_path / "x.heic"))
    assert image.shape == (3, 48, 64)
    assert image.float().mean() > 240
