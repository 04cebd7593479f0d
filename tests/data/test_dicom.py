"""DICOM files as images, against pydicom's own lookup tables, Pillow's decoders and the bytes of the files."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.owners import QUESTION, vlm_r1, write_lines
from data.scans import CT, MR, ULTRASOUND, bundled, series, slice_of
from PIL import Image
from pydicom import Dataset, Sequence, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from grpo_fast.data import open_data
from grpo_fast.data.images import loader, loaders
from grpo_fast.errors import BadData, BadImage


def shown(reference: Any, folder: Path = Path()) -> np.ndarray:
    (load,) = loaders(str(reference), folder, "t:1")
    return np.asarray(load())


def slices(reference: str) -> list[np.ndarray]:
    return [np.asarray(load()) for load in loaders(reference, Path(), "t:1")]


def by_pydicom(dataset: Dataset) -> np.ndarray:
    """0 to 255, from the whole range that pydicom's windowing maps to."""
    values = np.asarray(apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset), np.float64)
    bits, signed = int(dataset.BitsStored), dataset.PixelRepresentation == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if "RescaleSlope" in dataset:
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        low, high = low * slope + intercept, high * slope + intercept
    return np.rint((values - low) / (high - low) * 255)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for what rounding a tie the other way does."""
    difference = np.abs(one.astype(np.int64) - other.astype(np.int64))
    return one.shape == other.shape and difference.max() <= 1 and (difference > 0).mean() < 1e-3


# CT and MR with one and several windows, signed and unsigned, rescaled and not, compressed and not; CR inverted below.
@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_jp2klossless.dcm", "693_J2KI.dcm",
        "J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm",
        "dicomdirtests/98892001/CT5N/2062", "dicomdirtests/77654033/CT2/17106",
    ],
)  # fmt: skip
def test_windows_of_the_file(name: str) -> None:
    path = bundled(CT).parent / name
    found = shown(path)
    assert found.dtype == np.uint8 and alike(found, by_pydicom(dcmread(path)))


def test_monochrome1_is_inverted() -> None:
    path = bundled(CT).parent / "dicomdirtests/77654033/CR1/6154"
    dataset = dcmread(path)
    assert dataset.PhotometricInterpretation == "MONOCHROME1" and float(dataset.RescaleSlope) == 0.684
    assert alike(shown(path), 255 - by_pydicom(dataset))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [1, 2, 400])
def test_window_functions(tmp_path: Path, function: str, width: int) -> None:
    dataset = dcmread(bundled(MR))
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 700, width, function
    dataset.save_as(tmp_path / "x")
    assert alike(shown(tmp_path / "x"), by_pydicom(dataset))


def test_without_a_window_percentiles_but_not_of_padding(tmp_path: Path) -> None:
    dataset = dcmread(bundled(CT))
    assert "WindowCenter" not in dataset
    dataset.PixelPaddingValue = -2000
    values = dataset.pixel_array.copy()
    values[:20] = -2000
    dataset.PixelData = values.tobytes()
    dataset.save_as(tmp_path / "padded.dcm")
    for path, kept in ((bundled(CT), slice(None)), (tmp_path / "padded.dcm", slice(20, None))):
        hounsfield = apply_modality_lut(dcmread(path).pixel_array, dataset)
        low, high = np.percentile(hounsfield[kept], (0.5, 99.5))
        assert alike(shown(path), np.rint((np.clip(hounsfield, low, high) - low) / (high - low) * 255))


def test_chosen_window() -> None:
    hounsfield = dcmread(bundled(CT)).pixel_array - 1024.0
    for centre, width in ((40, 400), (-600, 1500), (50.5, 80)):
        found = shown(f"{bundled(CT)}#window={centre}/{width}")
        expected = np.clip(((hounsfield - (centre - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
        assert alike(found, np.rint(expected))


def test_lookup_tables_of_the_file(tmp_path: Path) -> None:
    """VOI LUT before a window; modality LUT before both."""
    dataset = dcmread(bundled(MR))
    table = (np.linspace(0, 1, 2200) ** 2 * 4095).astype(np.uint16)
    lookup = Dataset()
    lookup.LUTDescriptor, lookup.LUTData = [2200, 0, 12], table.tobytes()
    dataset.VOILUTSequence = Sequence([lookup])
    dataset.save_as(tmp_path / "voi.dcm")
    assert alike(shown(tmp_path / "voi.dcm"), np.rint(table[dataset.pixel_array] * (255 / 4095)))
    del dataset.VOILUTSequence
    lookup.ModalityLUTType, lookup.LUTDescriptor = "US", [2200, 0, 16]
    dataset.ModalityLUTSequence = Sequence([lookup])
    dataset.save_as(tmp_path / "modality.dcm")
    values = table[dataset.pixel_array].astype(np.float64)
    expected = np.clip((values - 599.5) / 1599 + 0.5, 0, 1) * 255
    assert (float(dataset.WindowCenter), float(dataset.WindowWidth)) == (600, 1600)
    assert alike(shown(tmp_path / "modality.dcm"), np.rint(expected))


def test_eight_bits_and_one_are_shown_as_they_are() -> None:
    assert np.array_equal(shown(bundled("image_dfl.dcm")), dcmread(bundled("image_dfl.dcm")).pixel_array)
    mask = dcmread(bundled("liver_1frame.dcm")).pixel_array
    assert np.array_equal(shown(bundled("liver_1frame.dcm")), mask * np.uint8(255))


def test_colours() -> None:
    """RGB ultrasound from the file's bytes, palette ultrasound by hand, YBR JPEG by Pillow, 16 and 32 bits by 8."""
    dataset = dcmread(bundled(ULTRASOUND))
    assert dataset.Modality == "US" and dataset.PlanarConfiguration == 0
    raw = np.frombuffer(dataset.PixelData, np.uint8)[: 240 * 320 * 3]
    assert np.array_equal(shown(bundled(ULTRASOUND)), raw.reshape(240, 320, 3))

    dataset = dcmread(bundled("examples_palette.dcm"))
    tables = [dataset[f"{name}PaletteColorLookupTableData"].value for name in ("Red", "Green", "Blue")]
    palette = np.stack([np.frombuffer(table, "<u2") >> 8 for table in tables], -1).astype(np.uint8)
    assert np.array_equal(shown(bundled("examples_palette.dcm")), palette[dataset.pixel_array])

    dataset = dcmread(bundled("examples_ybr_color.dcm"))
    jpeg = get_frame(dataset.PixelData, 15, number_of_frames=30)
    expected = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
    found = shown(bundled("examples_ybr_color.dcm")).astype(int)  # the middle one of 30
    assert np.abs(found - expected).max() <= 3  # two conversions from YBR, both rounded

    for deep in ("SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm"):
        assert np.array_equal(shown(bundled(deep)), shown(bundled("SC_rgb_rle.dcm")))
    plain = shown(bundled("SC_rgb_rle.dcm")).astype(int)
    for name in ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_ybr_full_422_uncompressed.dcm"):
        assert np.abs(shown(bundled(name)).astype(int) - plain).mean() < 2, name  # JPEG's own loss


def test_frames_of_a_file() -> None:
    path = bundled("examples_ybr_color.dcm")
    whole = slices(f"{path}#slices=all")
    assert len(whole) == 30 and len(slices(f"{path}#frames=99")) == 30
    chosen = slices(f"{path}#slices=3")
    assert all(np.array_equal(one, whole[number]) for one, number in zip(chosen, (5, 15, 25), strict=True))
    assert len(slices(f"{path}#fps=1")) == round(float(dcmread(path).FrameTime) * 30 / 1000)
    dose = dcmread(bundled("rtdose.dcm")).pixel_array.astype(float)
    low, high = np.percentile(dose[[3, 11]], (0.5, 99.5))  # of the two slices together
    pair = slices(f"{bundled('rtdose.dcm')}#slices=2")
    for found, number in zip(pair, (3, 11), strict=True):
        assert alike(found, np.rint((dose[number].clip(low, high) - low) / (high - low) * 255))


def enhanced(path: Path) -> np.ndarray:
    """Three frames, stored head first, each with its own rescaling; the stored values by place, feet first."""
    dataset = dcmread(bundled(MR))
    frames = [dataset.pixel_array + 10 * number for number in range(3)]
    dataset.NumberOfFrames, dataset.PixelData = 3, np.stack(frames).astype(np.int16).tobytes()
    shared, own = Dataset(), []
    orientation, window = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    window.WindowCenter, window.WindowWidth = 2000, 5001
    shared.PlaneOrientationSequence, shared.FrameVOILUTSequence = Sequence([orientation]), Sequence([window])
    for number in range(3):
        group, place, scale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, -5 * number]
        scale.RescaleSlope, scale.RescaleIntercept = 2, number
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([place]), Sequence([scale])
        own.append(group)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(own)
    dataset.save_as(path)
    return np.stack([2.0 * frame + number for number, frame in enumerate(frames)])[::-1]


def test_enhanced_files_say_it_frame_by_frame(tmp_path: Path) -> None:
    values = enhanced(tmp_path / "e.dcm")
    found = slices(f"{tmp_path}/e.dcm#slices=all")
    for one, expected in zip(found, values, strict=True):
        assert alike(one, np.rint(np.clip((expected - 1999.5) / 5000 + 0.5, 0, 1) * 255))


def test_series_in_the_order_of_their_places(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", 5)
    (folder / "notes.txt").write_text("no slice")
    (folder / ".DS_Store").write_bytes(b"x")
    expected = [by_pydicom(slice_of(number)) for number in range(5)]
    found = slices(f"{folder}#slices=all")
    assert len(found) == 5 and all(map(alike, found, expected))
    assert [one.mean() for one in found] == sorted(one.mean() for one in found)
    assert alike(shown(folder), expected[2])
    assert all(map(alike, slices(f"{folder}#slices=2"), (expected[1], expected[3])))
    tilted = series(tmp_path / "tilted", 4, ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
                    ImagePositionPatient=lambda number: [3 * number, 1, 1])  # fmt: skip
    found = [one.mean() for one in slices(f"{tilted}#slices=all")]  # the normal points to the left: -x
    assert found == sorted(found, reverse=True)
    unplaced = series(tmp_path / "unplaced", 4, ImagePositionPatient=None)
    found = [one.mean() for one in slices(f"{unplaced}#slices=all")]  # by InstanceNumber, which falls
    assert found == sorted(found, reverse=True)
    one = series(tmp_path / "one", 1)
    assert alike(shown(one), expected[0])


BAD_SERIES = {
    "mixed sizes": (lambda f: series(f, 3, Rows=lambda n: 128 - n), "mixed slices: Rows is 12. in .* and 12. in"),
    "same position": (lambda f: series(f, 3, ImagePositionPatient=[0, 0, 7]), r"\.dcm lie at the same position \(7\)"),
    "same number": (
        lambda f: series(f, 3, ImagePositionPatient=None, InstanceNumber=4),
        r"have the same instance number \(4\)",
    ),
    "no order": (lambda f: series(f, 3, ImagePositionPatient=None, InstanceNumber=None), "neither a position nor"),
    "two series": (lambda f: series(f, 3, SeriesInstanceUID=lambda n: f"1.2.{n % 2}"), "slices of 2 series"),
    "a localizer": (
        lambda f: series(f, 3, ImageOrientationPatient=lambda n: [1, 0, 0, 0, 1, 0] if n else [0, 1, 0, 0, 0, -1]),
        "cut in different directions",
    ),
    "frames among slices": (lambda f: series(f, 3, NumberOfFrames=2), "holds several frames"),
    "no picture": (lambda f: (f.mkdir(), (f / "a.txt").write_text("x")), "without a DICOM slice or a picture"),
    "empty": (lambda f: f.mkdir(), "is an empty folder"),
}


@pytest.mark.parametrize("name", BAD_SERIES)
def test_bad_series_are_named(tmp_path: Path, name: str) -> None:
    make, reason = BAD_SERIES[name]
    make(tmp_path / "s")
    path = write_lines(tmp_path / "t.jsonl", [vlm_r1("s"), vlm_r1("s#slices=all")])
    data = open_data([str(path)])
    with pytest.raises(BadImage, match=rf"^{path}:1: image {tmp_path}/s .*{reason}"):
        data[0].images[0]()
    with pytest.raises(BadData, match=rf"^{path}:2: image {tmp_path}/s .*{reason}"):
        data[1]


def changed(path: Path, **columns: Any) -> None:
    dataset = dcmread(bundled(MR))
    for key, value in columns.items():
        setattr(dataset, key, value)
    dataset.save_as(path)


def unknown_encoding(path: Path) -> None:
    dataset = dcmread(bundled(MR))
    dataset.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.9.9.9\0"))


def wrong_length(path: Path) -> None:
    content = bytearray(bundled(CT).read_bytes())
    content[138] = 6  # of the first number of the header, which has four bytes
    path.write_bytes(content)


BAD_FILES = {
    "no pixels": ("test-SR.dcm", r"has no pixels \(it is of modality SR\)"),
    "a plan": ("rtplan.dcm", r"has no pixels \(it is of modality RTPLAN\)"),
    "cut": ("MR_truncated.dcm", r"cannot be decoded: The number of bytes of pixel data is less than expected"),
    "no such number": ("badVR.dcm", "has '1A' as its number of frames"),
    "no transfer syntax": ("meta_missing_tsyntax.dcm", "it has no transfer syntax"),
    "no DICM": ("no_meta.dcm", "no DICM stands at byte 128"),
    "12-bit JPEG": ("JPGExtended.dcm", "JPEG Extended .* cannot be decoded"),
    "encrypted": (
        lambda path: encrypted(path),
        "has encrypted attributes and no pixels: decrypt it first",
    ),
    "unknown encoding": (unknown_encoding, "encoded or encrypted as 1.2.840.99999.9.9.9|cannot be decoded|no readable"),
    "only a header": (lambda path: path.write_bytes(b"\0" * 128 + b"DICM"), "no transfer syntax|has no pixels"),
    "garbage": (lambda path: path.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300), "is no readable|has no pixels"),
    "a length that does not fit": (wrong_length, "is no readable DICOM file: Expected total bytes"),
    "a colour space": (lambda path: changed(path, PhotometricInterpretation="HSV"), "HSV|cannot be decoded"),
    "a list of files": ("dicomdirtests/DICOMDIR", "is a DICOMDIR, a list of files: name one of them"),
    "axis": (f"{CT}#axis=1", "is a DICOM file: #axis=1: axis and time are for NIfTI volumes"),
}  # fmt: skip


def encrypted(path: Path) -> None:
    dataset = dcmread(bundled(MR))
    del dataset.PixelData
    dataset.EncryptedAttributesSequence = Sequence([Dataset()])
    dataset.save_as(path)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, name: str) -> None:
    given, reason = BAD_FILES[name]
    if callable(given):
        given(tmp_path / "x.dcm")
        given = str(tmp_path / "x.dcm")
    else:
        plain, _, choice = given.partition("#")
        given = str(bundled(CT).parent / plain) + (f"#{choice}" if choice else "")
    path = write_lines(tmp_path / "t.jsonl", [vlm_r1(str(bundled(CT))), vlm_r1(given)])
    data = open_data([str(path)])
    assert data[0].images[0]().size == (128, 128)
    with pytest.raises(BadImage, match=rf"^{path}:2: image {re.escape(given.partition('#')[0])} .*({reason})"):
        data[1].images[0]()


def test_missing_decoder_says_what_to_install(tmp_path: Path) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGLSLossless

    if get_decoder(JPEGLSLossless).is_available:
        pytest.skip("a decoder for JPEG-LS is installed")
    load = loader(str(bundled("MR_small_jpeg_ls_lossless.dcm")), tmp_path, "t:1")
    with pytest.raises(BadImage, match=r"is compressed as JPEG-LS Lossless .*; to decode it, install .*pylibjpeg"):
        load()


@pytest.mark.parametrize(("package", "name"), [("pydicom", "x.dcm"), ("nibabel", "x.nii")])
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    (tmp_path / "x.dcm").write_bytes(bundled(CT).read_bytes())
    (tmp_path / "x.nii").write_bytes(b"\x5c\x01\0\0" + bytes(340) + b"n+1\0" + bytes(200))
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(BadImage, match=rf'^t:1: image .* needs {package}: pip install "grpo-fast\[medical\]"'):
        loader(name, tmp_path, "t:1")()


def test_embedded_in_a_column() -> None:
    found = loader({"bytes": bundled(MR).read_bytes(), "path": None}, Path(), "t:1")()
    assert np.array_equal(np.asarray(found), shown(bundled(MR)))


CHOICES = {
    "slice=8": "'slice' is none of slices, .*did you mean slices",
    "slices=0": "slices is '0', not a number from 1, or all",
    "slices=many": "slices is 'many'",
    "slices=2,slices=3": "slices stands twice",
    "slices=2,frames=3": "a volume has slices, a clip has frames",
    "axis=3": "axis is '3', not 0, 1 or 2",
    "window=40": "window is '40', not CENTRE/WIDTH",
    "window=40/0": "window is '40/0'",
    "window=nan/3": "window is 'nan/3'",
    "time=-1": "time is '-1', not a number from 0",
    "fps=0": "fps is '0', not a number above 0",
}  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
def test_wrong_choices_are_named(tmp_path: Path, choice: str) -> None:
    path = write_lines(tmp_path / "t.jsonl", [vlm_r1(f"a.nii#{choice}", QUESTION)])
    with pytest.raises(BadData, match=rf"^{path}:1: #{re.escape(choice)}: {CHOICES[choice]}"):
        open_data([str(path)])[0]


def test_a_number_sign_without_a_choice_is_a_name(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a#1.png")
    assert shown("a#1.png", tmp_path).shape == (4, 4)
