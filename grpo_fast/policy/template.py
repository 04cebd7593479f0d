"""Chat messages to the prompt's text, with one placeholder per image or video and none that a user typed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import jinja2

from grpo_fast.errors import BadCheckpoint, MissingChatTemplate, PromptMismatch
from grpo_fast.types import Sample

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Kind = Literal["image", "video"]


class PromptTemplate:
    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, chat_template: str | None = None
    ) -> None:
        if not chat_template and not tokenizer.chat_template:
            raise MissingChatTemplate(
                "the checkpoint has no chat template: add chat_template.jinja to its folder, or pass chat_template="
            )
        self.tokenizer = tokenizer
        self.chat_template = chat_template or tokenizer.get_chat_template()  # the default of several named ones
        self.image, self.video, self.vision_start, self.vision_end = (
            token_named(tokenizer, config, f"{name}_token_id")
            for name in ("image", "video", "vision_start", "vision_end")
        )
        self.placeholder = re.compile(f"({re.escape(self.image)})|{re.escape(self.video)}")

    def render(self, sample: Sample) -> str:
        messages = [as_template_reads(message) for message in sample.messages]
        if not messages:
            raise PromptMismatch(f"sample {sample.id!r} has no messages")
        for text in texts(messages):
            if typed := self.placeholder.search(text):
                raise PromptMismatch(
                    f"sample {sample.id!r}: a message's text contains {typed.group()}, which would be taken for a "
                    'picture; remove it, and give each picture as a {"type": "image"} or {"type": "video"} part'
                )
        continued = messages[-1].get("role") == "assistant"
        try:
            rendered = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
            )
        except (jinja2.TemplateError, ValueError) as error:
            raise PromptMismatch(f"sample {sample.id!r}: the chat template refuses its messages: {error}") from error
        text = cast(str, rendered)
        self.check_counts(text, sample)
        return text

    def kinds(self, text: str) -> list[Kind]:
        return ["image" if match.group(1) else "video" for match in self.placeholder.finditer(text)]

    def check_counts(self, text: str, sample: Sample) -> None:
        kinds = self.kinds(text)
        counts: dict[Kind, int] = {"image": len(sample.images), "video": len(sample.videos)}
        for kind, given in counts.items():
            if (wanted := kinds.count(kind)) != given:
                raise PromptMismatch(
                    f"sample {sample.id!r}: its messages render to {wanted} {kind} placeholder(s), but it has {given} "
                    f'{kind}(s); there must be one {{"type": "{kind}"}} part for each'
                )


def token_named(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, name: str) -> str:
    index = getattr(config, name, None)
    token = None if index is None or index >= len(tokenizer) else tokenizer.convert_ids_to_tokens(index)
    if not isinstance(token, str):
        raise BadCheckpoint(f"config.{name} = {index} is not a token of this tokenizer ({len(tokenizer)} tokens)")
    return token


def as_template_reads(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without the None-valued keys that columnar storage adds: templates ask `'image' in part`."""
    plain = {key: value for key, value in message.items() if value is not None}
    if isinstance(plain.get("content"), list | tuple):
        plain["content"] = [
            {key: value for key, value in part.items() if value is not None} for part in plain["content"]
        ]
    return plain


def video_parts(sample: Sample) -> list[Mapping[str, Any]]:
    contents = [message.get("content") for message in sample.messages]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    return [part for part in parts if part.get("type") == "video"]


def texts(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message.get("content", "")
        for part in [{"text": content}] if isinstance(content, str) else content:
            yield str(part.get("text", ""))
