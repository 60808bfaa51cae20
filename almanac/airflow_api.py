"""The little of Airflow's REST API that the command line and the demonstration need.

Airflow 3: `POST /auth/token` gives a JWT, `/api/v2` the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from almanac.closing import Closing
from almanac.errors import Unavailable, UsageError
from almanac.settings import Settings

REQUEST_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 1.0
AWAY_SECONDS_MAX = 180.0
"""How long a run is followed while Airflow's API does not answer: it is started again, and the run goes on."""
LIST_MAX = 10_000
"""Entries of one list, such as a run's task instances: more are refused, so that no reading goes on for ever."""
RUN_FINISHED = frozenset({"success", "failed"})
AT_WORK = ("queued", "running", "restarting")
"""States of tasks that a process works on, or that the executor has been given: no pause stops them."""
PAGE = 100
"""Entries asked for at once; Airflow's own `maximum_page_limit` may give fewer."""
TOKEN_REFUSED = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN})
"""Answers of Airflow to a token that has ended (401), and to one that was signed by another secret (403)."""


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """One task instance as the UI shows it: name, label of its shard, state, try."""

    task: str
    label: str | None
    state: str | None
    try_number: int
    map_index: int = -1

    @property
    def title(self) -> str:
        """`score [tile r0 c0 … tile r1 c4 (12)]`."""
        label = self.label or (str(self.map_index) if self.map_index >= 0 else None)
        return f"{self.task} [{label}]" if label else self.task


class AirflowApi(Closing):
    """A session with one Airflow API server."""

    def __init__(self, settings: Settings) -> None:
        self._base = settings.need("airflow_url").rstrip("/")
        self._user = settings.airflow_username
        self._password = settings.need("airflow_password")
        self._client = httpx.Client(base_url=self._base, timeout=REQUEST_TIMEOUT_SECONDS)
        self._token: str | None = None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """One authenticated request; a token that has ended is taken anew.

        Raises:
            Unavailable: no answer, or one that is not Airflow's.
            UsageError: Airflow refused; its own words are in the message.
        """
        answer = self._request(method, path, **arguments)
        self._raise_for(answer, f"{method} {path}")
        return self._json(answer) if answer.content else {}

    def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            fresh = self._token is None
            answer = self._request_with_token(method, path, **arguments)
            if answer.status_code in TOKEN_REFUSED and not fresh:
                # What was refused for its token has done nothing, so asking again repeats nothing.
                self._token = None
                answer = self._request_with_token(method, path, **arguments)
        except httpx.HTTPError as error:
            raise Unavailable(f"Airflow at {self._base} did not answer ({error}): see `almanac status`") from None
        return answer

    def _request_with_token(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        if self._token is None:
            login = self._client.post("/auth/token", json={"username": self._user, "password": self._password})
            self._raise_for(login, "log in")
            self._token = str(self._json(login).get("access_token"))
        headers = {"Authorization": f"Bearer {self._token}"}
        return self._client.request(method, f"/api/v2{path}", headers=headers, **arguments)

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            return dict(answer.json())
        except (ValueError, TypeError):
            raise Unavailable(
                f"what answers at {self._base} is not Airflow's API ({answer.text[:80]!r}): correct ALMANAC_AIRFLOW_URL"
            ) from None

    def _all(self, path: str, entries: str, **asked: Any) -> list[dict[str, Any]]:
        """Every entry of a list, page by page.

        Args:
            entries: the answer's field that has them.
            asked: what is asked besides `limit` and `offset`.

        Raises:
            UsageError: there are more than `LIST_MAX`.
        """
        return self._paged(lambda at: self.call("GET", path, params={**asked, "limit": PAGE, "offset": at}), entries)

    def _paged(self, page_at: Callable[[int], dict[str, Any]], entries: str) -> list[dict[str, Any]]:
        every: list[dict[str, Any]] = []
        while True:
            page = page_at(len(every))
            if page["total_entries"] > LIST_MAX:
                raise UsageError(
                    f"Airflow at {self._base} lists {page['total_entries']:,} {entries.replace('_', ' ')}, and at most "
                    f"{LIST_MAX:,} are read: look at them in the Airflow UI"
                )
            every += page[entries]
            if not page[entries] or len(every) >= page["total_entries"]:
                return every

    def _raise_for(self, answer: httpx.Response, what: str) -> None:
        if answer.is_success:
            return
        try:
            detail = answer.json().get("detail")
        except (ValueError, AttributeError):
            detail = answer.text[:200]
        message = f"Airflow at {self._base} refused to {what} ({answer.status_code}): {detail}"
        if answer.status_code >= 500:
            raise Unavailable(f"{message}: see its log, then try again")
        raise UsageError(f"{message}: correct the request or the credentials")

    def trigger(
        self, dag: str, *, partition_key: str | None, note: str, params: Mapping[str, Any] | None = None
    ) -> str:
        """Start a run by hand, with some of the DAG's params set, and return its run id."""
        body = {"logical_date": None, "partition_key": partition_key, "note": note, "conf": dict(params or {})}
        return str(self.call("POST", f"/dags/{dag}/dagRuns", json=body)["dag_run_id"])

    def has_dag(self, dag: str) -> bool:
        """Whether Airflow has parsed this DAG yet."""
        answer = self._request("GET", f"/dags/{dag}")
        if answer.status_code != httpx.codes.NOT_FOUND:
            self._raise_for(answer, f"look at the DAG {dag}")
        return answer.is_success

    def is_paused(self, dag: str) -> bool:
        """Whether Airflow begins nothing of this DAG: what is triggered waits."""
        return bool(self.call("GET", f"/dags/{dag}")["is_paused"])

    def paused_by_dag(self, tags: Sequence[str]) -> dict[str, bool]:
        """Every DAG that has one of some tags, and whether it is paused."""
        every = self._all("/dags", "dags", tags=list(tags), order_by="dag_id")
        return {entry["dag_id"]: bool(entry["is_paused"]) for entry in every}

    def set_paused(self, dag: str, paused: bool) -> None:
        """Pause or unpause a DAG."""
        self.call("PATCH", f"/dags/{dag}", json={"is_paused": paused})

    def at_work(self, dags: Sequence[str]) -> list[str]:
        """The tasks of some DAGs that are at work, or will be whatever is paused: `<dag>.<task>`."""
        path = "/dags/~/dagRuns/~/taskInstances/list"
        asked = {"dag_ids": list(dags), "state": list(AT_WORK), "page_limit": PAGE}
        every = self._paged(lambda at: self.call("POST", path, json={**asked, "page_offset": at}), "task_instances")
        return sorted({f"{entry['dag_id']}.{entry['task_id']}" for entry in every})

    def newest_asset_event(self, dag: str) -> int:
        """Number of the newest event of an asset that this DAG is scheduled on; 0 if there is none."""
        numbers = [0]
        for asset in self._all("/assets", "assets", dag_ids=[dag]):
            if any(scheduled["dag_id"] == dag for scheduled in asset["scheduled_dags"]):
                numbers.append((asset.get("last_asset_event") or {}).get("id") or 0)
        return max(numbers)

    def run_state(self, dag: str, run: str) -> str:
        """`queued`, `running`, `success` or `failed`."""
        return str(self.call("GET", f"/dags/{dag}/dagRuns/{run}")["state"])

    def task_instances(self, dag: str, run: str) -> list[dict[str, Any]]:
        """Every task instance of a run, as Airflow lists them."""
        return self._all(f"/dags/{dag}/dagRuns/{run}/taskInstances", "task_instances", order_by="map_index")

    def tasks(self, dag: str, run: str) -> list[TaskState]:
        """Every task instance of a run."""
        return [
            TaskState(
                task=entry["task_id"],
                label=entry.get("rendered_map_index") if entry.get("map_index", -1) >= 0 else None,
                state=entry["state"],
                try_number=entry["try_number"],
                map_index=entry.get("map_index", -1),
            )
            for entry in self.task_instances(dag, run)
        ]

    def why_failed(self, dag: str, run: str) -> str | None:
        """The error of the first task that failed, as its log has it: `plan: UsageError: …`; None if there is none."""
        for task in self.tasks(dag, run):
            if task.state != "failed":
                continue
            path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task.task}/logs/{task.try_number}"
            log = self.call("GET", path, params={"map_index": task.map_index, "full_content": True})
            for entry in reversed(log.get("content") or []):
                for error in (entry.get("error_detail") or []) if isinstance(entry, dict) else []:
                    return f"{task.title}: {error.get('exc_type')}: {error.get('exc_value')}"
        return None

    def follow(self, dag: str, run: str, *, timeout_seconds: float) -> Iterator[TaskState | str]:
        """Yield each task as it ends, and the run's final state as the last item.

        Raises:
            Unavailable: the run did not end within `timeout_seconds`, or Airflow did not answer for `AWAY_SECONDS_MAX`.
        """
        deadline = time.monotonic() + timeout_seconds
        answered = time.monotonic()
        seen: set[tuple[str, int, int, str | None]] = set()
        while True:
            try:
                state, tasks = self.run_state(dag, run), self.tasks(dag, run)
            except Unavailable:
                if time.monotonic() > min(answered + AWAY_SECONDS_MAX, deadline):
                    raise
                time.sleep(POLL_SECONDS)
                continue
            answered = time.monotonic()
            for task in tasks:
                mark = (task.task, task.map_index, task.try_number, task.state)
                if (
                    task.state in {"success", "failed", "upstream_failed", "skipped", "up_for_retry"}
                    and mark not in seen
                ):
                    seen.add(mark)
                    yield task
            if state in RUN_FINISHED:
                yield state
                return
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"run {run} of {dag} is still {state} after {timeout_seconds:.0f} s: look at it in the Airflow UI"
                )
            time.sleep(POLL_SECONDS)
