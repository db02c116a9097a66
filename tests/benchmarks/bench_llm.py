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
from typing import Any, NamedTuple

import yaml
from measure import environment

SHIPPED = Path(__file__).parents[2] / "pipelines" / "configs" / "openai.yaml"
ENDPOINT = Path(__file__).parents[1] / "llm_endpoint.py"
REFERENCE_MESSAGES = 5_882
# Calls and prompt tokens of the reference, by r and th. It was not measured at 0.7/768.
REFERENCE = {(0.7, 512): (321, 766_041), (0.7, 768): None, (0.8, 768): (243, 665_480)}
MOST_TOKENS = 0.4  # of the reference's
PLAN_OFF = 0.1
VALUES = 40  # of a time line


class Setting(NamedTuple):
    rate: float
    tokens: int
    concurrency: int

    def __str__(self) -> str:
        return f"r={self.rate} th={self.tokens}, {self.concurrency} in flight"


SETTINGS = [*(Setting(*key, 8) for key in REFERENCE), Setting(0.7, 512, 64)]


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


def config_of(setting: Setting, url: str, store: str) -> dict[str, Any]:
    """The shipped configuration, with its pools, around the local server."""
    tree = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    tree["memory"] |= {
        "compressor": {"use": "self-information", "options": {"rate": setting.rate}},
        "buffer_tokens": setting.tokens,
        "embedder": {"use": "hash"},
        "store": {"uri": store},
    }
    options = {"model": "echo", "base_url": url, "concurrency": setting.concurrency}
    tree["memory"]["llm"]["options"] = options
    return tree


def measure(args: argparse.Namespace, setting: Setting) -> list[str]:
    """Print what was asked; return what is not as it should be."""
    with endpoint(args.latency) as url, tempfile.TemporaryDirectory() as folder:
        config = config_of(setting, url, f"{folder}/store")
        task = {"source": str(args.locomo), "config": config, "samples": args.samples}
        command = [sys.executable, __file__, "--one", json.dumps(task)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        with urllib.request.urlopen(url.replace("/v1", "/stats")) as answer:
            stats = json.load(answer)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{setting}")
    wrong = show_cost(stats, found["report"], REFERENCE[setting.rate, setting.tokens])
    for plan in found["plans"]:
        off = show_plan(plan, stats)
    if off > PLAN_OFF:  # of the largest sample
        wrong.append(f"the plan was off by {off:.1%}")
    show_in_flight(stats["timeline"], setting.concurrency)
    sys.stdout.flush()
    return [f"{setting}: {problem}" for problem in wrong]


def show_cost(
    stats: dict[str, Any], report: dict[str, Any], reference: tuple[int, int] | None
) -> list[str]:
    asked, messages = stats["stages"]["extract"], report["messages"]
    system, data = asked["system_tokens"], asked["data_tokens"]
    total = system + data
    print(f"  messages       {messages['read']:,} read, {messages['stored']:,} stored")
    print(f"  calls          {asked['calls']:,}; paid twice {stats['repeated']}")
    print(f"  prompt tokens  {total:,}: {system:,} fixed, {data:,} of messages")
    print(f"  tokens out     {asked['completion_tokens']:,}")
    print(f"  per call       {system / asked['calls']:.0f} fixed + {data / asked['calls']:.0f}")
    print(f"  tokens of the messages  {report['tokens_before']:,}, {report['tokens_after']:,} kept")
    wrong = [f"{stats['repeated']} calls were paid twice"] if stats["repeated"] else []
    if reference is None:
        print("  reference      not measured")
        return wrong
    share = messages["read"] / REFERENCE_MESSAGES
    calls, tokens = reference[0] * share, reference[1] * share
    whole = "" if share == 1 else f" ({share:.1%} of {reference[0]:,} and {reference[1]:,})"
    print(f"  reference      {calls:,.0f} calls, {tokens:,.0f} prompt tokens{whole}")
    print(f"  ours of that   {asked['calls'] / calls:.0%} of calls, {total / tokens:.1%} of tokens")
    if asked["calls"] > calls:
        wrong.append("more calls than the reference")
    if total > MOST_TOKENS * tokens:
        wrong.append(f"more than {MOST_TOKENS:.0%} of the reference's tokens")
    return wrong


def show_plan(plan: list[float], stats: dict[str, Any]) -> float:
    """How far it was off, at most."""
    users, calls, tokens = plan
    asked = stats["stages"]["extract"]
    truth = asked["system_tokens"] + asked["data_tokens"]
    off = (calls / asked["calls"] - 1, tokens / truth - 1)
    print(
        f"  plan of {users:.0f} users  {calls:,.0f} calls ({off[0]:+.1%}), "
        f"{tokens:,.0f} prompt tokens ({off[1]:+.1%})"
    )
    return max(map(abs, off))


def show_in_flight(timeline: list[tuple[float, int]], concurrency: int) -> None:
    """As the server sees it, between the first and the last ten answers; the time line is of the
    whole run."""
    pairs = list(pairwise(timeline))
    ends = [after[0] for before, after in pairs if after[1] < before[1]]
    inside = [(b[0] - a[0], a[1]) for a, b in pairs if ends[9] <= a[0] and b[0] <= ends[-10]]
    spent = sum(seconds for seconds, _ in inside)
    mean = sum(seconds * n for seconds, n in inside) / spent
    full = sum(seconds for seconds, n in inside if n == concurrency) / spent
    print(
        f"  in flight      of {concurrency}: min {min(n for _, n in inside)}, "
        f"mean {mean:.2f}, all {full:.1%} of {spent:.0f} s"
    )
    line = [n for a, b in pairs for n in [a[1]] * round((b[0] - a[0]) * 1000)]
    step = -(-len(line) // VALUES)
    told = (statistics.median(line[at : at + step]) for at in range(0, len(line), step))
    print("  time line      " + " ".join(f"{n:.0f}" for n in told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("locomo", type=Path, nargs="?")
    parser.add_argument("--latency", type=float, default=6.0, help="mean seconds of a reply")
    parser.add_argument("--samples", type=int, nargs="*", default=[2, 50], help="users")
    parser.add_argument("--only", type=int, nargs="*", default=range(4), help="settings")
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
    wrong = [problem for number in args.only for problem in measure(args, SETTINGS[number])]
    sys.exit("\n".join(wrong) or None)


if __name__ == "__main__":
    main()
