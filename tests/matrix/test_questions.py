"""Which questions a study asks, and that what is held out stays out of every training."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_fast.data import Dataset, open_data
from grpo_fast.data.phantom import phantom, write
from grpo_fast.errors import BadData, BadSettings
from grpo_fast.matrix.questions import balanced, cells, groups, with_held_out
from grpo_fast.matrix.study import identity, study
from grpo_fast.train.questions import datasets
from grpo_fast.train.resolved import changed, flat, resolved
from grpo_fast.train.settings import Settings


def test_balanced() -> None:
    asked = Dataset([phantom("test", 160)])
    places = balanced(asked, 80, 3)
    known = [cells(asked)[place] for place in places]
    assert len(set(places)) == 80 and places == sorted(places) and {known.count(cell) for cell in known} == {2}
    assert places == balanced(asked, 80, 3) != balanced(asked, 80, 4)
    assert balanced(asked, 0, 3) == balanced(asked, 999, 3) == list(range(160))


def test_groups_are_named_by_the_data() -> None:
    assert groups(Dataset([phantom("test", 160)]), "question_type")[0] == "modality-recognition"
    assert groups(Dataset([phantom("test", 160)]), "modality")[:3] == ["ct", "mri", "x-ray"]
    with pytest.raises(BadData, match="name no modality"):
        groups(open_data([[{"problem": "Which?", "answer": "A"}]]), "modality")


def test_a_share_that_is_held_out_is_the_same_for_every_modality(tmp_path: Path) -> None:
    """The trainer splits after it has chosen modalities: the base would learn what a model's split holds out."""
    file = write(tmp_path, train=120, test=0, size=28)["train"]
    settings = changed(Settings(), data=[str(file)], eval_share=0.25)
    said: list[str] = []
    asked = with_held_out(settings, tmp_path / "data", said.append)
    _, held_out = datasets(asked)
    apart = {sample.id for sample in held_out}
    assert len(apart) == 30 and not said
    learned = set()
    for modality in ("ct", "mri", "oct"):
        train, own = datasets(changed(asked, modality=[modality]))
        learned |= {sample.id for sample in train}
        assert {sample.id for sample in own} == {s.id for s in held_out if s.meta["modality"] == modality}
    assert learned and not learned & apart
    before = {sample.id: sample for sample in open_data([str(file)])}
    for sample in [*train, *held_out]:
        assert sample.meta["response"] == before[sample.id].meta["response"]
        assert sample.images[0]().tobytes() == before[sample.id].images[0]().tobytes()
    assert with_held_out(asked, tmp_path / "other", said.append) is asked
    assert with_held_out(Settings(), tmp_path / "other", said.append).data.data == ["phantom"]


def test_auto_keeps_its_meaning_when_the_model_becomes_a_folder() -> None:
    tiny, real = resolved(Settings()), resolved(changed(Settings(), model="some/model"))
    assert (tiny.data.prompt, tiny.rollout.static_shapes, tiny.warm_start.warm_start) == ("plain", "on", "on")
    assert (real.data.prompt, real.rollout.static_shapes, real.warm_start.warm_start) == ("think", "off", "off")
    assert resolved(changed(Settings(), prompt="no-think", warm_start="off")).warm_start.warm_start == "off"


def test_a_study_goes_on_with_the_same_settings_alone(tmp_path: Path) -> None:
    folder, settings = tmp_path / "study", Settings()
    with study(folder, identity(settings, study="matrix"), print):
        pass
    moved = changed(settings, threads=1, output="elsewhere", keep=5)
    with study(folder, identity(moved, study="matrix"), print):
        pass
    with (
        pytest.raises(BadSettings, match=r"group_size was 8, is 4.*name a new folder"),
        study(folder, identity(changed(settings, group_size=4), study="matrix"), print),
    ):
        pass
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(BadSettings, match="holds something else"), study(tmp_path / "letters", {}, print):
        pass


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_fast.matrix.study.PATIENCE", 0.3)
    said: list[str] = []
    with (
        study(tmp_path / "s", {}, print),
        pytest.raises(BadSettings, match="another process is at work"),
        study(tmp_path / "s", {}, said.append),
    ):
        pass
    assert len(said) == 1 and "waiting" in said[0]


def test_settings_survive_being_flattened() -> None:
    settings = changed(Settings(), steps=None, modality=["ct"], epsilon_high=0.3)
    assert changed(settings) == settings and flat(changed(settings)) == flat(settings)
