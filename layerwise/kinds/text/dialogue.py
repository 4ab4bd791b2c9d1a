"""Conversations in the shapes they come in, to one: a list of {"role", "content"}.

OpenAI's `messages`, ShareGPT's `conversations` (from, value), Alpaca's instruction, input and
output, the dialogues of HH-RLHF ("Human: ... Assistant: ..."). A tool that is called becomes
`tool_calls` of the assistant's message, its answer a message of the role "tool".
"""

import json
import re
from contextlib import suppress
from typing import Any

from layerwise.data.delimited import Row

Messages = list[Row]
ROLES = {
    **dict.fromkeys(("user", "human", "customer", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "model", "bot", "chatgpt", "ai", "bing", "bard"), "assistant"
    ),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "observation", "function", "tool_response", "function_response"), "tool"
    ),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant|System): ?")


class Aside(Exception):
    """A row that cannot be used, or only as `mended`: of which kind that is, and why in words."""

    def __init__(self, kind: str, reason: str, mended: Any = None):
        super().__init__(reason)
        self.kind, self.reason, self.mended = kind, reason, mended


def is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and any(isinstance(value.get(k), str) for k in ROLE_KEYS)
        and ("tool_calls" in value or any(k in value for k in CONTENT_KEYS))
    )


def is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_message, value))


def is_dialogue(value: Any) -> bool:
    """Text of the form "Human: ... Assistant: ...", as HH-RLHF has it."""
    said = isinstance(value, str) and "\n\nAssistant:" in value
    return said and bool(re.match(r"\s*Human: ?", value))


def messages_of(value: Any) -> Messages:
    """A conversation of any shape as messages. Errors: Aside for an unknown role."""
    if isinstance(value, str):
        return dialogue(value) if is_dialogue(value) else [{"role": "user", "content": value}]
    return [_message(message) for message in (value if isinstance(value, list) else [value])]


def _message(message: Any) -> Row:
    if not isinstance(message, dict):
        raise Aside("role", f"a message is {str(message)[:40]!r}, without a role")
    said = next((message[k] for k in ROLE_KEYS if isinstance(message.get(k), str)), "")
    role = ROLES.get(said.strip().lower())
    content = next((message[k] for k in CONTENT_KEYS if message.get(k) is not None), "")
    if role is None:
        raise Aside("role", f"the role '{said}' is none of user, assistant, system and tool")
    if role == "call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(content)}
    kept = {k: v for k, v in message.items() if k in ("tool_calls", "name", "tool_call_id") and v}
    return {"role": role, "content": content, **kept}


def _calls(content: str) -> list[Row]:
    try:
        read = json.loads(content)
    except ValueError:
        read = {"name": "", "arguments": content}
    calls = read if isinstance(read, list) else [read]
    return [{"type": "function", "function": call} for call in calls]


def dialogue(text: str) -> Messages:
    """HH-RLHF's text to messages."""
    parts = TURN.split(text)  # before, role, content, role, content ...
    return [
        {"role": ROLES[role.lower().replace("human", "user")], "content": content.strip("\n")}
        for role, content in zip(parts[1::2], parts[2::2], strict=True)
    ]


def messages_row(raw: Row, column: str) -> Row:
    """A row of the form "messages"; its tools and its verdict go with it."""
    if not raw.get(column):
        raise Aside("empty", "no messages")
    messages = messages_of(raw[column])
    if isinstance(raw.get("system"), str) and raw["system"] and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": raw["system"]})
    if not any(m["content"] or m.get("tool_calls") for m in messages):
        raise Aside("empty", "no message says anything")
    return {"messages": messages, **_besides(raw)}


def _besides(raw: Row) -> Row:
    out = {}
    if tools := raw.get("tools"):
        with suppress(ValueError):
            tools = json.loads(tools) if isinstance(tools, str) else tools
        out["tools"] = tools
    if isinstance(raw.get("label"), bool):
        out["label"] = raw["label"]
    return out


def alpaca_row(raw: Row) -> Row:
    """instruction, input, output (and system, history) as prompt and completion."""
    prompt = instruction(raw)
    completion = raw.get("output") or raw.get("response") or ""
    if not prompt.strip() or not str(completion).strip():
        raise Aside("empty", "no instruction, or no output")
    system, history = raw.get("system"), raw.get("history") or []
    if not system and not history:
        return {"prompt": prompt, "completion": completion}
    before = [{"role": "system", "content": system}] if system else []
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise Aside("empty", f"a turn of its history is no question and answer: {turn!r:.60}")
        asked, said = turn
        before += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {
        "prompt": [*before, {"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def instruction(raw: Row) -> str:
    parts = [str(raw.get(k) or "") for k in ("instruction", "context", "input")]
    return "\n".join(part for part in parts if part.strip())


def completion_row(raw: Row, prompt: str, completion: str) -> Row:
    asked, said = raw.get(prompt), raw.get(completion)
    if not asked or not said or not str(asked).strip() or not str(said).strip():
        raise Aside("empty", f"no {prompt if not asked else completion}")
    asked, said = (
        messages_of(v) if is_conversation(v) else v if isinstance(v, list) else str(v)
        for v in (asked, said)
    )
    return {"prompt": asked, "completion": said, **_besides(raw)}


def preference_row(raw: Row, prompt: str, chosen: str, rejected: str) -> Row:
    """prompt, chosen and rejected: all texts, or all messages where one of them is.

    Where chosen and rejected are whole conversations, the prompt is what they begin with alike.
    """
    good, bad = raw.get(chosen), raw.get(rejected)
    asked = instruction(raw) if prompt == "instruction" else raw.get(prompt) if prompt else None
    if not good or not bad:
        raise Aside("empty", f"no {chosen if not good else rejected}")
    if good == bad:
        raise Aside("same", f"{chosen} and {rejected} are the same")
    if all(isinstance(v, str) and not is_dialogue(v) for v in (good, bad, asked or "")):
        return {"prompt": asked or "", "chosen": good, "rejected": bad}
    before, ours, theirs = messages_of(asked) if asked else [], _answer(good), _answer(bad)
    if not before:
        both = enumerate(zip(ours, theirs, strict=False))
        alike = next((i for i, (a, b) in both if a != b), min(len(ours), len(theirs)) - 1)
        before, ours, theirs = ours[:alike], ours[alike:], theirs[alike:]
    if not ours or not theirs or not before:
        raise Aside("empty", "no answer after what both begin with")
    return {"prompt": before, "chosen": ours, "rejected": theirs, **_besides(raw)}


def _answer(value: Any) -> Messages:
    """Messages; a bare text beside conversations is the assistant's."""
    if isinstance(value, str) and not is_dialogue(value):
        return [{"role": "assistant", "content": value}]
    return messages_of(value)
