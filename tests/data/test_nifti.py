"""NIfTI volumes as images: which way round, which slices, which greys; written by nibabel."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from data.owners import vlm_r1, write_lines

from grpo_fast.data import open_data
from grpo_fast.data.images import loader, loaders
from grpo_fast.errors import BadData, BadImage

# 25 mm, 30 mm and 8 mm of a head: the value says which way lies the right, the front and the top.
SHAPE = (25, 30, 8)
X, Y, Z = np.meshgrid(*(np.arange(length) for length in SHAPE), indexing="ij")
HEAD = (X + 40 * Y + 2000 * Z).astype(np.int16)  # in RAS


def written(path: Path, values: np.ndarray, codes: str = "RAS", **header: Any) -> Path:
    """Stored in another orientation, which the affine says: the volume is the same."""
    image = nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 5.0, 1.0]))
    turn = nibabel.orientations.axcodes2ornt(tuple(codes))
    image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), turn))
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def shown(reference: Any, folder: Path = Path()) -> list[np.ndarray]:
    return [np.asarray(load()) for load in loaders(str(reference), folder, "t:1")]


def greys(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(((values.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)


def as_held(axis: int, index: int, head: np.ndarray = HEAD) -> np.ndarray:
    """By the rules of reading, voxel by voxel: up is the head (axial: front), left is the right (sagittal: front)."""
    if axis == 2:
        return np.array([[head[x, y, index] for x in range(24, -1, -1)] for y in range(29, -1, -1)])
    if axis == 1:
        return np.array([[head[x, index, z] for x in range(24, -1, -1)] for z in range(7, -1, -1)])
    return np.array([[head[index, y, z] for y in range(29, -1, -1)] for z in range(7, -1, -1)])


CODES = ["".join(codes) for order in itertools.permutations(("LR", "AP", "SI")) for codes in itertools.product(*order)]


def test_whatever_way_it_is_stored(tmp_path: Path) -> None:
    """All 48 orientations, all three axes."""
    assert len(CODES) == 48
    for codes in CODES:
        path = written(tmp_path / f"{codes}.nii", HEAD, codes)
        assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == codes
        for axis, slices in enumerate(SHAPE):
            expected = as_held(axis, slices // 2)
            low, high = np.percentile(expected, (0.5, 99.5))
            (found,) = shown(f"{path}#axis={axis}")
            assert np.array_equal(found, greys(expected, low, high)), (codes, axis)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "no suffix", "v.png"])
def test_recognised_by_content(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "v.nii", HEAD)
    data = path.read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(data) if name != "v.nii" else data)
    expected = as_held(2, 4)
    (found,) = shown(name, tmp_path)
    assert np.array_equal(found, greys(expected, *np.percentile(expected, (0.5, 99.5))))
    embedded = loader({"bytes": (tmp_path / name).read_bytes()}, tmp_path, "t:1")()
    assert np.array_equal(np.asarray(embedded), found)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "uint16", "int32", "float32", "float64"])
def test_types_and_scaling(tmp_path: Path, kind: Any, dtype: str) -> None:
    values = (HEAD % 251).astype(dtype)
    image = kind(values, np.eye(4))
    if dtype == "int16":
        image.header.set_slope_inter(0.5, -100)  # nibabel stores (values + 100) / 0.5
    nibabel.save(image, tmp_path / "v.nii")
    held = as_held(2, 4, np.asarray(nibabel.load(tmp_path / "v.nii").get_fdata()))
    (found,) = shown(tmp_path / "v.nii")
    assert np.array_equal(found, greys(held, *np.percentile(held, (0.5, 99.5))))


def test_slices_share_their_greys(tmp_path: Path) -> None:
    path = written(tmp_path / "v.nii.gz", HEAD, "LSP")
    for choice, indices in {
        "slices=2": (2, 6),
        "slices=all": range(8),
        "slices=99": range(8),
        "slices=3": (1, 4, 6),
    }.items():
        expected = [as_held(2, index) for index in indices]
        limits = np.percentile(np.stack(expected), (0.5, 99.5))
        found = shown(f"{path}#{choice}")
        assert len(found) == len(expected)
        assert all(np.array_equal(one, greys(other, *limits)) for one, other in zip(found, expected, strict=True)), (
            choice
        )
    (found,) = shown(f"{path}#window=5000/1001")
    assert np.array_equal(found, greys(as_held(2, 4) - 4999.5 + 500, 0, 1000))
    told = written(tmp_path / "told.nii", HEAD, cal_min=1000, cal_max=9000)
    (found,) = shown(told)
    assert np.array_equal(found, greys(as_held(2, 4), 1000, 9000))


def test_time_points(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = np.stack([np.minimum(HEAD, 900) * (time + 1) for time in range(5)], -1)
    path = written(tmp_path / "t.nii", times)
    (middle,) = shown(f"{path}#window=2000/4001")
    assert f"{path} holds 5 time points: the middle one, 2, is shown; #time=N" in caplog.text
    (last,) = shown(f"{path}#window=2000/4001,time=4")
    for found, factor in ((middle, 3), (last, 5)):
        expected = as_held(2, 4, np.minimum(HEAD, 900).astype(np.int32) * factor)
        assert np.array_equal(found, greys(expected - 1999.5 + 2000, 0, 4000))
    single = written(tmp_path / "one.nii", HEAD[..., None])
    caplog.clear()
    assert len(shown(f"{single}#slices=all")) == 8 and not caplog.text


def test_colours_and_flat_volumes(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"], rgb["G"], rgb["B"] = X, Y, Z
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    (found,) = shown(tmp_path / "rgb.nii")
    assert np.array_equal(found, np.stack([as_held(2, 4, part) for part in (X, Y, Z)], -1))
    nibabel.save(nibabel.Nifti1Image(HEAD[:, :, 0], np.eye(4)), tmp_path / "flat.nii")
    (found,) = shown(tmp_path / "flat.nii")
    assert np.array_equal(found, greys(as_held(2, 0), *np.percentile(as_held(2, 0), (0.5, 99.5))))
    nibabel.save(nibabel.Nifti1Image(np.full(SHAPE, 7, np.int16), np.eye(4)), tmp_path / "even.nii")
    assert not shown(tmp_path / "even.nii")[0].any()


def with_nan(path: Path) -> None:
    values = HEAD.astype(np.float32)
    values[3, 3, 4] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)


def pair(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(HEAD, np.eye(4)), path.with_suffix(".img"))
    path.with_suffix(".hdr").rename(path)


def too_large(path: Path) -> None:
    content = bytearray(nibabel.Nifti2Image(np.zeros((10, 9, 8), np.int16), np.eye(4)).to_bytes())
    content[16 + 3 * 8 + 4] = 128  # of the 64-bit length of the third axis
    path.write_bytes(content)


BAD_VOLUMES = {
    "NaN": (with_nan, r"holds NaN or infinite values \(1 of the 750 in one slice\)"),
    "infinite": (lambda p: written(p, np.full(SHAPE, np.inf)), r"750 of the 750"),
    "complex": (lambda p: written(p, HEAD.astype(np.complex64)), "is a volume of complex numbers"),
    "cut": (lambda p: p.write_bytes(written(p, HEAD).read_bytes()[:5000]), "is no readable NIfTI volume"),
    "only a header": (lambda p: p.write_bytes(written(p, HEAD).read_bytes()[:352]), "is no readable NIfTI volume"),
    "cut header": (lambda p: p.write_bytes(written(p, HEAD).read_bytes()[:348]), "is no readable NIfTI volume"),
    "cut header of the second kind": (
        lambda p: p.write_bytes(nibabel.Nifti2Image(HEAD, np.eye(4)).to_bytes()[:500]), "is no readable NIfTI volume",
    ),
    "a size beyond the file": (too_large, r"\(10, 9, 549755813896\) voxels are more than such a file can hold"),
    "five dimensions": (lambda p: written(p, np.zeros((4, 4, 4, 3, 2))), "is a volume of 5 dimensions"),
    "a pair": (pair, r"is the header of a volume in two files \(.hdr and .img\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_VOLUMES)
@pytest.mark.parametrize("packed", [False, True])
def test_bad_volumes_are_named(tmp_path: Path, name: str, packed: bool) -> None:
    make, reason = BAD_VOLUMES[name]
    make(tmp_path / "v.nii")
    if packed:
        (tmp_path / "v.nii").write_bytes(gzip.compress((tmp_path / "v.nii").read_bytes()))
    path = write_lines(tmp_path / "t.jsonl", [vlm_r1("v.nii")])
    with pytest.raises(BadImage, match=rf"^{path}:1: image {tmp_path}/v.nii .*{reason}"):
        open_data([str(path)])[0].images[0]()


def test_bad_choices_are_named(tmp_path: Path) -> None:
    written(tmp_path / "v.nii", np.zeros((3, 3, 3, 2), np.int16))
    for choice, reason in {
        "time=2": r"holds 2 time point\(s\), from 0: #time=2",
        "frames=3": "is counted in slices",
    }.items():
        path = write_lines(tmp_path / "t.jsonl", [vlm_r1(f"v.nii#{choice}")])
        with pytest.raises((BadData, BadImage), match=rf"^{path}:1: image {tmp_path}/v.nii {reason}"):
            open_data([str(path)])[0].images[0]()
    path = write_lines(tmp_path / "t.jsonl", [{**vlm_r1(), "image": None, "video": "v.nii"}])
    with pytest.raises(BadData, match=rf"^{path}:1: video {tmp_path}/v.nii is a volume, not a video"):
        open_data([str(path)])[0]


def test_a_cut_packed_volume(tmp_path: Path) -> None:
    whole = written(
        tmp_path / "v.nii.gz", np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16)
    ).read_bytes()
    (tmp_path / "v.nii.gz").write_bytes(whole[:2000])
    with pytest.raises(BadImage, match=r"^t:1: image .*v\.nii\.gz is no readable NIfTI volume"):
        shown(tmp_path / "v.nii.gz")
