"""DICOM files that pydicom carries, and volumes and clips written for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file

CT, MR, ULTRASOUND = "CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm"


def bundled(name: str) -> Path:
    """One of pydicom's own files; what would have to be downloaded is not asked for."""
    found = get_testdata_file(name, download=False)
    assert found is not None, name
    return Path(found)


def series(folder: Path, count: int = 5, name: Any = lambda number: f"{(number * 7) % 11}.dcm", **changes: Any) -> Path:
    """CT slices 2.5 mm apart, under names that say nothing; slice i is everywhere 100 HU more than the one below."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        dataset = slice_of(number)
        for key, value in changes.items():
            setattr(dataset, key, value(number) if callable(value) else value)
            if value is None:
                delattr(dataset, key)
        dataset.save_as(folder / name(number))
    return folder


def slice_of(number: int) -> Dataset:
    dataset = dcmread(bundled(CT))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-50, -50, -100 + 2.5 * number]
    dataset.InstanceNumber = 100 - number  # the other way round: positions come first
    dataset.RescaleIntercept = -1024 + 100 * number
    dataset.WindowCenter, dataset.WindowWidth = 100, 1200
    return dataset


def animation(path: Path, count: int = 12, duration: int = 250, size: tuple[int, int] = (56, 56)) -> Path:
    """Frame i is grey 20 · i, as far as there are greys."""
    frames = [Image.new("L", size, 20 * number % 256) for number in range(count)]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].convert("RGB").save(
        path, save_all=True, append_images=[f.convert("RGB") for f in frames[1:]], duration=duration, loop=0, **options
    )
    return path


def greys(frames: Any) -> list[int]:
    """The number of each frame of `animation`."""
    return [round(float(np.asarray(frame.convert("L")).mean()) / 20) for frame in frames]
