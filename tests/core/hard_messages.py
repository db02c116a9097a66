"""Messages that models stumble over, for the laws of compressors and segmenters."""

from hypothesis import strategies as st

JSON = '{"user": {"name": "Ada", "age": 36, "tags": ["a", "b"]}, "ok": true, "note": null}'
CODE = "def add(a, b):\n    return a + b  # both\n\nfor i in range(10):\n\tprint(add(i, 2 ** i))\n"
URL = "https://example.org/a/b?c=1&d=%20x#top"
CHINESE = "我昨天搬到了里斯本。你住在哪里？我想下个月去看你。"
ARABIC = "أين تسكن الآن؟ أعمل في لشبونة منذ عام 2020."
TALK = "I went to the river yesterday with 3 friends; we didn't swim. Where does Caroline live? "
HARD = {
    "json": JSON,
    "code": CODE,
    "url": URL,
    "chinese": CHINESE,
    "arabic": ARABIC,
    "emoji": "😀👍🏽👩‍👩‍👧🇵🇹",
    "thai": "ฉันย้ายไปลิสบอนเมื่อวานนี้",
    "combining": "e\u0301\u0302" * 20,
    "controls": "a\x00b\x07c\u200d",
    "tags": "<s>hello</s> [CLS] what [SEP] <mask> <|end|>",
    "marks": "▁▁ ##ing Ġthe ▁",
    "half-a-character": "I went \ud83d to \udc4d\ud83d the river",
}
LONG = {
    "talk": TALK * 1100,
    "one-word": "x" * 100_000,
    "spaces": " " * 100_000,
    "chinese": CHINESE * 4000,
    "emoji": "😀" * 100_000,
    "json": f"[{', '.join([JSON] * 1200)}]",
}
MESSAGES = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.sampled_from([*HARD.values(), *TALK.split(), ""]),
        st.lists(st.sampled_from(TALK.split()), max_size=40).map(" ".join),
    ),
    max_size=12,
)


def is_part(kept: str, text: str) -> bool:
    """Whether `kept` is `text` with some characters left out, white space aside."""
    remaining = iter(text)
    return all(character in remaining for character in kept if not character.isspace())
