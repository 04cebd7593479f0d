"""Settings as YAML: flat or by section, read with the line of every mistake, written with every field's help."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from grpo_fast.errors import BadSettings
from grpo_fast.train.aliases import ALIASES
from grpo_fast.train.fields import FIELDS, nearest, title
from grpo_fast.train.settings import SECTIONS, Settings

EXTRA = ("batch_unit",)  # keys that are no setting and no alias
COMMENT_COLUMN = 44


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of a file. A field's value is read as its type; an alias's is as YAML gave it."""

    name: str
    value: Any
    where: str  # file, line 3
    comment: str  # what follows the value on its line


def from_yaml(text: str, where: str) -> dict[str, Any]:
    """Values by name, flat; names that aliases know stay as they are written."""
    return {name: entry.value for name, entry in entries(text, where).items()}


def entries(text: str, where: str) -> dict[str, Entry]:
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.TagToken):  # even YAML's own crash PyYAML on values that are not theirs
                raise BadSettings(f"{where}, line {token.start_mark.line + 1}: a YAML tag (!) has no place in settings")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except BadSettings:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadSettings(f"{where}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise BadSettings(f"{where}: settings are lines of `name: value`")
    found: dict[str, Entry] = {}
    lines = text.split("\n")
    for key, line, value_node in _keys(node, where):
        if key in SECTIONS and (isinstance(value_node, yaml.MappingNode) or loaded[key] is None):
            inner = _keys(value_node, where) if isinstance(value_node, yaml.MappingNode) else []
            for name, inner_line, _ in inner:
                _refuse_unknown(name, f"{where}, line {inner_line}", section=key)
                _add(found, name, loaded[key][name], where, inner_line, lines)
        else:
            _refuse_unknown(key, f"{where}, line {line}")
            _add(found, key, loaded[key], where, line, lines)
    return found


def to_yaml(settings: Settings, *, defaults: bool = True, origins: Mapping[str, str] | None = None) -> str:
    """By section, with each field's help; `origins` adds where a value came from.

    Without `defaults` only what differs from them is written, for people to read.
    """
    written = []
    for section in SECTIONS:
        rows = []
        for field in (one for one in FIELDS.values() if one.section == section):
            value = getattr(getattr(settings, section), field.name)
            if not defaults and value == field.default:
                continue
            origin = (origins or {}).get(field.name)
            comment = field.help + (f" · {origin}" if origin else "")
            rows.append(f"  {field.name}: {_scalar(value)}".ljust(COMMENT_COLUMN) + f"  # {comment}")
        if rows:
            written.append("\n".join([f"# {title(section)}", f"{section}:", *rows]))
    return "\n\n".join(written) + "\n" if written else "{}\n"


def _keys(node: yaml.MappingNode, where: str) -> list[tuple[str, int, yaml.Node]]:
    found: dict[str, tuple[str, int, yaml.Node]] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
            raise BadSettings(f"{where}, line {line}: a setting's name is plain text")
        key = key_node.value
        if key in found:
            raise BadSettings(f"{where}, line {line}: {key} is set a second time (first in line {found[key][1]})")
        found[key] = (key, line, value_node)
    return list(found.values())


def _refuse_unknown(name: str, where: str, section: str | None = None) -> None:
    if section is None:
        known: Collection[str] = [*FIELDS, *ALIASES, *EXTRA]
    else:
        known = [field.name for field in FIELDS.values() if field.section == section]
    if name in known:
        return
    if section is None and name in SECTIONS:
        raise BadSettings(f"{where}: {name} is a section, not a setting: its settings stand below it, indented")
    if section and name in FIELDS:
        raise BadSettings(f"{where}: {name} belongs in {FIELDS[name].section}, not in {section}")
    hint = nearest(name, [*known, *FIELDS, *ALIASES])
    raise BadSettings(f"{where}: unknown setting {name}{hint or '; --print-settings lists all'}")


def _add(found: dict[str, Entry], name: str, value: Any, file: str, line: int, lines: list[str]) -> None:
    where = f"{file}, line {line}"
    if name in found:
        raise BadSettings(f"{where}: {name} is set a second time (first: {found[name].where})")
    if name in FIELDS:
        try:
            value = FIELDS[name].read(value)
        except BadSettings as error:
            raise BadSettings(f"{where}: {error}") from None
    comment = lines[line - 1].partition("  # ")[2].strip()
    found[name] = Entry(name, value, where, comment)


def _scalar(value: Any) -> str:
    texts = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    style = None if all(one.isprintable() for one in texts) else '"'  # the one style with an escape for everything
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()
