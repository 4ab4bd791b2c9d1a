"""Decoding any image to RGB, and the evaluation transform against three reference packages."""

import io
import json

import numpy as np
import pytest
import torch
from oracles import import_timm, import_torchvision, import_transformers
from PIL import Image

from layerwise.errors import DataError, OptionError
from layerwise.kinds.image import processor as image_module
from layerwise.kinds.image.processor import ImageProcessor, centre_crop, decode

INTERPOLATIONS = ["nearest", "bilinear", "bicubic", "lanczos"]


def photo(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Smooth structure and noise, so that every resampling filter leaves its own mark."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w]
    waves = [127 + 90 * np.sin(x / (7 + c)) * np.cos(y / (5 + c)) for c in range(3)]
    return (np.stack(waves, -1) + rng.normal(0, 15, (h, w, 3))).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


# ---- decoding ------------------------------------------------------------------------------------


def test_path_bytes_and_array_are_the_same_image(tmp_path):
    pixels = photo(20, 30)
    path = tmp_path / "é 图.png"
    Image.fromarray(pixels).save(path)
    for raw in (path, str(path), path.read_bytes(), pixels):
        assert np.array_equal(decode(raw), pixels)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_arrays_of_every_shape(shape):
    values = np.full(shape, 200, np.uint8)
    if shape == (5, 4, 4):
        values[..., 3] = 0  # transparent: white shows
    pixels = decode(values)
    assert pixels.shape == (5, 4, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (255 if shape == (5, 4, 4) else 200)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # white top left
    stored = {  # how a camera held that way stores it
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(decode(raw), upright)


def test_garbled_exif_is_no_orientation():
    pixels = photo(8, 16)
    for exif in (b"Exif\0\0MM\0*garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"):
        assert decode(encoded(Image.fromarray(pixels), "JPEG", exif=exif)).shape == (8, 16, 3)


def test_transparency_lies_over_white():
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert decode(encoded(half, "PNG"))[0, 0].tolist() == [255, 127, 127]
    grey = Image.new("LA", (4, 4), (0, 0))
    assert (decode(encoded(grey, "PNG")) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    assert decode(encoded(palette, "PNG"))[0, 0].tolist() == [200, 100, 50]
    assert (decode(encoded(palette, "PNG", transparency=1)) == 255).all()
    colour_key = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (decode(encoded(colour_key, "PNG", transparency=(1, 2, 3))) == 255).all()


def test_cmyk_binary_and_16_bit():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red ink: magenta and yellow
    red = decode(encoded(cmyk, "JPEG", quality=95))[0, 0].astype(int)
    assert red[0] > 200 > 60 > max(red[1:])
    assert (decode(encoded(Image.new("1", (4, 4), 1), "PNG")) == 255).all()
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(levels), "PNG"))[0, :, 0].tolist() == [
        0,
        0,
        1,
        1,
        128,
        255,
    ]
    assert decode(encoded(Image.fromarray(levels), "TIFF"))[0, -1, 0] == 255


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    raw = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert decode(raw)[4, 4].argmax() == 0


def test_reduced_jpeg_keeps_the_short_side():
    raw = encoded(Image.fromarray(photo(800, 1200)), "JPEG")
    assert decode(raw, short_side=190).shape == (200, 300, 3)
    assert decode(raw).shape == (800, 1200, 3)


# ---- bad input -----------------------------------------------------------------------------------


def bad_files(folder):
    whole = encoded(Image.fromarray(photo(64, 64)), "JPEG")
    png = encoded(Image.fromarray(photo(64, 64)), "PNG")
    floats = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    wide_range = encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF")
    contents = {
        "empty.jpg": (b"", "empty (0 bytes)"),
        "words.jpg": (b"this is no picture at all", "not an image"),
        "cut.jpg": (whole[: len(whole) // 2], "damaged or truncated"),
        "cut.png": (png[: len(png) // 2], "damaged or truncated"),
        "header.png": (png[:30], "not an image"),
        "float.tiff": (floats, "no fixed white"),
        "range.tiff": (wide_range, "no fixed white"),
    }
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name, reason
    yield folder / "absent.png", "cannot be opened"
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", "cannot be opened"


def test_each_bad_file_is_named_with_its_reason(tmp_path):
    for path, reason in bad_files(tmp_path):
        with pytest.raises(DataError) as e:
            decode(path)
        assert path.name in str(e.value)
        assert reason in str(e.value)


@pytest.mark.parametrize(("w", "h"), [(10_000, 9_000), (20_000, 20_000)])
def test_bombs_are_refused_before_they_are_decoded(tmp_path, w, h):
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded(Image.new("1", (w, h)), "PNG"))
    with pytest.raises(DataError, match=r"bomb\.png.*Scale|bomb\.png.*scale it down") as e:
        decode(path)
    assert f"{w * h:,}" in str(e.value) or f"{w * h}" in str(e.value)


def test_a_thread_of_an_image_does_not_become_a_bomb():
    sliver = np.zeros((2, 60_000, 3), np.uint8)
    with pytest.raises(DataError, match=r"row 3 \(60000 x 2, resized\).*limit"):
        ImageProcessor(resize=256).pixels(sliver, "row 3")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((4, 4), np.float32), "uint8"),
        (np.zeros((3, 4, 5), np.uint8), "channels last"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((2, 3, 4, 3), np.uint8), "shape"),
    ],
)
def test_bad_arrays(values, reason):
    with pytest.raises(DataError, match="row 17") as e:
        decode(values, "row 17")
    assert reason in str(e.value)


def test_the_row_is_named_when_a_batch_is_processed():
    good = photo(8, 8)
    with pytest.raises(DataError, match="image 1"):
        ImageProcessor((8, 8), 8)([good, b"nothing"])
    with pytest.raises(DataError, match=r"b\.png"):
        ImageProcessor((8, 8), 8)([good, b"nothing"], ["a.png", "b.png"])


# ---- the transform -------------------------------------------------------------------------------

GEOMETRIES = [  # size, resize
    ((224, 224), 256),
    ((225, 227), 256),
    ((64, 64), 64),
    ((32, 48), (40, 50)),
    ((96, 96), (96, 96)),
    ((120, 90), None),
    ((300, 300), 150),  # larger than the image: padded
]


@pytest.mark.oracle
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("size", "resize"), GEOMETRIES)
def test_pixels_are_torchvisions(size, resize, interpolation):
    import_torchvision()
    from torchvision import transforms as T

    mode = T.InterpolationMode[interpolation.upper()]
    steps = [] if resize is None else [T.Resize(resize, mode)]
    theirs = T.Compose([*steps, T.CenterCrop(size)])
    processor = ImageProcessor(size, resize, interpolation)
    for seed, (h, w) in enumerate([(150, 211), (211, 150), (333, 217), (100, 100)]):
        pixels = photo(h, w, seed)
        assert np.array_equal(processor.pixels(pixels), theirs(Image.fromarray(pixels)))
    whole = T.Compose([theirs, T.ToTensor(), T.Normalize(processor.mean, processor.std)])
    expected = whole(Image.fromarray(pixels))[None]
    torch.testing.assert_close(processor([pixels]), expected, atol=2e-6, rtol=0)


@pytest.mark.oracle
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
def test_pixels_are_timms(crop_pct):
    import_timm()
    from timm.data import create_transform

    theirs = create_transform((3, 160, 160), crop_pct=crop_pct, interpolation="bicubic")
    processor = ImageProcessor.from_crop_pct(160, crop_pct, interpolation="bicubic")
    for h, w in ((200, 301), (301, 200), (97, 120)):
        pixels = photo(h, w)
        expected = theirs(Image.fromarray(pixels))[None]
        torch.testing.assert_close(processor([pixels]), expected, atol=2e-6, rtol=0)


@pytest.mark.oracle
@pytest.mark.data
def test_real_photographs_are_torchvisions(shared_data):
    import_torchvision()
    from torchvision import transforms as T

    theirs = T.Compose([T.Resize(256), T.CenterCrop(224)])
    processor = ImageProcessor()
    for path in sorted((shared_data / "hymenoptera/val").glob("*/*.jpg"))[::8]:
        with Image.open(path) as image:
            expected = np.asarray(theirs(image.convert("RGB")))
        assert np.array_equal(processor.pixels(path), expected)


def test_centre_crop_halves_go_to_the_even_number():
    column = np.repeat(np.arange(9, dtype=np.uint8)[:, None, None], 3, 2)
    assert centre_crop(column, (4, 1))[:, 0, 0].tolist() == [2, 3, 4, 5]  # 2.5 -> 2
    assert centre_crop(column, (2, 1))[:, 0, 0].tolist() == [4, 5]  # 3.5 -> 4
    assert centre_crop(column, (2, 1), down=True)[:, 0, 0].tolist() == [3, 4]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalise(order, dtype):
    processor = ImageProcessor(
        (40, 40), 40, mean=(0.1, 0.2, 0.3), std=(1, 2, 3), channel_order=order
    )
    pixels = torch.randint(0, 256, (70, 40, 40, 3), dtype=torch.uint8)  # more than one chunk
    got = processor.normalise(pixels, dtype)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    source = pixels if order == "RGB" else pixels.flip(-1)
    mean, std = torch.tensor(processor.mean), torch.tensor(processor.std)
    expected = ((source / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)
    assert torch.equal(processor.normalise(pixels.float(), dtype), got)


def test_normalise_is_the_same_for_any_thread_count():
    pixels = torch.randint(0, 256, (9, 224, 224, 3), dtype=torch.uint8)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ImageProcessor().normalise(pixels))
    torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


def test_no_images_is_an_empty_batch():
    assert ImageProcessor()([]).shape == (0, 3, 224, 224)


@pytest.mark.parametrize(
    "fields",
    [{"interpolation": "bicubik"}, {"channel_order": "GBR"}, {"size": (0, 5)}, {"std": (1, 1, 0)}],
)
def test_bad_fields_are_refused(fields):
    with pytest.raises(OptionError, match=r"bicubic|BGR|pixel|std"):
        ImageProcessor(**fields)


# ---- preprocessor_config.json --------------------------------------------------------------------

PROCESSORS = [
    ImageProcessor(),
    ImageProcessor((224, 224), (224, 224), "bicubic", (0.5,) * 3, (0.5,) * 3),
    ImageProcessor((32, 32), None),
    ImageProcessor((200, 180), (230, 240), "nearest"),
    ImageProcessor((228, 228), 256, mean=(0, 0, 0), std=(1, 1, 1), channel_order="BGR"),
]
BGR_NORMALISED = ImageProcessor(
    (227, 227), 256, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), channel_order="BGR"
)


@pytest.mark.parametrize("processor", [*PROCESSORS, BGR_NORMALISED])
def test_config_round_trip_through_json(processor):
    config = json.loads(json.dumps(processor.to_dict()))
    assert ImageProcessor.from_dict(config) == processor


def test_a_config_that_no_class_of_transformers_obeys_names_none():
    config = BGR_NORMALISED.to_dict()
    assert "image_processor_type" not in config
    assert config["image_mean"] == [0.3, 0.2, 0.1]  # in RGB order, flipped last


@pytest.mark.oracle
@pytest.mark.parametrize("processor", PROCESSORS)
def test_transformers_opens_the_config_and_does_the_same(processor, tmp_path):
    transformers = import_transformers()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor.to_dict()))
    try:
        theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    except TypeError:  # older versions name it otherwise
        theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False)
    # even remainders: it rounds an odd one down in the centre crop, torchvision halves to even
    pixels = photo(260, 340) if processor.resize else photo(32, 32)
    expected = theirs(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor([pixels]), expected, atol=5e-6, rtol=0)


def config(**changes):
    base = {
        "do_resize": True,
        "size": 224,
        "resample": 3,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3],
        "feature_extractor_type": "ViTFeatureExtractor",
    }
    return {k: v for k, v in {**base, **changes}.items() if v != "absent"}


def test_published_configs_of_several_kinds():
    read = ImageProcessor.from_dict
    assert read(config()).resize == (224, 224)
    clip = config(do_center_crop=True, crop_size=224, feature_extractor_type="CLIPFeatureExtractor")
    assert (read(clip).size, read(clip).resize) == ((224, 224), 224)
    deit = config(
        size=256, do_center_crop=True, crop_size=224, image_processor_type="DeiTImageProcessor"
    )
    assert (read(deit).size, read(deit).resize) == ((224, 224), (256, 256))
    small = config(crop_pct=0.875, feature_extractor_type="ConvNextFeatureExtractor")
    assert (read(small).size, read(small).resize) == ((224, 224), 256)
    large = config(size={"shortest_edge": 384}, image_processor_type="ConvNextImageProcessor")
    assert (read(large).size, read(large).resize) == ((384, 384), (384, 384))
    mobilevit = {
        "size": {"shortest_edge": 288},
        "crop_size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "do_flip_channel_order": True,
        "feature_extractor_type": "MobileViTFeatureExtractor",
    }
    assert read(mobilevit) == ImageProcessor(
        (256, 256), 288, mean=(0, 0, 0), std=(1, 1, 1), channel_order="BGR"
    )
    assert read(config(do_rescale=False)).std == pytest.approx([0.1 / 255, 0.2 / 255, 0.3 / 255])
    assert read(config(rescale_factor=1 / 127.5)).mean == pytest.approx([0.25, 0.2, 0.15])
    assert read(config(do_pad=False, rescale_offset=None, do_convert_rgb=True)) == read(config())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"imag_mean": [0, 0, 0]}, "image_mean"),
        ({"do_pad": True}, "do_pad"),
        ({"image_mean": "absent"}, "image_mean"),
        ({"image_mean": [0.5]}, "three numbers"),
        ({"resample": 7}, "resample"),
        ({"size": {"longest_edge": 9}}, "shortest_edge"),
        ({"size": {"shortest_edge": 9}}, "varying size"),
        ({"crop_pct": 0.9}, "ConvNext"),
    ],
)
def test_configs_that_are_not_understood(changes, says):
    with pytest.raises(OptionError, match=says):
        ImageProcessor.from_dict(config(**changes))


def test_the_limit_is_stated_in_the_module():
    assert "MAX_PIXELS" in (image_module.__doc__ or "")
