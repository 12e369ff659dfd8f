"""The measurement of the tests: which changes it makes, which tests it runs for them, and how it counts."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from scripts import mutant_changes, mutants
from scripts.mutant_changes import Change
from scripts.mutant_reach import Reach
from scripts.mutant_runs import Job, Result

ROOT = Path(__file__).parents[2]

CHANGED = [
    ("x = a < b", {"a <= b", "a >= b"}),
    ("x = a == b", {"a != b"}),
    ("x = a + b", {"a - b"}),
    ("x = a // b", {"a * b"}),
    ("x = a and b and c", {"a or b or c", "b and c", "a and c", "a and b"}),
    ("x = a or b", {"a and b", "b", "a"}),
    ("x = not a", {"a"}),
    ("x = -a", {"a"}),
    ("x = 3", {"4", "2"}),
    ("x = 0.5", {"1.0"}),
    ("x = 0.0", {"1.0"}),
    ("x = True", {"False"}),
    ("x = 'mean'", {"'mean_'"}),
    ("x = 'two words'", set()),
    ("x = None", set()),
    ("x = f'{a + b:.2f} left'", {"f'{a - b:.2f} left'"}),
    ("x = f(a, b, k=c)", {"f(b, a, k=c)", "f(a, b)"}),
    ("x = f(a, a)", set()),
    ("x = zip(a, strict=c)", set()),
    ("x = min(a)", {"max(a)"}),
    ("x = a.mean()", {"a.sum()"}),
    ("x = sorted(a)", {"a"}),
    ("x = a.clone()", {"a"}),
    ("x = a.T", {"a"}),
    ("x = a[b:c]", {"a[:c]", "a[b:]"}),
    ("x = [a, b]", {"[b]", "[a]"}),
    ("x = {a: b, **c}", {"{**c}", "{a: b}"}),
    ("x = a if b else c", {"a if not b else c"}),
    ("x = [a for a in b if c]", {"[a for a in b]"}),
]
STATEMENTS = [
    ("a.b = c", {"pass"}),
    ("a = f(a)", {"pass"}),
    ("a = f(b)", set()),
    ("a += b", {"a -= b", "pass"}),
    ("f()", {"pass"}),
    ("return a", {"return None"}),
    ("return None", set()),
    ("raise MyError('word', a + b)", {"pass", "raise MyError('word', a - b)"}),
    ("if a:\n    b", {"if not a:"}),
    ("for a in b:\n    continue", {"for a in []:", "pass"}),
    ("with a:\n    b", {"if True:"}),
    ("with a as b:\n    c", set()),
    ("try:\n    a\nexcept E:\n    b", {"except E: raise"}),
    ("@lru\n@property\ndef f():\n    b", {"@property\ndef f():"}),
    ("def f(a: int = 3) -> 4:\n    b", {"def f(a: int=4) -> 4:", "def f(a: int=2) -> 4:"}),
    ("a: Literal[3] = b", set()),
    ("'''Text.'''\nimport a\n__all__ = ['a']\nA = Literal['a']\nA: TypeAlias = Literal['a']", set()),
    ("if TYPE_CHECKING:\n    a()", set()),
    ("f(k=Field(description='word'))", {"pass", "f()"}),
]


def after(source: str) -> list[str]:
    """The changed statements of a source."""
    return [mutant_changes.made(source, c)[2] for c in mutant_changes.changes("a.py", source)]


@pytest.mark.parametrize(("source", "expected"), CHANGED, ids=lambda v: v if isinstance(v, str) else "")
def test_expressions_are_changed(source: str, expected: set[str]) -> None:
    assert sorted(after(source)) == sorted(f"x = {text}" for text in expected)


@pytest.mark.parametrize(("source", "expected"), STATEMENTS, ids=lambda v: v if isinstance(v, str) else "")
def test_statements_are_changed(source: str, expected: set[str]) -> None:
    assert sorted(after(source)) == sorted(expected)


def test_every_change_of_a_file_is_another_program() -> None:
    source = (ROOT / "src/perdure/modules/losses.py").read_text()
    made = [mutant_changes.made(source, c)[0] for c in mutant_changes.changes("modules/losses.py", source)]
    programs = {ast.dump(ast.parse(text)) for text in (source, *made)}
    assert len(programs) == len(made) + 1 > 20


def test_unchanged_parts_are_kept() -> None:
    """A changed file is written from its syntax tree, which must say all that the file says."""
    for path in ROOT.glob("src/perdure/**/*.py"):
        tree = ast.parse(path.read_text())
        assert ast.dump(ast.parse(ast.unparse(tree))) == ast.dump(tree), path


def test_a_change_knows_where_it_stands() -> None:
    source = "class A:\n    n = 1\n\n    def f(self,\n          k=2):\n        return (self.n\n                + k)\n"
    found = {(c.operator, c.line): c for c in mutant_changes.changes("data/a.py", source)}
    value, default, inside = found["constant", 2], found["constant", 5], found["arithmetic", 6]
    assert (value.scope, value.lines, value.around, value.at_import) == ("A", (2, 2), (1, 7), True)
    assert (default.scope, default.lines, default.around, default.at_import) == ("A", (4, 5), (4, 7), True)
    assert (inside.scope, inside.lines, inside.at_import) == ("A.f", (6, 7), False)


def test_a_sample_keeps_the_packages_shares() -> None:
    found = [
        Change(f"{package}/{i % 3}.py", i, "", operator, (i, i), (1, 9), False, (i, j))
        for package, n in (("data", 60), ("eval", 20), ("run", 20))
        for i in range(n)
        for j, operator in enumerate(["constant"] * 5 + ["return"])
    ]
    drawn = mutant_changes.sample(found, 50, seed=3)
    packages = [mutant_changes.package(c.file) for c in drawn]
    assert [packages.count(p) for p in ("data", "eval", "run")] == [30, 10, 10]
    assert set(packages[:25]) == {"data", "eval", "run"}
    assert len({(c.file, c.line) for c in drawn}) == 50
    assert 15 < sum(c.operator == "return" for c in drawn) < 35  # as likely as the five constants together
    assert mutant_changes.sample(found, 50, seed=3) == drawn
    assert mutant_changes.sample(found, 50, seed=4) != drawn
    assert len(mutant_changes.sample(found, 1000, seed=3)) == 100
    assert mutant_changes.package("cli.py") == "perdure"


def reach_of(tests: dict[str, float], lines: dict[str, dict[int, list[str]]]) -> Reach:
    """Two test files' reports, without shared fixtures."""
    reach = Reach()
    for file in sorted({test.partition("::")[0] for test in tests}):
        own = {test: [seconds, []] for test, seconds in tests.items() if test.startswith(file)}
        found = {p: {str(n): [t for t in ts if t in own or not t] for n, ts in ls.items()} for p, ls in lines.items()}
        reach.add(file, {"tests": own, "shared": {}, "failed": [], "reached": found})
    return reach


def test_near_and_quick_tests_run_first_and_slow_ones_are_put_off() -> None:
    seconds = {"t/test_b.py::slow": 30, "t/test_b.py::quick": 0.02, "t/test_a.py::own": 0.04, "t/test_b.py::far": 0.01}
    lines = {5: ["t/test_b.py::slow", "t/test_a.py::own", "t/test_b.py::quick"], 9: ["t/test_b.py::far"], 1: [""]}
    reach = reach_of(seconds, {"data/a.py": lines})
    inside = Change("data/a.py", 5, "f", "constant", (4, 6), (3, 7), False, (0, 0))
    fit, left = mutants.plan(inside, reach, {}, 20)
    assert [*fit.items()] == [("t/test_a.py::own", 0.04), ("t/test_b.py::quick", 0.02)]
    assert left == {"t/test_b.py::slow": 30}
    assert [*mutants.plan(inside, reach, {}, 31)[0]][-1] == "t/test_b.py::slow"
    default = Change("data/a.py", 1, "", "constant", (1, 1), (4, 6), True, (0, 0))
    assert [*mutants.plan(default, reach, {}, 99)[0]][2:] == ["t/test_b.py::far", "t/test_b.py::slow"]
    elsewhere = Change("data/b.py", 1, "", "constant", (1, 1), (1, 9), True, (0, 0))
    texts = {"data/a.py": "import os\nfrom perdure.data.b import x\n"}
    assert len(mutants.plan(elsewhere, reach, texts, 99)[0]) == 4
    assert mutants.plan(elsewhere, reach, {"data/a.py": "from perdure.data.bc import x"}, 99) == ({}, {})


def test_shared_fixtures_are_paid_once_and_reached_by_all_their_users() -> None:
    report = {
        "tests": {"t.py::a": [1.0, ["model"]], "t.py::b": [1.0, ["model"]], "t.py::c": [1.0, []], "t.py::d": [1.0, []]},
        "shared": {"model": 5.0},
        "failed": ["t.py::d"],
        "reached": {"x.py": {"1": ["", "model"], "2": ["t.py::c", "t.py::d"]}},
    }
    reach = Reach()
    reach.add("t.py", report)
    assert reach.lines["x.py"] == {1: {"", "t.py::a", "t.py::b"}, 2: {"t.py::c"}}
    change = Change("x.py", 1, "f", "constant", (1, 2), (1, 2), False, (0, 0))
    assert mutants.plan(change, reach, {}, 8.0) == ({"t.py::c": 1.0, "t.py::a": 6.0, "t.py::b": 6.0}, {})
    assert [*mutants.plan(change, reach, {}, 7.9)[1]] == ["t.py::b"]


def record(file: str, outcome: str, after: str = "b") -> dict[str, object]:
    where = {"file": file, "line": 1, "scope": "f", "operator": "constant", "before": "a", "after": after}
    return where | {"outcome": outcome, "by": "", "tests": 1, "left": 0, "seconds": 1.0, "place": [0, 0]}


def test_only_changes_that_matter_count() -> None:
    records = [record("data/a.py", "noticed")] * 7 + [record("eval/a.py", "noticed: ended by signal 14")] * 2
    records += [record("data/a.py", "unnoticed", str(i)) for i in range(4)]
    records += [record("eval/a.py", "reached by no test")]
    known = [
        {**record("data/a.py", "unnoticed", str(i)), "verdict": verdict, "reason": "why"}
        for i, verdict in enumerate(["changes nothing", "harmless", "hole"])
    ]
    survivors = mutants.judged(records, known)
    assert [(r["verdict"], r["reason"]) for r in survivors[:3]] == [(r["verdict"], "why") for r in known]
    assert [r["verdict"] for r in survivors[3:]] == ["unjudged", "unjudged"]
    packages = mutants.counted(records, survivors)
    row = {"changes": 11, "noticed": 7, "changes nothing": 1, "harmless": 1, "holes": 2}
    assert packages == {"data": row, "eval": {**dict.fromkeys(row, 0), "changes": 3, "noticed": 2, "holes": 1}}
    assert mutants.share(row) == pytest.approx(7 / 9)
    assert mutants.table(packages).splitlines()[2:] == [
        "| `data` | 11 | 7 | 1 | 1 | 2 | 78 % |",
        "| `eval` | 3 | 2 | 0 | 0 | 1 | 67 % |",
        "| together | 14 | 9 | 1 | 1 | 3 | 75 % |",
    ]


def test_how_a_run_ends_tells_the_outcome() -> None:
    job = Job("a", [], about={**record("a.py", ""), "left": 0})
    before = {"tests": 2, "seconds": 1.0}
    report = {"tests": {"a": [0.5, []], "b": [0.5, []], "c": [0.0, []]}, "failed": ["b"]}
    told = mutants.outcome(Result(job, 1, 2.0, report, ""), before)
    assert told == {"outcome": "noticed", "by": "b", "tests": 4, "seconds": 3.0}
    assert mutants.outcome(Result(job, 0, 2.0, {}, ""), before)["outcome"] == "unnoticed"
    assert mutants.outcome(Result(job, -14, 2.0, {}, ""), before)["outcome"] == "noticed: ended by signal 14"
    for code in (70, -15, -9):  # it broke, or somebody ended it: no test noticed
        with pytest.raises(SystemExit, match=rf"broke \(exit code {code}\):\nTraceback"):
            mutants.outcome(Result(job, code, 2.0, {}, "Traceback"), before)


SMALL = {
    "src/perdure/__init__.py": '"""P."""\n',
    "src/perdure/sums.py": '''
        """Sums."""

        LIMIT = 3


        def up_to(n):
            """The sum of 1 to n, at most LIMIT of them."""
            total = 0
            while n > 0:
                total += min(n, LIMIT)
                n -= 1
            return total


        def unused(n):
            return n + LIMIT
        ''',
    "tests/test_sums.py": """
        import subprocess
        import sys

        from perdure.sums import up_to

        def test_one():
            assert up_to(1) == 1

        def test_in_a_process():
            run = [sys.executable, "-c", "from perdure import sums; print(sums.up_to(2))"]
            assert subprocess.run(run, capture_output=True, text=True).stdout == "3\\n"
        """,
    "pyproject.toml": "[tool.pytest.ini_options]\n",
    "drive.py": """
        from scripts import mutant_runs, mutants

        mutant_runs.HEAVY.clear()
        mutant_runs.STALL = 2.0
        mutants.main(["--seed", "1", "--record"])
        held = mutants.RESULTS.read_text()
        mutants.RESULTS.write_text(held.replace("unjudged", "harmless", 1))
        mutants.main(["--seed", "1", "--record"])
        mutants.main(["--again"])
        """,
}


def test_a_small_project_is_measured(tmp_path: Path) -> None:
    for name, text in SMALL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text).lstrip())
    results = tmp_path / "benchmarks/results/mutants.json"
    results.parent.mkdir(parents=True)
    command, where = [sys.executable, "drive.py"], {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=where, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(results.read_text())
    assert told["packages"] == {
        "perdure": {"changes": 7, "noticed": 4, "changes nothing": 0, "harmless": 1, "holes": 2}
    }
    lines = [(r["line"], r["outcome"], r["tests"], r["verdict"]) for r in told["survivors"]]
    assert lines == [
        (3, "unnoticed", 2, "harmless"),  # LIMIT = 2
        (9, "unnoticed", 2, "unjudged"),  # while n >= 0
        (16, "reached by no test", 0, "unjudged"),
    ]
    first, again = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for pattern in ("*-330-1-.jsonl", "*-again.jsonl")
        for path in (tmp_path / ".mutants").glob(pattern)
    )
    assert len(first) == 7  # the second call has found them all done
    ends = {r["line"]: (r["outcome"], r["by"]) for r in first}
    assert ends[11] == ("noticed: ended by signal 14", "")  # n -= 1 is missing: an endless loop
    assert ends[10][0] == ends[8][0] == ends[12][0] == "noticed"
    assert {ends[8][1], ends[10][1], ends[12][1]} <= {
        "tests/test_sums.py::test_one",
        "tests/test_sums.py::test_in_a_process",
    }
    assert [r["line"] for r in again] == [16, 9]


def test_every_committed_survivor_is_judged() -> None:
    told = json.loads((ROOT / mutants.RESULTS).read_text())
    for survivor in told["survivors"]:
        assert survivor["verdict"] in {"changes nothing", "harmless", "hole"}, survivor
        assert len(survivor["reason"]) > 10, survivor
    for name, row in told["packages"].items():
        own = [r["verdict"] for r in told["survivors"] if mutant_changes.package(r["file"]) == name]
        assert row["changes"] == row["noticed"] + len(own)
        assert [row[k] for k in mutants.COUNTS[2:]] == [own.count(v) for v in ("changes nothing", "harmless", "hole")]
