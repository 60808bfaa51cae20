"""Runs Feast's own tests, of a checkout of its repository, against the stores here; nothing of it is copied.

`FEAST_REPO` names the checkout. Its tests are run in a process of their own:

- *with the installed Feast, not the checkout's*: the working directory holds a link named `tests` to the checkout's
  tests and nothing else, so that `import tests` is theirs and `import feast` ours;
- *in an environment of its own*, below the cache directory: what `feast_tests.lock.txt` names (with hashes; among it
  a Great Expectations as old as Feast's profilers want it), and behind it every package of the environment that
  this runs in;
- *with a repository configuration of ours*: a module of `tests/universal/configurations/` with
  `AVAILABLE_OFFLINE_STORES` and `AVAILABLE_ONLINE_STORES`, which Feast's conftest asks for by the variable
  `FULL_REPO_CONFIGS_MODULE`. It finds real servers by `FEAST_TESTS_POSTGRES` and `FEAST_TESTS_REDIS` (URLs), for
  there are no containers here. What stands in it is executed in that process alone.

To run a configuration by hand: `make feast-tests FEAST_REPO=<checkout> STORE=offline [ARGS='-k ttl']`. From a test:

    outcome = run(checkout, "offline", ["integration/offline_store"], postgres=url, redis=url)
    assert not outcome.failed, outcome.report()
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from benchmarks.peer import environment_of

FOLDER = Path(__file__).resolve().parent
RUN_SECONDS_MAX = 3_600
"""Time limit of all of a configuration's tests, in seconds."""
TEST_SECONDS_MAX = 300
"""Time limit of a single test, in seconds: Feast's own."""
OPTIONS = ("-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "--integration", "--tb=short", "-q", "-ra")
INI = """[pytest]
markers =
    universal_offline_stores: of all offline stores
    universal_online_stores: of all online stores
    rbac_remote_integration_test: behind a server
    integration: needs servers
    benchmark: measures
    slow: takes long
    cloud: needs an account
    local_only: needs nothing
    xdist_group: for one worker
    mongodb: needs MongoDB
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        passed, failed, skipped: names of tests as `file::test[parameters]`; of the latter two with the reason.
        said: the last lines that pytest printed.
    """

    passed: tuple[str, ...]
    failed: dict[str, str]
    skipped: dict[str, str]
    said: str

    def report(self) -> str:
        """Counts, then every test that failed or was skipped, and why."""
        lines = [f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"]
        lines += [f"FAILED {name}: {reason}" for name, reason in self.failed.items()]
        for reason, count in Counter(self.skipped.values()).items():
            lines.append(f"skipped {count}: {reason}")
        return "\n".join(lines if self.passed or self.failed else [*lines, self.said])


def checkout() -> Path | None:
    """The checkout that `FEAST_REPO` names, if it is one."""
    named = os.environ.get("FEAST_REPO", "")
    tests = Path(named).expanduser() / "sdk" / "python" / "tests"
    return Path(named).expanduser().resolve() if named and tests.is_dir() else None


def run(
    repository: Path,
    configuration: str,
    paths: Sequence[str],
    *,
    postgres: str = "",
    redis: str = "",
    options: Sequence[str] = (),
) -> Outcome:
    """Run tests of the checkout with one configuration.

    Args:
        repository: the checkout.
        configuration: name of a module of `tests/universal/configurations/`.
        paths: files, folders or single tests (`…::test`) below the checkout's `sdk/python/tests`.
        postgres: URL of a Postgres that may be written to.
        redis: URL of a Redis that may be written to.
        options: more words for pytest.

    Raises:
        StackError: the environment cannot be installed.
        subprocess.TimeoutExpired: the tests took longer than `RUN_SECONDS_MAX`.
    """
    python = _environment()
    with TemporaryDirectory(prefix="feast-tests-") as scratch:
        folder = Path(scratch)
        (folder / "tests").symlink_to(repository / "sdk" / "python" / "tests")
        (folder / "pytest.ini").write_text(INI)
        results = folder / "results.xml"
        command = [str(python), "-m", "pytest", *OPTIONS, f"--timeout={TEST_SECONDS_MAX}", f"--junitxml={results}"]
        done = subprocess.run(
            [*command, *options, *(f"tests/{path}" for path in paths)],
            cwd=folder, env=_variables(folder, configuration, postgres, redis), timeout=RUN_SECONDS_MAX,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return _read(results, done.stdout)


def _environment() -> Path:
    """The Python that has Feast's test dependencies in front of everything that is installed here."""
    python = environment_of("feast_tests", FOLDER)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(python.parent.parent)}))
    (site / "behind.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


def _variables(folder: Path, configuration: str, postgres: str, redis: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALMANAC_", "PYTHON"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {
        **kept,
        "PATH": path,  # some tests start `feast` by name
        # A Feast server that a test starts imports on-demand functions of `tests`, too.
        "PYTHONPATH": f"{FOLDER / 'configurations'}{os.pathsep}{folder}",
        "FULL_REPO_CONFIGS_MODULE": configuration,
        "FEAST_IS_LOCAL_TEST": "True",
        "FEAST_USAGE": "False",
        "IS_TEST": "True",
        "FEAST_TESTS_POSTGRES": postgres,
        "FEAST_TESTS_REDIS": redis,
    }


def _read(results: Path, said: str) -> Outcome:
    passed: list[str] = []
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    tail = "\n".join(said.splitlines()[-60:])
    if not results.exists():
        return Outcome(passed=(), failed={"pytest": "wrote no results"}, skipped={}, said=tail)
    for case in ElementTree.parse(results).iter("testcase"):  # noqa: S314  written by our own process
        name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
        for kind, held in (("failure", failed), ("error", failed), ("skipped", skipped)):
            found = case.find(kind)
            if found is not None:
                said_of_it = found.get("message") or ""
                if kind != "skipped":  # the last lines of the traceback say where
                    said_of_it = f"{said_of_it} | {' | '.join((found.text or '').strip().splitlines()[-4:])}"
                held[name] = " ".join(said_of_it.split())
                break
        else:
            passed.append(name)
    return Outcome(passed=tuple(passed), failed=failed, skipped=skipped, said=tail)
