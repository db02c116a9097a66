"""Where the time of a real backfill goes: the share of CPU inside the models' forward passes.

    make bench-models LOCOMO=path/to/locomo10.json

LoCoMo is not shipped (CC BY-NC 4.0).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from measure import environment, run_measured
from timed_models import FOLDER


def run_one(source: str, store: str) -> None:
    from lightmem_core.config import Component, Config, MemoryConfig, StoreConfig
    from lightmem_pipelines.backfill import BackfillRequest, backfill

    memory = MemoryConfig(
        segmenter=Component(use="timed_models:TimedSegmenter"),
        embedder=Component(use="timed_models:TimedEmbedder"),
        store=StoreConfig(uri=store),
    )
    run = backfill(Config(memory=memory), BackfillRequest((source,), progress=False))
    print(json.dumps(run.report))


def main() -> None:
    if len(sys.argv) == 3:
        run_one(*sys.argv[1:])
        return
    if len(sys.argv) != 2:
        sys.exit("usage: make bench-models LOCOMO=path/to/locomo10.json")
    with tempfile.TemporaryDirectory() as name:
        forward = Path(name, "forward")
        forward.mkdir()
        os.environ[FOLDER] = str(forward)
        here = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
        cost = run_measured([sys.executable, __file__, sys.argv[1], str(Path(name, "store"))])
        spent = sum((Counter(json.loads(f.read_text())) for f in forward.iterdir()), Counter())
    report = json.loads(cost.output.splitlines()[-1])
    messages = report["messages"]["read"]
    print(environment())
    print(
        f"{messages:,} messages, {report['tokens_before']:,} tokens, {report['entries']:,} entries"
    )
    print(f"{cost.cpu:.0f} CPU seconds, {cost.cpu / messages * 1000:.1f} ms a message")
    inside, pooling = spent["forward"], spent["pooling"]
    print(f"{inside:.0f} of them in forward passes: {inside / cost.cpu:.0%}", end=", ")
    print(f"{(inside - pooling) / cost.cpu:.0%} without what pools attention inside them")
    for name, step in report["steps"].items():
        print(f"  {name:<9}{step['seconds']:8.1f} s")


if __name__ == "__main__":
    main()
