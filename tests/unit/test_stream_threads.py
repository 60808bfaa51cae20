"""Threads of the stream: what one's death means, and what is written about them."""

from __future__ import annotations

import logging
import threading

import pytest

from almanac.errors import UsageError
from streaming.pause import QUIET_BATCHES, Pause
from streaming.process import Crew, main
from streaming.report import PAUSED, RUNNING, SUMMARY_SECONDS, Report


def test_a_thread_that_dies_stops_the_others_and_is_remembered() -> None:
    crew = Crew()

    def die() -> None:
        raise UsageError("no table: make one")

    crew.start("waits", lambda: crew.stop.wait() and None)
    crew.start("dies", die)
    assert crew.stop.wait(10)
    assert crew.join()
    assert [(name, str(error)) for name, error in crew.failures] == [("dies", "no table: make one")]


def test_a_thread_that_only_ends_stops_the_others_too() -> None:
    crew = Crew()
    crew.start("ends", lambda: None)
    assert crew.stop.wait(10)
    assert crew.failures == []


def test_a_wrong_instance_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(threading.Event(), ["--instance", "a b"]) == 2
    assert capsys.readouterr().err.startswith("almanac stream: --instance 'a b' must match")


def test_a_line_is_written_for_each_change_of_state_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streaming")
    report = Report("tiny worker")
    for state in (RUNNING, RUNNING, PAUSED, PAUSED, RUNNING):
        report.say(state, "two\nlines" if state == PAUSED else "")
    assert caplog.messages == ["tiny worker: running", "tiny worker: paused: two lines", "tiny worker: running"]


def test_the_summary_says_what_was_done_since_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "streaming")
    report = Report("tiny worker")
    report.summarise(0.0)
    report.add(events=3, dead_letters=1, duplicates=0)
    report.summarise(SUMMARY_SECONDS - 1)
    report.summarise(SUMMARY_SECONDS)
    report.summarise(2 * SUMMARY_SECONDS)
    report.add(events=2)
    report.summarise(3 * SUMMARY_SECONDS)
    assert caplog.messages == ["tiny worker: 1 dead letters, 3 events in 60 s", "tiny worker: 2 events in 60 s"]


def test_a_pause_is_over_with_a_handled_batch_or_many_empty_ones() -> None:
    report, pause = Report("tiny worker"), Pause(threading.Event())
    report.say(PAUSED)
    pause.opened(report)
    for _ in range(QUIET_BATCHES - 1):
        pause.worked(report, handled=False)
    assert report.state == PAUSED
    pause.worked(report, handled=False)
    assert report.state == RUNNING
    report.say(PAUSED)
    pause.opened(report)
    pause.worked(report, handled=True)
    assert report.state == RUNNING


def test_waiting_ends_at_once_when_asked_to_stop() -> None:
    stop = threading.Event()
    stop.set()
    pause = Pause(stop)
    for _ in range(1_000):
        pause.wait()
