"""Run by test_state.py: a save that is killed before each of its file operations, and one without room on the disk.

Prints one JSON object. Children are forked, so that each begins with everything imported; they end by SIGKILL or by
`os._exit`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from train.state_ranks import bits, build, optimizer_of, tensors_of, train

from grpo_fast.errors import RunFailed
from grpo_fast.policy import GRPOPolicy
from grpo_fast.train.export import export
from grpo_fast.train.state import Position, latest, load, save

FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.scandir", "os.listdir"}
Run = tuple[GRPOPolicy, torch.optim.Optimizer]


def child(act: Callable[[], None]) -> int:
    """Exit code of `act` in a process of its own; minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_before(event: int, folder: Path, act: Callable[[], object]) -> int:
    def body() -> None:
        seen = 0

        def hook(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if name in FILE_EVENTS and str(arguments[0]).startswith(str(folder)):
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(hook)
        act()

    return child(body)


def kills(root: Path, run: Run, again: int, known: dict[int, set[str]]) -> dict[str, Any]:
    """`again`: the step of the save that is killed; the folder holds steps 1 (best) and 2."""
    policy, optimizer = run
    fresh = build("lora", seed=5)
    fresh_optimizer = optimizer_of(fresh)
    event, found = 0, {"old": 0, "new": 0}
    while True:
        folder = root / f"killed-{again}-{event}"
        shutil.copytree(root / "before", folder, symlinks=True)
        position = Position("grpo", again, skipped=1)
        code = killed_before(event, folder, partial(save, folder, policy, optimizer, position, keep=2, best=True))
        last = latest(folder)
        assert last is not None, event
        position = load(last, fresh, fresh_optimizer)
        new = position.step == again and position.skipped == 1
        assert new or position.step == 2, (event, position)
        state = bits(tensors_of(fresh, fresh_optimizer))
        assert state in known[again if new else 2], (event, last)
        assert load(folder / "best", fresh, None).step in (1, again), event
        save(folder, policy, optimizer, Position("grpo", 4), keep=2, best=True)
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["best", f"step-00000{3 if new and again == 3 else 2}", "step-000004"], (event, names)
        found["new" if new else "old"] += 1
        shutil.rmtree(folder)
        if code == 0:
            return found | {"events": event}
        assert code == -signal.SIGKILL, code
        event += 1


def without_room(root: Path, act: Callable[[Path], object]) -> str:
    """What a user reads when no file may grow beyond 2 kB."""
    said = root / "said"

    def body() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            act(root / "before")
        except RunFailed as error:
            said.write_text(str(error))

    assert child(body) == 0
    return said.read_text()


def main(root: Path) -> dict[str, Any]:
    policy = build("lora")
    optimizer = optimizer_of(policy)
    before, known = root / "before", {}
    for step in (1, 2):
        train(policy, optimizer, range(step - 1, step))
        save(before, policy, optimizer, Position("grpo", step), keep=2, best=step == 1)
        known[step] = {bits(tensors_of(policy, optimizer))}
    train(policy, optimizer, range(2, 3))
    known[3] = {bits(tensors_of(policy, optimizer))}
    known[2] |= known[3]  # saved again as step 2
    run = (policy, optimizer)
    found = {"next": kills(root, run, 3, known), "same": kills(root, run, 2, known)}
    refused = without_room(root, lambda folder: save(folder, *run, Position("grpo", 3), keep=2))
    last = latest(before)
    assert last is not None and load(last, build("lora", seed=5), None).step == 2
    (root / "source").mkdir()
    no_model = without_room(root, lambda _: export(policy, root / "source", root / "model"))
    left = sorted(str(path.relative_to(root)) for folder in (root, before) for path in folder.iterdir())
    return found | {"no room": refused, "no model": no_model, "left": left}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(os.environ["STATE_FOLDER"]))))
