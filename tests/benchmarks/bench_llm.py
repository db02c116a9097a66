"""What an extraction with a language model asks, beside the reference implementation.

    make bench-llm LOCOMO=path/to/locomo10.json

LoCoMo is not shipped (CC BY-NC 4.0). The model is a local server that takes its time, counts every
request and prompt token, and gives each message back as a fact. The reference was measured on all
ten conversations with such a stub; of a file with fewer its figures are shared out by messages.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import environment

ENDPOINT = Path(__file__).parents[1] / "llm_endpoint.py"
REFERENCE_MESSAGES = 5_882
# Calls and prompt tokens of the reference, by r and th. It was not measured at 0.7/768.
REFERENCE = {(0.7, 512): (321, 766_041), (0.7, 768): None, (0.8, 768): (243, 665_480)}
BATCH, BATCHES = 4, 8


@contextmanager
def endpoint(latency: float) -> Iterator[str]:
    command = [sys.executable, str(ENDPOINT), "--tokenizer", "minilm"]
    command += ["--latency", str(latency / 1.25), "--jitter", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def run_one(task: dict[str, Any]) -> None:
    """Plan and backfill, in this process and its Ray; print what both say."""
    from lightmem_core.config import Config
    from lightmem_pipelines.backfill import BackfillRequest, backfill
    from lightmem_pipelines.plan import PlanRequest, plan

    source = task["source"]
    config = Config.model_validate(task["config"])
    plans = [plan(config, PlanRequest((source,), users=users)) for users in task["samples"]]
    run = backfill(config, BackfillRequest((source,), progress=False))
    told = [[p.sampled, p.calls.expected, p.prompt_tokens.expected] for p in plans]
    print(json.dumps({"plans": told, "report": run.report}))


def config_of(rate: float, tokens: int, url: str, store: str, concurrency: int) -> dict[str, Any]:
    options = {"model": "echo", "base_url": url, "concurrency": concurrency}
    front = {"steps": ["compress", "segment", "buffer"], "cpus": 0.5}
    asking = {"steps": ["extract"], "cpus": 0.2, "batch_size": BATCH, "batches": BATCHES}
    return {
        "memory": {
            "compressor": {"use": "self-information", "options": {"rate": rate}},
            "buffer_tokens": tokens,
            "generator": {"use": "llm"},
            "llm": {"use": "openai", "options": options},
            "embedder": {"use": "hash"},
            "store": {"uri": store},
        },
        "pipelines": {"pools": [front, asking, {"steps": ["embed"], "cpus": 0.3}]},
    }


def measure(args: argparse.Namespace, rate: float, tokens: int) -> None:
    with endpoint(args.latency) as url, tempfile.TemporaryDirectory() as folder:
        config = config_of(rate, tokens, url, f"{folder}/store", args.concurrency)
        task = {"source": str(args.locomo), "config": config, "samples": args.samples}
        command = [sys.executable, __file__, "--one", json.dumps(task)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        with urllib.request.urlopen(url.replace("/v1", "/stats")) as answer:
            stats = json.load(answer)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\nr={rate} th={tokens}")
    show_cost(stats, found["report"], REFERENCE[rate, tokens])
    for plan in found["plans"]:
        show_plan(plan, stats)
    show_in_flight(stats["timeline"], args.concurrency)
    sys.stdout.flush()


def show_cost(
    stats: dict[str, Any], report: dict[str, Any], reference: tuple[int, int] | None
) -> None:
    asked, messages = stats["stages"]["extract"], report["messages"]
    system, data = asked["system_tokens"], asked["data_tokens"]
    total = system + data
    print(f"  messages       {messages['read']:,} read, {messages['stored']:,} stored")
    print(f"  calls          {asked['calls']:,}; paid twice {stats['repeated']}")
    print(f"  prompt tokens  {total:,}: {system:,} fixed, {data:,} of messages")
    print(f"  per call       {system / asked['calls']:.0f} fixed + {data / asked['calls']:.0f}")
    print(f"  tokens of the messages  {report['tokens_before']:,}, {report['tokens_after']:,} kept")
    if reference is None:
        print("  reference      not measured")
        return
    share = messages["read"] / REFERENCE_MESSAGES
    calls, tokens = reference[0] * share, reference[1] * share
    whole = "" if share == 1 else f" ({share:.1%} of {reference[0]:,} and {reference[1]:,})"
    print(f"  reference      {calls:,.0f} calls, {tokens:,.0f} prompt tokens{whole}")
    print(f"  ours of that   {asked['calls'] / calls:.0%} of calls, {total / tokens:.1%} of tokens")


def show_plan(plan: list[float], stats: dict[str, Any]) -> None:
    users, calls, tokens = plan
    asked = stats["stages"]["extract"]
    truth = asked["system_tokens"] + asked["data_tokens"]
    print(
        f"  plan of {users:.0f} users  {calls:,.0f} calls ({calls / asked['calls'] - 1:+.1%}), "
        f"{tokens:,.0f} prompt tokens ({tokens / truth - 1:+.1%})"
    )


def show_in_flight(timeline: list[tuple[float, int]], concurrency: int) -> None:
    """As the server sees it, between the first and the last ten answers."""
    pairs = list(pairwise(timeline))
    ends = [after[0] for before, after in pairs if after[1] < before[1]]
    inside = [(b[0] - a[0], a[1]) for a, b in pairs if ends[9] <= a[0] and b[0] <= ends[-10]]
    spent = sum(seconds for seconds, _ in inside)
    mean = sum(seconds * n for seconds, n in inside) / spent
    full = sum(seconds for seconds, n in inside if n == concurrency) / spent
    line = [n for seconds, n in inside for _ in range(round(seconds * 1000))]
    step = max(1, len(line) // 60)
    print(
        f"  in flight      of {concurrency}: min {min(n for _, n in inside)}, "
        f"median {statistics.median(line):.0f}, mean {mean:.2f}, all {full:.1%} of {spent:.0f} s"
    )
    told = (statistics.median(line[at : at + step]) for at in range(0, len(line), step))
    print("  time line      " + " ".join(f"{n:.0f}" for n in told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("locomo", type=Path, nargs="?")
    parser.add_argument("--latency", type=float, default=6.0, help="mean seconds of a reply")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--samples", type=int, nargs="*", default=[2, 50], help="users")
    parser.add_argument("--only", type=int, nargs="*", default=(0, 1, 2), help="settings")
    parser.add_argument("--one", type=json.loads)
    args = parser.parse_args()
    if args.one:
        run_one(args.one)
        return
    if args.locomo is None or not args.locomo.is_file():
        sys.exit("usage: make bench-llm LOCOMO=path/to/locomo10.json")
    print(f"{environment()}, openai {version('openai')}")
    print(
        f"replies take {args.latency:g} s on average; tokens are those of MiniLM's tokenizer",
        flush=True,
    )
    for number, (rate, tokens) in enumerate(REFERENCE):
        if number in args.only:
            measure(args, rate, tokens)


if __name__ == "__main__":
    main()
