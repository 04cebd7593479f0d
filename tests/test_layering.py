"""The house: imports run one way, and `import grpo_fast` stays light. See CONTRIBUTING.md for the picture."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

GROUND = frozenset({"types", "config", "errors", "rowstats", "libraries"})
SERVICES = frozenset({"policy", "rollout", "rewards", "data"})
PROGRAMS = frozenset({"train", "evaluate", "generate", "datacli", "synth", "report", "matrix", "compare"})
LOWEST = frozenset({"kernels", "native"})
BELOW_SERVICES = frozenset({"losses", "ops"}) | LOWEST

# room: what it may import beside itself and the ground; "api" is grpo_fast/__init__.py
ALLOWED: dict[str, frozenset[str]] = {
    **dict.fromkeys(GROUND | LOWEST, frozenset()),
    "ops": LOWEST,
    "losses": frozenset({"ops"}) | LOWEST,
    **dict.fromkeys(SERVICES, BELOW_SERVICES),
    "rollout": BELOW_SERVICES | {"policy"},
    **dict.fromkeys(PROGRAMS, BELOW_SERVICES | SERVICES | PROGRAMS | {"api"}),
    **dict.fromkeys(("cli", "doctor", "__main__"), BELOW_SERVICES | SERVICES | PROGRAMS | {"api", "cli", "doctor"}),
    "integrations": frozenset({"losses", "ops", "policy", "api"}),
    "api": frozenset({"losses", "ops"}),
}
HEAVY = {"transformers", "triton", "trl", "peft", "PIL", "rich", "matplotlib", "datasets", "accelerate"}


class Import(NamedTuple):
    file: Path
    line: int
    module: str
    at_import: bool  # runs when the file is imported, and not only for type checkers


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "api"


def files() -> list[Path]:
    return sorted(p for folder in ("grpo_fast", "kernels") for p in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """Files reached through the link grpo_fast/kernels are listed under kernels/ (rglob follows no links)."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("grpo_fast", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_ours(module: str) -> bool:
    base = ROOT.joinpath(*module.split("."))
    return base.is_dir() or base.with_suffix(".py").is_file()


def imports_of(path: Path, package: str) -> Iterator[Import]:
    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(path, child.lineno, alias.name, at_import)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    outer = package.split(".")[: len(package.split(".")) - child.level + 1]
                    base = ".".join([*outer, *filter(None, [child.module])])
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    ours = base.split(".")[0] == "grpo_fast" and is_ours(full)
                    yield Import(path, child.lineno, full if ours else base, at_import)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), False)
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), at_import)
            else:
                later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, at_import and not later)

    yield from walk(ast.parse(path.read_text(encoding="utf-8"), str(path)), True)


def all_imports() -> list[Import]:
    found = []
    for path in files():
        module = module_of(path)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found += imports_of(path, package)
    return found


def against_the_picture(found: Import) -> str | None:
    source, top = room_of(module_of(found.file)), found.module.split(".")[0]
    where = f"{found.file.relative_to(ROOT)}:{found.line}"
    if top == "kernels":
        return f"{where} imports the top-level `kernels`; write grpo_fast.kernels"
    if top != "grpo_fast":
        return None
    target = room_of(found.module)
    if source not in ALLOWED:
        return f"{where} lies in a room that the picture does not know: {source}"
    if target == source or target in ALLOWED[source] or (target in GROUND and source not in GROUND):
        return None
    return f"{where}: {source} must not import {found.module}"


def test_imports_run_one_way() -> None:
    found = all_imports()
    assert len(found) > 50  # the walk sees the package
    wrong = [text for text in map(against_the_picture, found) if text]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "line", "allowed"),
    [
        ("grpo_fast/ops/x.py", "from grpo_fast.kernels import rows", True),
        ("grpo_fast/ops/x.py", "from grpo_fast import native", True),
        ("grpo_fast/losses/x.py", "from grpo_fast.config import LossOptions", True),
        ("grpo_fast/rollout/x.py", "import grpo_fast.policy", True),
        ("grpo_fast/cli.py", "from grpo_fast import GRPOLoss", True),
        ("grpo_fast/policy/x.py", "from grpo_fast import rollout", None),  # unless the room exists: then a wrong arrow
        ("grpo_fast/policy/x.py", "from grpo_fast.rollout.decode import sample", False),
        ("grpo_fast/ops/x.py", "from grpo_fast.losses import grpo", False),
        ("grpo_fast/ops/x.py", "def f():\n    from ..losses import grpo", False),
        ("grpo_fast/losses/x.py", "from grpo_fast import GRPOLoss", False),
        ("grpo_fast/config.py", "from grpo_fast.types import Sample", False),
        ("kernels/x.py", "from grpo_fast.ops import rows", False),
        ("kernels/x.py", "import kernels.rows", False),
        ("grpo_fast/attic/x.py", "from grpo_fast.types import Sample", False),
    ],
)
def test_the_walk_tells_right_from_wrong(
    file: str, line: str, allowed: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "x.py"
    source.write_text(line)
    (found,) = imports_of(source, module_of(ROOT / file).rpartition(".")[0])
    complaint = against_the_picture(found._replace(file=ROOT / file))
    assert complaint is not None if allowed is None else (complaint is None) == allowed


def test_integrations_import_third_parties_inside_functions() -> None:
    own = sys.stdlib_module_names | {"grpo_fast", "torch"}
    wrong = [
        f"{found.file.relative_to(ROOT)}:{found.line} imports {found.module} at the top"
        for found in all_imports()
        if room_of(module_of(found.file)) == "integrations" and found.at_import
        if found.module.split(".")[0] not in own
    ]
    assert not wrong, "\n".join(wrong)


def test_import_is_light() -> None:
    """What `import grpo_fast`, and then its public names, add to `import torch`: modules, and (printed) seconds."""
    script = (
        "import sys, time, torch\n"
        "before, start = set(sys.modules), time.perf_counter()\n"
        "def added(): print(f'{time.perf_counter() - start:.3f}', *sorted(set(sys.modules) - before))\n"
        "import grpo_fast\n"
        "added()\n"
        "for name in grpo_fast.__all__: getattr(grpo_fast, name)\n"
        "added()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    alone, with_names = (line.split() for line in done.stdout.splitlines())
    print(f"beyond torch: import grpo_fast {alone[0]} s, with every public name {with_names[0]} s")
    assert "grpo_fast" in alone
    assert not HEAVY & set(alone)
    assert not HEAVY - {"triton"} & set(with_names)  # torch's own flop counter loads triton where it is installed


def test_public_api_is_small() -> None:
    import grpo_fast

    assert len(grpo_fast.__all__) <= 10
    assert all(hasattr(grpo_fast, name) for name in grpo_fast.__all__)


def test_kernels_is_a_link_without_init() -> None:
    assert (ROOT / "grpo_fast" / "kernels").is_dir()
    assert not (ROOT / "kernels" / "__init__.py").exists()
