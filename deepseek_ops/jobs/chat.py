"""Conversations as token ids: rendered by the tokenizer's chat template, with the answers marked.

A conversation is a list of messages ``{"role", "content"}``. The template decides everything between them, so where an
answer starts and ends is found by rendering: with the generation prompt before it, and with it. Both sides of such a
border are tokenised on their own, as they are when a server appends an answer to a prompt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MESSAGES = "messages"
ANSWERING = "assistant"
TEMPLATE_FILE = "chat_template.jinja"
DEFAULT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
<\N{FULLWIDTH VERTICAL LINE}Assistant\N{FULLWIDTH VERTICAL LINE}>{{ message['content'] }}{{ eos_token }}
{%- elif message['role'] == 'user' -%}
<\N{FULLWIDTH VERTICAL LINE}User\N{FULLWIDTH VERTICAL LINE}>{{ message['content'] }}
{%- else -%}
{{ message['content'] }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<\N{FULLWIDTH VERTICAL LINE}Assistant\N{FULLWIDTH VERTICAL LINE}>{%- endif -%}
"""
"""The turns of DeepSeek-V3, for tokenizers that bring no template of their own."""

Message = Mapping[str, JsonValue]
Part = tuple[str, bool]
"""A piece of a rendered conversation, and whether it is an answer."""


@dataclass(eq=False)
class ChatTemplateError(PermanentError):
    """A chat template cannot render a conversation, or not so that its answers can be found."""

    conversation: str
    problem: str

    def __str__(self) -> str:
        return (
            f"conversation {self.conversation}: the tokenizer's chat template fails on it: {self.problem}; "
            f"correct its messages, or {TEMPLATE_FILE} in the tokenizer's folder."
        )


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sample: token ids and, for each, whether it is part of an answer."""

    ids: list[int]
    answers: list[bool]


def messages_problem(value: JsonValue) -> str:
    """Return what is wrong with the ``messages`` of a document, or an empty text."""
    if not isinstance(value, list) or not value:
        return "its messages are no list of {role, content}"
    for at, message in enumerate(value):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            return f"message {at} lacks a role or a content that is a string"
    if not any(isinstance(message, dict) and message["role"] == ANSWERING for message in value):
        return f"none of its messages has the role {ANSWERING}: there is nothing to learn"
    return ""


def transcript(messages: Sequence[Mapping[str, JsonValue]]) -> str:
    """Return the conversation as text for people, checks and comparisons."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


class ChatRenderer:
    """Renders conversations with the chat template of a tokenizer folder.

    A folder without a template gets DEFAULT_TEMPLATE as ``chat_template.jinja``: it travels with the model, so that it
    is served as it was trained. ``is_default`` says so.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        from transformers import AutoTokenizer

        self._own = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._tokenizer = tokenizer
        self.is_default = not self._own.chat_template
        if self.is_default:
            (folder / TEMPLATE_FILE).write_text(DEFAULT_TEMPLATE, encoding="utf-8", newline="\n")
            self._own.chat_template = DEFAULT_TEMPLATE
        added = tokenizer.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)

    def render(self, conversation: str, messages: Sequence[Message]) -> list[Rendered]:
        """Return the samples of a conversation: one, or one per answer where the template rewrites earlier turns.

        Raises ChatTemplateError naming ``conversation``.
        """
        return [self._encoded(parts) for parts in self._samples(conversation, messages)]

    def _samples(self, name: str, messages: Sequence[Message]) -> list[list[Part]]:
        turns = [
            self._turn(name, messages[: at + 1]) for at, message in enumerate(messages) if message["role"] == ANSWERING
        ]
        whole = self._text(name, messages)
        ends = [0, *(len(text) for _, text in turns)]
        if all(whole.startswith(text) and start >= end for (start, text), end in zip(turns, ends, strict=False)):
            return [
                [part for (start, text), end in zip(turns, ends, strict=False) for part in _parts(text, end, start)]
            ]
        return [list(_parts(text, 0, start)) for start, text in turns]

    def _turn(self, name: str, messages: Sequence[Message]) -> tuple[int, str]:
        """Return the text of a conversation that ends with an answer, and where in it the answer starts."""
        text, before = self._text(name, messages), self._text(name, messages[:-1])
        prompt = self._text(name, messages[:-1], prompt=True)
        # Some prompts end with an opening that the template leaves out of answers, such as <think>.
        start = len(os.path.commonprefix([prompt, text]))  # noqa: RUF071  (of characters is what is meant)
        if not text.startswith(before) or start < len(before) or start == len(text):
            raise ChatTemplateError(name, f"it does not end with the answer {str(messages[-1]['content'])[:40]!r}")
        return start, text

    def _text(self, name: str, messages: Sequence[Message], *, prompt: bool = False) -> str:
        from jinja2 import TemplateError

        if not messages and not prompt:
            return ""
        try:
            return str(
                self._own.apply_chat_template(
                    [dict(message) for message in messages], tokenize=False, add_generation_prompt=prompt
                )
            )
        except (TemplateError, TypeError, ValueError, IndexError, KeyError) as error:
            raise ChatTemplateError(name, str(error)) from error

    def _encoded(self, parts: Sequence[Part]) -> Rendered:
        ids: list[int] = []
        answers: list[bool] = []
        for text, is_answer in parts:
            found = self._tokenizer.encode(text, add_special_tokens=False).ids
            # A turn ends with its special token; the line break that some templates write after it is not learned.
            ends = [at + 1 for at, number in enumerate(found) if number in self._special]
            learned = (ends[-1] if ends else len(found)) if is_answer else 0
            ids += found
            answers += [at < learned for at in range(len(found))]
        return Rendered(ids, answers)


def _parts(text: str, begin: int, start: int) -> tuple[Part, Part]:
    return (text[begin:start], False), (text[start:], True)
