"""What a language model was paid for online is not asked again after a crash."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lightmem_core import load_config
from lightmem_core.config import Component, Config, LLMConfig
from lightmem_core.llm.chat import ChatRequest, Reply
from lightmem_core.llm.echo import EchoChat
from lightmem_core.long_term import shard as shard_module
from lightmem_core.online.service import Incoming
from lightmem_core.online.writer import OnlineWriter
from lightmem_core.protocols import Tokenizer

FAKES = Path(__file__).parents[2] / "pipelines" / "configs" / "fakes.yaml"
ASKED: list[str] = []


class Counted(EchoChat):
    """Refuses what holds the text, until it is told otherwise."""

    refused = ""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(tokenizer, fails_on=Counted.refused or None)

    async def complete(self, request: ChatRequest) -> Reply:
        ASKED.append(request.messages[1]["content"])
        self.fails_on = Counted.refused or None
        return await super().complete(request)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setattr(Counted, "refused", "")
    config = load_config(FAKES, uri=str(tmp_path / "store"))
    llm = LLMConfig(use=f"{__name__}:Counted")
    asking = {"generator": Component(use="llm"), "llm": llm, "buffer_tokens": 12}
    ASKED.clear()
    yield config.model_copy(update={"memory": config.memory.model_copy(update=asking)})
    ASKED.clear()


def said(number: int) -> list[Incoming]:
    return [Incoming("user", f"I like number {at}", at) for at in range(number)]


def test_replies_outlive_the_process_until_they_are_stored(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    first = OnlineWriter(config, wait_s=0)
    first.add("ada", "s1", said(6))

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_module.Shard, "insert", die)
        with pytest.raises(KeyboardInterrupt):
            first.flush("ada")
    asked = len(ASKED)
    assert asked == 2
    first.shared.hold.release()
    second = OnlineWriter(config, wait_s=0)
    second.add("ada", "s1", said(7))
    assert second.flush("ada") == 7
    assert len(ASKED) == asked + 1  # for the message that came later
    entries = second.shared.store.shards[0].entries_of(["ada"])
    assert sorted(e.text for e in entries) == [m.content for m in said(7)]
    assert second.shared.counts["calls"] == 3
    assert second.shared.replies.tables[0].count_rows() == 0
    second.close()


def test_what_a_model_refused_is_asked_for_again(config: Config, monkeypatch: pytest.MonkeyPatch):
    writer = OnlineWriter(config, wait_s=0)
    monkeypatch.setattr(Counted, "refused", "number 4")
    writer.add("ada", "s1", said(6))
    assert writer.flush("ada") == 5
    (reason,) = {m.reason for m in writer.shared.inbox_for("ada").waiting("ada")}
    assert reason.startswith("llm_rejected")
    monkeypatch.setattr(Counted, "refused", "")
    assert writer.flush("ada") == 1
    assert writer.status().waiting == 0
    writer.close()
