"""`locomo`: conversations of two people in the form of locomo10.json, one user each.

The user is the sample_id. speaker_a speaks as "user", speaker_b as "assistant", both by name. The
caption of an image is kept in the message; metadata keeps the dia_id, which evidence refers to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import tzinfo

from lightmem_core.formats.fields import kind
from lightmem_core.formats.rows import Rejected, message, rejected
from lightmem_core.types import Message

SESSION = re.compile(r"session_(\d{1,9})", re.ASCII)


def parse(record: object, source: str, timezone: tzinfo) -> Iterator[Message | Rejected]:
    conversation = record.get("conversation") if isinstance(record, dict) else None
    if not isinstance(record, dict) or not isinstance(conversation, dict):
        detail = (
            f"an item is an object with a conversation, the conversation is {kind(conversation)}"
        )
        yield rejected(source, "wrong_type", detail, record)
        return
    for session_id in sorted(filter(SESSION.fullmatch, conversation), key=number):
        turns = conversation[session_id]
        if turns is None:  # a column of Parquet that other conversations fill
            continue
        if not isinstance(turns, list):
            detail = f"{session_id} is {kind(turns)}, expected a list of messages"
            yield rejected(source, "wrong_type", detail, turns)
            continue
        place = {
            "user_id": record.get("sample_id"),
            "session_id": session_id,
            "timestamp": conversation.get(f"{session_id}_date_time"),
        }
        for position, turn in enumerate(turns):
            if isinstance(turn, dict):
                turn = {**place, "position": position, **said(turn, conversation)}
            yield message(turn, source, timezone)


def number(session_id: str) -> int:
    return int(session_id.removeprefix("session_"))


def said(turn: dict, conversation: dict) -> dict[str, object]:
    speaker, dia_id = turn.get("speaker"), turn.get("dia_id")
    replies = speaker == conversation.get("speaker_b") != conversation.get("speaker_a")
    role = "assistant" if replies else "user"
    return {
        "role": role if speaker else None,
        "name": speaker,
        "content": with_image(turn),
        "metadata": None if dia_id is None else {"dia_id": dia_id},
    }


def with_image(turn: dict) -> object:
    text, caption = turn.get("text"), turn.get("blip_caption")
    if text is not None and not isinstance(text, str):
        return text
    if isinstance(caption, str) and caption.strip():
        return f"{text or ''} [image: {caption.strip()}]".strip()
    if turn.get("img_url") and not (text or "").strip():
        return "[image]"
    return text
