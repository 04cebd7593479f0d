"""Key frames: folders, animated pictures and video files, as images and as videos."""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.owners import QUESTION, easy_r1, mm_eureka, picture, vlm_r1, write_lines
from data.scans import animation, bundled, greys
from PIL import Image

from grpo_fast.data import open_data
from grpo_fast.data.images import loaders
from grpo_fast.data.videos import Video
from grpo_fast.errors import BadData, BadImage
from grpo_fast.types import Sample


def sample_of(folder: Path, record: dict[str, Any]) -> Sample:
    return open_data([str(write_lines(folder / "t.jsonl", [record]))])[0]


def video_record(video: Any, question: str = f"<video>{QUESTION}", column: str = "video") -> dict[str, Any]:
    return {column: video, "conversations": vlm_r1(question=question)["conversations"]}


def shown(reference: str, folder: Path) -> list[int]:
    return greys([load() for load in loaders(reference, folder, "t:1")])


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animations(tmp_path: Path, name: str) -> None:
    """12 frames, 250 ms each: 3 seconds."""
    animation(tmp_path / name)
    assert shown(name, tmp_path) == [0]  # without a choice it is the picture that PIL opens
    assert shown(f"{name}#frames=1", tmp_path) == [6]
    assert shown(f"{name}#frames=4", tmp_path) == [1, 4, 7, 10]
    assert shown(f"{name}#frames=all", tmp_path) == list(range(12)) == shown(f"{name}#frames=50", tmp_path)
    assert shown(f"{name}#fps=2", tmp_path) == [1, 3, 5, 7, 9, 11]  # two a second
    assert shown(f"{name}#fps=2,frames=3", tmp_path) == [2, 6, 10]
    assert shown(f"{name}#fps=100", tmp_path) == list(range(12))
    for choice, fps, frames in (("", 2, [1, 3, 5, 7, 9, 11]), ("#frames=3", 1, [2, 6, 10]), ("#fps=4", 4, range(12))):
        sample = sample_of(tmp_path, video_record(f"{name}{choice}"))
        (clip,) = sample.videos
        assert sample.messages[0]["content"] == [{"type": "video", "fps": fps}, {"type": "text", "text": QUESTION}]
        assert greys(clip()) == list(frames) == greys(pickle.loads(pickle.dumps(clip))())


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_damaged_animations_are_named(tmp_path: Path, name: str) -> None:
    """Cut anywhere, or with a byte in a frame that is another: PIL has many ways to say so."""
    whole = animation(tmp_path / name, 3, 100, (8, 8)).read_bytes()
    refused = 0
    damaged = [whole[:cut] for cut in range(12, len(whole), 3)]
    damaged += [whole[:at] + b"\x09" + whole[at + 1 :] for at in range(len(whole) // 2, len(whole), 7)]
    for content in damaged:
        (tmp_path / name).write_bytes(content)
        try:
            shown(f"{name}#frames=all", tmp_path)
        except (BadData, BadImage) as error:
            assert str(error).startswith(f"t:1: image {tmp_path}/{name} ")
            refused += 1
    assert refused > 15


def test_long_videos_are_thinned_out(tmp_path: Path) -> None:
    animation(tmp_path / "a.gif", 200, 500, (8, 8))
    (clip,) = sample_of(tmp_path, video_record("a.gif")).videos
    assert len(clip()) == 32 and isinstance(clip, Video) and clip.fps == 0.32


def test_folders_of_frames(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for number in range(12):
        Image.new("L", (56, 56), 20 * number).save(tmp_path / f"frames/frame_{number}.png")
    (tmp_path / "frames/labels.txt").write_text("x")
    assert shown("frames", tmp_path) == [6]
    assert shown("frames#frames=all", tmp_path) == list(range(12))  # 2 before 10
    (clip,) = sample_of(tmp_path, video_record("frames")).videos
    assert isinstance(clip, Video) and greys(clip()) == list(range(12)) and clip.fps == 2
    (clip,) = sample_of(tmp_path, video_record("frames#frames=4,fps=3")).videos
    assert isinstance(clip, Video) and greys(clip()) == [1, 4, 7, 10] and clip.fps == 1
    (tmp_path / "frames/frame_6.png").write_bytes(b"broken")
    with pytest.raises(BadImage, match=r"t:1: image .*frames is a folder of frames whose frame_6\.png cannot be read"):
        shown("frames", tmp_path)


def test_a_cine_loop_in_dicom() -> None:
    record = video_record(str(bundled("examples_ybr_color.dcm")))
    (sample,) = open_data([[record]])
    (clip,) = sample.videos
    assert isinstance(clip, Video) and len(clip()) == 2  # 30 frames at 33.3 ms
    assert clip.fps == pytest.approx(2.0, rel=0.01) and clip()[0].size == (320, 240)


def encoded(path: Path, count: int = 20, rate: int = 10) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".mp4" else "libvpx", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), (10 * number,) * 3))
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize("name", ["v.mp4", "v.webm"])
def test_video_files(tmp_path: Path, name: str) -> None:
    encoded(tmp_path / name)  # 2 seconds
    (clip,) = sample_of(tmp_path, video_record(name)).videos
    frames = [float(np.asarray(frame).mean()) for frame in clip()]
    assert isinstance(clip, Video) and clip.fps == 2
    assert np.allclose(frames, [20, 70, 120, 170], atol=6)
    middle = [load() for load in loaders(name, tmp_path, "t:1")]
    assert len(middle) == 1 and abs(float(np.asarray(middle[0]).mean()) - 100) < 6
    (tmp_path / "cut.mp4").write_bytes((tmp_path / name).read_bytes()[:200])
    with pytest.raises(BadData, match=r"t\.jsonl:1: video .*cut\.mp4 is no readable video"):
        sample_of(tmp_path, video_record("cut.mp4"))


def test_without_a_reader_videos_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(600))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadData, match=r"v\.mp4 is a video file, which needs PyAV or OpenCV: pip install av"):
        sample_of(tmp_path, video_record("v.mp4"))


def test_every_layout(tmp_path: Path) -> None:
    """VLM-R1 and EasyR1 with columns, MM-EUREKA with a part; a list of pictures; beside images; without tags."""
    animation(tmp_path / "a.gif"), picture(0).save(tmp_path / "0.png")
    video, image, text = {"type": "video", "fps": 2.0}, {"type": "image"}, {"type": "text", "text": QUESTION}
    chat = [{"role": "user", "content": [{"type": "video", "video": f"file://{tmp_path}/a.gif"}, text]}]
    lines = [
        (video_record("a.gif"), [video, text]),
        (video_record(["a.gif", "a.gif"], f"<video><video>{QUESTION}", "videos"), [video, video, text]),
        ({**video_record("a.gif", QUESTION), "image": "0.png"}, [image, video, text]),
        ({**video_record("a.gif", f"<video><image>{QUESTION}"), "image": "0.png"}, [video, image, text]),
        (video_record([["0.png"] * 3], column="videos"), [video, text]),
    ]
    others = [
        ({**easy_r1([], f"<video>{QUESTION}"), "videos": ["a.gif"]}, [video, text]),
        ({**mm_eureka(""), "message": json.dumps(chat)}, [video, text]),
        ({"problem": QUESTION, "solution": "C", "video": "a.gif"}, [video, text]),
    ]
    for record, parts in [*lines, *others]:
        sample = sample_of(tmp_path, record)
        assert sample.messages[0]["content"] == parts, record
        assert [len(clip()) for clip in sample.videos] == [6 if "0.png" not in str(record.get("videos")) else 3] * (
            parts.count(video)
        )
        assert "videos" not in sample.meta["columns"] and "video" not in sample.meta["columns"]


BROKEN = {
    "two tags": (video_record("a.gif", f"<video><video>{QUESTION}"), r"has 2 <video> tag\(s\), but the record has 1"),
    "a tag alone": (video_record(None), r"has 1 <video> tag\(s\), but the record has 0 video\(s\)"),
    "both columns": ({**video_record("a.gif"), "videos": ["a.gif"]}, "both video and videos are given"),
    "a number": (video_record(3), "a video is of type int; known are a path and a list of frames"),
    "no frames": (video_record([[]], column="videos"), "a video without frames"),
    "missing": (video_record("no.mp4"), "video .*/no.mp4 does not exist"),
    "empty folder": (video_record("empty"), "video .*/empty is an empty folder"),
    "on the web": (video_record("https://example.org/a.mp4"), "is not fetched: download it"),
    "a data URI": (video_record("data:image/gif;base64,aGk="), "a video in a data URI is not read"),
    "text": (video_record("text"), "video .*/text cannot be read: no image format that is known"),
    "slices": (video_record("a.gif#slices=3"), "which is counted in frames: #slices=3 says slices"),
    "a window": (video_record("a.gif#window=1/2"), "is no volume: #window=1/2: window, axis and time are for"),
    "only a video": (video_record("a.gif", "<video> "), "the question is empty"),
    "slices of an animation": (vlm_r1("a.gif#slices=3"), "image .*/a.gif is counted in frames: #slices=3 says slices"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_records_are_named(tmp_path: Path, name: str) -> None:
    record, reason = BROKEN[name]
    animation(tmp_path / "a.gif", 3), (tmp_path / "empty").mkdir(), (tmp_path / "text").write_text("hello")
    with pytest.raises(BadData, match=rf"^{tmp_path}/t\.jsonl:1: .*{reason}"):
        sample_of(tmp_path, record)
