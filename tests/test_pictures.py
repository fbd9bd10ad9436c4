"""Pictures of every kind, each with its right value; the same in files, shards, tables and folders with masks."""
import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from utils.cli import UserError
from utils.data import concepts, datasets, pictures

# A pixel's levels in 16 bits: the ends, those that cut at 255 would make white, and some between.
LEVELS = np.array([[0, 200, 255, 300, 20000, 32896], [40000, 50000, 60000, 65000, 65400, 65535]], np.uint16)
GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6  # kinds of PNG


def png16(values, kind, clear=None):
    """A PNG of 16 bits, [rows, columns] or [rows, columns, channels]; Pillow writes none but grey ones."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    transparent = b"" if clear is None else chunk(b"tRNS", struct.pack(">H", clear))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + transparent + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def saved(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data, reading="seen"):
    found = pictures.read(io.BytesIO(data), reading)
    assert found.mode == "RGB"
    return np.asarray(found).astype(int)


def grey(values):
    return np.repeat(np.asarray(values)[..., None], 3, axis=2)


@pytest.fixture
def photo():
    """A picture of no symmetry, 60 pixels wide and 40 high."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def tiff16(levels):
    return saved(Image.fromarray(levels), "TIFF")


def pgm16(levels):
    return b"P5\n%d %d\n65535\n" % levels.shape[::-1] + levels.astype(">u2").tobytes()


@pytest.mark.parametrize("reading", ["seen", "published"])
@pytest.mark.parametrize("write", [lambda levels: png16(levels, GREY), tiff16, pgm16])
def test_grey_of_16_bits_is_scaled_not_cut_off(write, reading):
    np.testing.assert_allclose(read(write(LEVELS), reading), grey(LEVELS / 257), atol=0.5)


@pytest.mark.parametrize("reading", ["seen", "published"])
def test_a_dark_pgm_of_16_bits_stays_dark(reading):
    assert read(pgm16(LEVELS // 4), reading).max() == 64


@pytest.mark.parametrize("reading", ["seen", "published"])
def test_colours_of_16_bits_are_scaled(reading):
    values = np.stack([LEVELS, LEVELS[::-1], LEVELS[:, ::-1]], axis=2)
    np.testing.assert_allclose(read(png16(values, COLOUR), reading), values / 257, atol=1)


@pytest.mark.parametrize("kind", [GREY_ALPHA, COLOUR_ALPHA])
def test_alpha_of_16_bits_is_laid_on_white(kind):
    channels = 1 if kind == GREY_ALPHA else 3
    alpha = LEVELS[:, ::-1]
    values = np.stack([LEVELS] * channels + [alpha], axis=2)
    share = grey(alpha) / 65535
    np.testing.assert_allclose(read(png16(values, kind)), share * grey(LEVELS) / 257 + (1 - share) * 255, atol=2)
    np.testing.assert_allclose(read(png16(values, kind), "published"), grey(LEVELS) / 257, atol=1)


def test_a_transparent_level_of_16_bits_is_white():
    expected = np.where(grey(LEVELS) == 300, 255, grey(LEVELS) / 257)
    np.testing.assert_allclose(read(png16(LEVELS, GREY, clear=300)), expected, atol=0.5)
    np.testing.assert_allclose(read(png16(LEVELS, GREY, clear=300), "published"), grey(LEVELS) / 257, atol=0.5)


@pytest.mark.parametrize("reading", ["seen", "published"])
@pytest.mark.parametrize("values", [np.linspace(-3, 5, 600, dtype=np.float32), np.arange(600, dtype=np.int32) * 1000])
def test_floats_and_integers_of_32_bits_are_stretched(values, reading):
    found = read(saved(Image.fromarray(values.reshape(20, 30)), "TIFF"), reading)
    np.testing.assert_allclose(found, grey(np.linspace(0, 255, 600).reshape(20, 30)), atol=0.51)
    assert np.ptp(read(saved(Image.fromarray(np.full((20, 30), 7, values.dtype)), "TIFF"), reading)) == 0


@pytest.mark.parametrize("orientation, stored", [
    (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180), (4, Image.Transpose.FLIP_TOP_BOTTOM),
    (5, Image.Transpose.TRANSPOSE), (6, Image.Transpose.ROTATE_90), (7, Image.Transpose.TRANSVERSE),
    (8, Image.Transpose.ROTATE_270)])
@pytest.mark.parametrize("kind, mode", [
    ("PNG", "RGB"), ("PNG", "I;16"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("JPEG", "L")])
def test_a_picture_on_its_side_is_turned_upright_where_it_is_seen(photo, tmp_path, orientation, stored, kind, mode):
    if mode == "I;16":
        upright = Image.fromarray(np.random.default_rng(2).integers(0, 2 ** 16, (40, 60), dtype=np.uint16))
    else:
        upright = photo.resize((6, 4)).resize((48, 32)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}[kind]
    lying = upright.transpose(stored)
    data = saved(lying, kind, exif=exif, **options)
    tolerance = 3 if kind == "JPEG" else 0  # it rounds a turned block differently
    np.testing.assert_allclose(read(data), read(saved(upright, kind, **options)), atol=tolerance)
    published = upright if kind == "TIFF" else lying  # Pillow itself turns TIFFs
    np.testing.assert_allclose(read(data, "published"), read(saved(published, kind, **options)), atol=0)
    (tmp_path / "x").write_bytes(data)
    assert pictures.upright_size(tmp_path / "x") == upright.size


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparent_parts_are_white_where_they_are_seen(mode):
    values = np.full((20, 30, 2), 80, np.uint8)
    values[:, :15, 1], values[:, 15:, 1] = 0, 255  # grey, transparent on the left and opaque on the right
    picture = Image.fromarray(values, "LA")
    if mode == "P":
        picture = Image.fromarray(values[..., 1] // 255, "P")
        picture.putpalette([80, 80, 80, 80, 80, 80])
        data = saved(picture, "GIF", transparency=0)
    else:
        data = saved(picture.convert(mode), "PNG") if mode != "PA" else saved(
            picture.convert("RGBA"), "WEBP", lossless=True, exact=True)
    assert (read(data)[:, :15] == 255).all()
    assert (read(data)[:, 15:] == 80).all()
    assert (read(data, "published") == 80).all()


def test_a_palette_with_alpha_of_each_colour_is_laid_on_white():
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    data = saved(picture, "PNG", transparency=bytes([0, 128, 255]))
    np.testing.assert_allclose(read(data), [[[255, 255, 255], [127, 227, 127], [0, 0, 200]]], atol=1)
    assert np.array_equal(pictures.to_rgb(picture.convert("PA"), "published"), picture.convert("RGB"))


def test_half_transparent_parts_are_mixed_with_white():
    data = saved(Image.new("RGBA", (4, 4), (200, 0, 0, 128)), "PNG")
    np.testing.assert_allclose(read(data)[0, 0], (227, 127, 127), atol=1)
    assert read(data, "published")[0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("reading", ["seen", "published"])
@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks_become_the_colours_they_print(kind, reading):
    inks = [(0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0)]
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)]
    for ink, colour in zip(inks, colours):
        np.testing.assert_allclose(read(saved(Image.new("CMYK", (8, 8), ink), kind), reading)[4, 4], colour, atol=3)


@pytest.mark.parametrize("reading", ["seen", "published"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_of_an_animation_the_first_frame_counts(photo, kind, reading):
    first = photo if kind != "GIF" else photo.quantize(256)
    others = [first.transpose(Image.Transpose.ROTATE_180), first.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]
    data = saved(first, kind, save_all=True, append_images=others, **({"lossless": True} if kind == "WEBP" else {}))
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.array_equal(read(data, reading), np.asarray(first.convert("RGB")))


@pytest.mark.parametrize("reading", ["seen", "published"])
@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
def test_strips_of_one_pixel_keep_their_pixels(size, reading):
    strip = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    assert np.array_equal(read(saved(Image.fromarray(strip), "PNG"), reading), strip)


@pytest.mark.parametrize("save, tolerance", [
    (lambda photo: saved(photo, "PNG"), 0), (lambda photo: saved(photo, "BMP"), 0),
    (lambda photo: saved(photo, "PPM"), 0),
    (lambda photo: saved(photo.quantize(256), "GIF"), 20), (lambda photo: saved(photo.convert("CMYK"), "TIFF"), 2),
    (lambda photo: saved(photo.convert("RGBA"), "PNG"), 0)])
@pytest.mark.parametrize("reading", ["seen", "published"])
def test_formats_show_the_same_picture(photo, save, tolerance, reading):
    assert np.abs(read(save(photo), reading) - np.asarray(photo, int)).mean() <= tolerance


def test_black_and_white_and_grey_are_read():
    for mode in ("1", "L"):
        assert (read(saved(Image.new(mode, (5, 4), 255), "PNG")) == 255).all()


def huge():
    """A PNG whose head says that it has 40,000 x 40,000 pixels."""
    data = bytearray(saved(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", 40000, 40000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("reading", ["seen", "published"])
def test_huge_pictures_are_refused(tmp_path, reading):
    with pytest.raises(Image.DecompressionBombError):
        read(huge(), reading)
    (tmp_path / "x.png").write_bytes(huge())
    with pytest.raises(UserError, match=r"x.png: cannot be read \(Image size \(1600000000 pixels\) exceeds limit"):
        pictures.read_option(str(tmp_path / "x.png"))


def test_a_picture_given_by_option_is_seen_and_no_strip(tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGBA", (40, 10), (0, 0, 0, 0)).save(path)
    assert (np.asarray(pictures.read_option(str(path))) == 255).all()
    Image.new("RGB", (41, 10)).save(path)
    with pytest.raises(UserError, match="x.png: has 41 x 10 pixels; crop it until it is at most 4 times as long"):
        pictures.read_option(str(path))
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"x.png: cannot be read \(in no format of Pillow's\)"):
        pictures.read_option(str(path))
    with pytest.raises(UserError, match="nothing.png: no such file"):
        pictures.read_option(str(tmp_path / "nothing.png"))


@pytest.fixture
def odd():
    """Pictures that are read in two ways, as files, with what is seen of them and what published figures were made
    of."""
    rng = np.random.default_rng(4)
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    clear = np.concatenate([rng.integers(0, 255, (20, 30, 3)), np.zeros((20, 30, 1))], axis=2).astype(np.uint8)
    levels = rng.integers(0, 2 ** 16, (20, 30), dtype=np.uint16)
    scaled = (grey(levels) / 257).round()
    return [(saved(lying, "PNG", exif=turned), np.asarray(upright), np.asarray(lying)),
            (saved(Image.fromarray(clear), "PNG"), np.full((20, 30, 3), 255), clear[..., :3]),
            (png16(levels, GREY), scaled, scaled)]


def same(images, expected):
    for i, wanted in enumerate(expected):
        found = np.asarray(images.read(i)[0])
        assert np.array_equal(found, wanted), i


def write_folder(root, odd):
    (root / "a").mkdir(parents=True)
    for i, (data, *_) in enumerate(odd):
        (root / "a" / f"{i}.png").write_bytes(data)


def test_folders_of_ones_own_are_seen(tmp_path, odd):
    write_folder(tmp_path, odd)
    same(datasets.load_images("imagefolder", str(tmp_path)), [seen for _, seen, _ in odd])


def test_shards_are_seen(tmp_path, odd):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i, (data, *_) in enumerate(odd):
            for name, content in ((f"{i}.png", data), (f"{i}.cls", b"0")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    same(datasets.load_images("webdataset", str(tmp_path)), [seen for _, seen, _ in odd])


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("streaming", [False, True])
def test_tables_are_seen(tmp_path, odd, embedded, streaming):
    import datasets as hub

    write_folder(tmp_path / "files", odd)
    columns = hub.Features({"image": hub.Image(), "label": hub.ClassLabel(names=["a"])})
    held = [{"bytes": data, "path": None} if embedded else {"bytes": None, "path": f"{tmp_path}/files/a/{i}.png"}
            for i, (data, *_) in enumerate(odd)]
    rows = hub.Dataset.from_dict({"image": held, "label": [0] * len(odd)}, columns)
    if streaming:
        (tmp_path / "table").mkdir()
        rows.to_parquet(tmp_path / "table" / "test-00000.parquet")
    else:
        rows.save_to_disk(tmp_path / "table")
    images = datasets.load_images("huggingface", str(tmp_path / "table"), split="test", streaming=streaming)
    same(images, [seen for _, seen, _ in odd])


def test_folders_with_masks_are_seen(tmp_path, odd):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i, (data, seen, _) in enumerate(odd):
        (tmp_path / "images" / f"{i}.png").write_bytes(data)
        Image.new("L", seen.shape[1::-1], 255).save(tmp_path / "masks" / f"{i}.png")
    images = datasets.load_masks("masks_folder", str(tmp_path))
    assert images.names == ["0", "1", "2"]
    same(images, [seen for _, seen, _ in odd])


def test_published_data_sets_are_read_as_published_but_for_16_bits(tmp_path, odd):
    write_folder(tmp_path, odd)
    lines = ["img_filename,y,split,place", *(f"a/{i}.png,0,2,0" for i in range(len(odd)))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    same(datasets.load_images("binary_waterbirds", str(tmp_path)), [published for *_, published in odd])


def test_concepts_are_read_as_their_data_sets_are(tmp_path, odd):
    write_folder(tmp_path, odd)
    same(concepts.load_concepts("imagefolder", str(tmp_path), "train", None, 9), [seen for _, seen, _ in odd])


def test_one_s_own_is_seen_and_all_else_published():
    seen = {name for name, known in datasets.REGISTRY.items() if known.reading == "seen"}
    assert seen == {"imagefolder", "webdataset", "huggingface", "masks_folder"}
