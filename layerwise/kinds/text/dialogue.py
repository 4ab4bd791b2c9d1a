"""Conversations in the shapes they come in, to one: a list of {"role", "content"}.

OpenAI's `messages`, ShareGPT's `conversations` (from, value), Alpaca's instruction, input and
output, the dialogues of HH-RLHF ("Human: ... Assistant: ..."). A call of a tool becomes
`tool_calls` of the assistant's message, its answer a message of the role "tool".
"""

import json
import re
from contextlib import suppress
from typing import Any

from layerwise.data.delimited import Row
from layerwise.kinds.text.layouts import Aside, Made, empty

Messages = list[Row]
_NAMES = {
    "user": "user human customer prompter",
    "assistant": "assistant gpt model bot chatgpt ai bing bard",
    "system": "system developer",
    "tool": "tool observation function tool_response function_response",
    "call": "function_call tool_call",
}
ROLES = {name: role for role, names in _NAMES.items() for name in names.split()}
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant|System): ?")
ALPACA = ("instruction", "context", "input", "output", "response", "system", "history")


def is_message(value: Any) -> bool:
    has_role = isinstance(value, dict) and any(isinstance(value.get(k), str) for k in ROLE_KEYS)
    return has_role and any(k in value for k in ("tool_calls", *CONTENT_KEYS))


def is_conversation(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def is_dialogue(value: Any) -> bool:
    """Text of the form "Human: ... Assistant: ...", as in HH-RLHF."""
    said = isinstance(value, str) and "\n\nAssistant:" in value
    return said and bool(re.match(r"\s*Human: ?", value))


def unreadable(*conversations: object) -> Aside | None:
    """What to say where a message has no role, or an unknown one; None where all can be read."""
    for message in (m for v in conversations if not isinstance(v, str) for m in _each(v)):
        if not isinstance(message, dict):
            return Aside("role", f"a message is {str(message)[:40]!r}, without a role")
        if (said := _said_role(message)).strip().lower() not in ROLES:
            return Aside("role", f"the role '{said}' is none of user, assistant, system and tool")
    return None


def messages_of(value: object) -> Messages:
    """A conversation of any shape that is not `unreadable` as messages."""
    if not isinstance(value, str):
        return [_message(message) for message in _each(value)]
    return dialogue(value) if is_dialogue(value) else [{"role": "user", "content": value}]


def _each(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _said_role(message: Row) -> str:
    return next((message[k] for k in ROLE_KEYS if isinstance(message.get(k), str)), "")


def _message(message: Row) -> Row:
    role = ROLES[_said_role(message).strip().lower()]
    content = next((message[k] for k in CONTENT_KEYS if message.get(k) is not None), "")
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(content)}
    kept = {k: v for k, v in message.items() if k in ("tool_calls", "name", "tool_call_id") and v}
    return {"role": role, "content": content, **kept}


def _calls(content: str) -> list[Row]:
    try:
        read = json.loads(content)
    except ValueError:
        read = {"name": "", "arguments": content}
    return [{"type": "function", "function": call} for call in _each(read)]


def dialogue(text: str) -> Messages:
    """HH-RLHF's text to messages."""
    _, *parts = TURN.split(text)  # role, content, role, content ...
    return [
        {"role": ROLES[role.lower()], "content": content.strip("\n")}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


# ---- rows ----------------------------------------------------------------------------------------
def messages_row(raw: Row, column: str) -> Made:
    """A row of the form "messages"; its tools and its verdict go with it."""
    if not raw.get(column):
        return Aside("empty", "no messages")
    if fault := unreadable(raw[column]):
        return fault
    messages, system = messages_of(raw[column]), raw.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if not any(m["content"] or m.get("tool_calls") for m in messages):
        return Aside("empty", "no message says anything")
    return {"messages": messages, **_besides(raw)}


def _besides(raw: Row) -> Row:
    """The tools and the verdict (good or bad) that a row brings along."""
    tools, verdict = raw.get("tools"), raw.get("label")
    with suppress(ValueError):
        tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    given = {"tools": tools} if raw.get("tools") else {}
    return given | ({"label": verdict} if isinstance(verdict, bool) else {})


def alpaca_row(raw: Row) -> Made:
    """ALPACA's columns as prompt and completion."""
    prompt, completion = instruction(raw), raw.get("output") or raw.get("response") or ""
    if not prompt.strip() or not str(completion).strip():
        return Aside("empty", "no instruction, or no output")
    system, history = raw.get("system"), raw.get("history") or []
    if not system and not history:
        return {"prompt": prompt, "completion": completion}
    before = [{"role": "system", "content": system}] if system else []
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            return Aside("empty", f"a turn of its history is not question and answer: {turn!r:.60}")
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    answer = [{"role": "assistant", "content": completion}]
    return {"prompt": [*before, {"role": "user", "content": prompt}], "completion": answer}


def instruction(raw: Row) -> str:
    parts = [str(raw.get(k) or "") for k in ("instruction", "context", "input")]
    return "\n".join(part for part in parts if part.strip())


def completion_row(raw: Row, prompt: str, completion: str) -> Made:
    values = {"prompt": raw.get(prompt), "completion": raw.get(completion)}
    talks = {name: value for name, value in values.items() if is_conversation(value)}
    if fault := empty(raw, prompt, completion) or unreadable(*talks.values()):
        return fault
    kept = {name: v if isinstance(v, list) else str(v) for name, v in values.items()}
    return kept | {name: messages_of(v) for name, v in talks.items()} | _besides(raw)


def preference_row(raw: Row, prompt: str, chosen: str, rejected: str) -> Made:
    """prompt, chosen and rejected: all texts, or all messages where one of them is.

    Where chosen and rejected are whole conversations, the prompt is what they begin with alike.
    """
    if fault := empty(raw, chosen, rejected):
        return fault
    good, bad = raw[chosen], raw[rejected]
    asked = instruction(raw) if prompt == "instruction" else raw.get(prompt) if prompt else None
    if good == bad:
        return Aside("same_answers", f"{chosen} and {rejected} are the same")
    if not any(map(is_spoken, (good, bad, asked or ""))):
        return {"prompt": asked or "", "chosen": good, "rejected": bad}
    if fault := unreadable(asked or [], good, bad):
        return fault
    before, ours, theirs = messages_of(asked) if asked else [], _answer(good), _answer(bad)
    if not before:
        both = enumerate(zip(ours, theirs, strict=False))
        alike = next((i for i, (a, b) in both if a != b), min(len(ours), len(theirs)) - 1)
        before, ours, theirs = ours[:alike], ours[alike:], theirs[alike:]
    if not ours or not theirs or not before:
        return Aside("empty", "no answer after what both begin with")
    return {"prompt": before, "chosen": ours, "rejected": theirs, **_besides(raw)}


def is_spoken(value: object) -> bool:
    """Whether a value is made of messages, not a bare text."""
    return not isinstance(value, str) or is_dialogue(value)


def _answer(value: object) -> Messages:
    """Messages; a bare text beside conversations is the assistant's."""
    return messages_of(value) if is_spoken(value) else [{"role": "assistant", "content": value}]
