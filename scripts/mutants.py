"""Measures the tests: makes small wrong changes to ``src``, one at a time, and counts those that a test notices.

Neither library serves. mutmut 3 leaves out decorated functions, class bodies, module constants and default values,
which hold this package's settings, puts its switches into the source that tests/rules read, and draws no samples.
cosmic-ray rewrites the source on disk and runs one fixed command in a new process for every change: it knows neither
which tests reach a line nor how to stop at the quickest, and 330 times our whole suite is a day.

First, every test file runs once under coverage, which tells the lines that each test reaches (kept in ``.mutants/``
until the source or the file changes). Then each drawn change runs, on a copy of ``src``, the tests that reach its line:
the quickest first, up to the first failure. Tests beyond ``--seconds`` are put off; survivors get them at the end, as
far as ``--minutes`` allows. A change whose tests were cut may count as unnoticed though a longer run would notice it:
the cap can lower the figure, never raise it. A test that hangs or a process that dies has noticed.

Survivors are judged by hand: ``python -m scripts.mutants --seed S --record`` writes them to
``benchmarks/results/mutants.json``, where each gets a verdict ("changes nothing", "harmless" or "hole") and a reason;
the same command again counts them. The figure is noticed / (all - changes nothing - harmless); what is unjudged is a
hole.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import platform
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts import mutant_changes
from scripts.mutant_changes import Change, package
from scripts.mutant_reach import CACHE, Reach, measured_reach, state_of
from scripts.mutant_runs import ROOT, Job, Result, run_all

SOURCE = ROOT / "src/perdure"
RESULTS = Path("benchmarks/results/mutants.json")
KEY = ("file", "scope", "operator", "before", "after")
UNNOTICED, UNREACHED = "unnoticed", "reached by no test"
VERDICTS = {"changes nothing": "changes nothing", "harmless": "harmless", "hole": "holes", "unjudged": "holes"}
FROM_OUTSIDE = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}  # perhaps for want of memory
COUNTS = ["changes", "noticed", "changes nothing", "harmless", "holes"]


def sources() -> dict[str, str]:
    """Text of every file below ``src/perdure``."""
    return {p.relative_to(SOURCE).as_posix(): p.read_text(encoding="utf-8") for p in sorted(SOURCE.rglob("*.py"))}


def plan(
    change: Change, reach: Reach, texts: dict[str, str], seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Tests to run, in order, with what each takes, and those that do not fit into ``seconds``.

    What runs at import is reached by every test, so those with a parameter of the module's name come first (they hold
    the settings of one method), then the tests of its function or class, of its file, of the files that import it.
    """
    lines = reach.lines.get(change.file, {})
    rings = [_of(lines, *change.lines)]
    if change.at_import:
        named = re.compile(rf"\[(.*\W)?{Path(change.file).stem}(\W.*)?\]")
        rings[:0] = [{test for test in reach.tests if named.search(test)}]
        rings += [_of(lines, *change.around), _of(lines, 0, math.inf)]
        module = "perdure." + change.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        uses = re.compile(rf"(from|import) ({module}|{module.rpartition('.')[0]}) ?(import|$)", re.MULTILINE)
        rings.append(
            {t for f, text in texts.items() if uses.search(text) for t in _of(reach.lines.get(f, {}), 0, math.inf)}
        )
    fit, left, spent, paid = {}, {}, 0.0, set()
    distance = {test: i for i, ring in reversed([*enumerate(rings)]) for test in ring}
    for test in sorted(distance, key=lambda t: _rank(t, distance[t], change, reach)):
        own, shared = reach.tests[test]
        cost = own + sum(reach.shared[name] for name in {*shared} - paid)
        if spent + cost <= seconds or not fit:
            fit[test], spent, paid = _cost(test, reach), spent + cost, paid | {*shared}
        else:
            left[test] = _cost(test, reach)
    return fit, left


def _of(lines: dict[int, set[str]], first: float, last: float) -> set[str]:
    return {test for line, tests in lines.items() if first <= line <= last for test in tests} - {""}


def _cost(test: str, reach: Reach) -> float:
    own, shared = reach.tests[test]
    return max(own, 0) + sum(reach.shared[name] for name in shared)


def _rank(test: str, distance: int, change: Change, reach: Reach) -> tuple[Any, ...]:
    """Near and quick ones first, by orders of magnitude; among equals by file, the change's own first."""
    cost, file = _cost(test, reach), test.partition("::")[0]
    slow = max(0, math.ceil(math.log10(max(cost, 1e-3) / 0.1)))
    return slow + distance, Path(change.file).stem not in file, file, cost, test


def measure(drawn: Sequence[Change], reach: Reach, path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs what has no record yet in ``path``, then the tests that were put off, as far as there is time."""
    start, texts = time.monotonic(), sources()
    records = (
        {(r["file"], *r["place"]): r for r in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
        if path.exists()
        else {}
    )

    def keep(record: dict[str, Any]) -> None:
        records[(record["file"], *record["place"])] = record
        with open(path, "a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        if record["outcome"] in (UNNOTICED, UNREACHED):
            print(f"{len(records)}/{len(drawn)} {told(record)}", flush=True)

    def job(change: Change, now: dict[str, float], later: dict[str, float]) -> Job:
        text, before, after = mutant_changes.made(texts[change.file], change)
        record = {"file": change.file, "line": change.line, "scope": change.scope, "operator": change.operator}
        record |= {"before": before, "after": after, "place": change.place, "left": len(later)}
        files = sorted({test.partition("::")[0] for test in now})
        return Job(
            "-".join(map(str, (Path(change.file).stem, *change.place))), files, now, (change.file, text), about=record
        )

    def first() -> Iterator[Job]:
        for change in drawn:
            if (change.file, *change.place) not in records:
                made = job(change, *plan(change, reach, texts, args.seconds))
                if made.wanted:
                    yield made
                else:
                    keep(made.about | {"outcome": UNREACHED, "by": "", "tests": 0, "seconds": 0.0})

    def put_off() -> Iterator[Job]:
        open_ = [c for c in drawn if (r := records[(c.file, *c.place)])["outcome"] == UNNOTICED and r["left"]]
        plans = {c: plan(c, reach, texts, args.seconds)[1] for c in open_}
        for change in sorted(open_, key=lambda c: sum(plans[c].values())):
            if time.monotonic() - start + 1.5 * sum(plans[change].values()) < 60 * args.minutes:
                yield job(change, plans[change], {})

    for jobs in (first(), put_off()):
        for result in run_all(jobs, args.workers):
            earlier = records.get((result.job.about["file"], *result.job.about["place"]), {"tests": 0, "seconds": 0.0})
            keep(result.job.about | outcome(result, earlier))
    return [records[(c.file, *c.place)] for c in drawn]


def outcome(result: Result, earlier: dict[str, Any]) -> dict[str, Any]:
    """How a run ended, and by which test."""
    if (result.code == 70 and not result.report) or -result.code in FROM_OUTSIDE:
        raise SystemExit(f"The run of {told(result.job.about)} broke (exit code {result.code}):\n{result.output}")
    if result.code in (0, 5):
        how = UNNOTICED
    else:
        how = "noticed" if result.code > 0 else f"noticed: ended by signal {-result.code}"
    tests = earlier["tests"] + sum(seconds > 0 for seconds, _ in result.report.get("tests", {}).values())
    by = ", ".join(result.report.get("failed", []))
    return {"outcome": how, "by": by, "tests": tests, "seconds": round(earlier["seconds"] + result.seconds, 1)}


def told(record: dict[str, Any]) -> str:
    """A change for people to read."""
    head = f"{record['file']}:{record['line']} {record['operator']}, {record.get('outcome', 'running')}"
    before, after = (record[k].replace("\n", "\n      ") for k in ("before", "after"))
    return f"{head} after {record.get('tests', 0)} tests, {record['left']} left\n    - {before}\n    + {after}"


def counted(records: Sequence[dict[str, Any]], survivors: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """By package: changes, how many were noticed, and the verdicts on the others."""
    table: dict[str, Counter[str]] = {}
    for record in records:
        row = table.setdefault(package(record["file"]), Counter(dict.fromkeys(COUNTS, 0)))
        row["changes"] += 1
        row["noticed"] += record["outcome"].startswith("noticed")
    for record in survivors:
        table[package(record["file"])][VERDICTS[record["verdict"]]] += 1
    return {name: dict(row) for name, row in sorted(table.items())}


def share(row: dict[str, int]) -> float:
    """Noticed of the changes that matter; NaN if none does."""
    matter = row["noticed"] + row["holes"]
    return row["noticed"] / matter if matter else math.nan


def judged(records: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The survivors, with the verdicts known from earlier."""
    verdicts = {tuple(r[k] for k in KEY): (r["verdict"], r["reason"]) for r in known}
    out = []
    for r in sorted(records, key=lambda r: (r["file"], r["line"])):
        if not r["outcome"].startswith("noticed"):
            verdict, reason = verdicts.get(tuple(r[k] for k in KEY), ("unjudged", ""))
            kept = {k: r[k] for k in ("file", "line", *KEY[1:], "outcome", "tests", "left")}
            out.append(kept | {"verdict": verdict, "reason": reason})
    return out


def table(packages: dict[str, dict[str, int]]) -> str:
    """One row per package, and one for all."""
    rows = {f"`{name}`": row for name, row in packages.items()}
    rows["together"] = {k: sum(row[k] for row in packages.values()) for k in COUNTS}
    lines = ["| package | " + " | ".join(COUNTS) + " | noticed of those that matter |"]
    lines.append("|---|" + "---:|" * (len(COUNTS) + 1))
    for name, row in rows.items():
        last = "–" if math.isnan(share(row)) else f"{100 * share(row):.0f} %"
        lines.append(f"| {name} | " + " | ".join(str(row[k]) for k in COUNTS) + f" | {last} |")
    return "\n".join(lines)


def mutants_table() -> str:
    """The committed measurement, for REPRODUCE.md."""
    return table(json.loads(RESULTS.read_text(encoding="utf-8"))["packages"])


def survivors_again(known: Sequence[dict[str, Any]]) -> list[Change]:
    """The committed holes, found again in the source as it stands."""
    texts, out = sources(), []
    for record in known:
        if VERDICTS[record["verdict"]] == "holes" and record["file"] in texts:
            text = texts[record["file"]]
            alike = [c for c in mutant_changes.changes(record["file"], text)
                     if (c.scope, c.operator) == (record["scope"], record["operator"])]  # fmt: skip
            out += [c for c in alike if mutant_changes.made(text, c)[1:] == (record["before"], record["after"])][:1]
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Draws, runs, prints; writes the committed file if asked to."""
    parser = argparse.ArgumentParser(description="Counts the wrong changes to src that the tests notice.")
    parser.add_argument("--sample", type=int, default=330, help="changes to make")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other changes")
    parser.add_argument("--packages", default="", help="only these, with commas between; perdure: the files at the top")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument(
        "--seconds", type=float, default=40, help="of tests for one change, before the others are put off"
    )
    parser.add_argument("--minutes", type=float, default=25, help="after which no put-off tests are begun")
    parser.add_argument("--again", action="store_true", help="run the committed holes instead of a sample")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/mutants.json")
    args = parser.parse_args(argv)
    start = time.monotonic()
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"survivors": []}
    reach = measured_reach(args.workers)
    print(f"{len(reach.tests)} tests; failing without any change, not used: {reach.failed}", flush=True)
    found = [change for file, text in sources().items() for change in mutant_changes.changes(file, text)]
    asked = [c for c in found if not args.packages or package(c.file) in args.packages.split(",")]
    drawn = survivors_again(known["survivors"]) if args.again else mutant_changes.sample(asked, args.sample, args.seed)
    name = "again" if args.again else f"{args.sample}-{args.seed}-{args.packages}"
    records = measure(drawn, reach, CACHE / f"{state_of()}-{name}.jsonl", args)
    survivors = judged(records, known["survivors"])
    packages = counted(records, survivors)
    print(table(packages), f"\n{(time.monotonic() - start) / 60:.0f} minutes", flush=True)
    if args.record and not args.again:
        about = {"command": f"make mutants SAMPLE={args.sample} SEED={args.seed}", "only": args.packages}
        about |= {"date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "possible": len(asked)}
        about |= {"machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"}
        about |= {"seconds": round(sum(r["seconds"] for r in records)), "packages": packages, "survivors": survivors}
        RESULTS.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
