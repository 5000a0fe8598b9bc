"""The worker's turns: fair, bounded, asleep when nobody wants anything."""

import threading
import time

import pytest

from draggan_fast import live_worker
from draggan_fast.live_worker import Busy, LiveWorker

PATIENCE = 20.0


@pytest.fixture
def worker():
    worker = LiveWorker()
    worker.start()
    yield worker
    assert worker.stop(PATIENCE)


class Steady:
    """Always wants a turn, in which it computes until its time is over."""

    def __init__(self, log, name, step=0.0005):
        self.log, self.name, self.step, self.asked = log, name, step, 0

    def wakes_at(self):
        self.asked += 1
        return 0.0

    def turn(self, until):
        start = time.monotonic()
        while True:
            time.sleep(self.step)
            if time.monotonic() >= until:
                break
        self.log.append((self.name, until - start))


class Sleeper(Steady):
    def __init__(self, log, name, at=None):
        super().__init__(log, name)
        self.at = at

    def wakes_at(self):
        self.asked += 1
        return self.at

    def turn(self, until):
        self.log.append((self.name, time.monotonic()))
        self.at = None


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_turns_go_round(worker):
    log = []
    for name in "abc":
        worker.add(Steady(log, name))
    wait_for(lambda: len(log) > 30)
    names = [name for name, _ in list(log)[6:30]]
    assert all(set(names[at : at + 3]) == set("abc") for at in range(0, 24, 3))
    shares = [share for _, share in list(log)[6:30]]
    assert max(shares) <= live_worker.ROUND / 3 + 1e-6  # a third each


def test_a_long_step_delays_others_by_no_more_than_itself(worker):
    log = []
    worker.add(Steady(log, "slow", step=0.05))
    worker.add(Steady(log, "quick"))
    wait_for(lambda: len(log) > 10)
    names = [name for name, _ in list(log)[2:10]]
    assert "slowslow" not in "".join(names)
    assert names.count("quick") >= 3


def test_who_sleeps_costs_nothing(worker):
    log = []
    sleepers = [Sleeper(log, str(index)) for index in range(50)]
    for sleeper in sleepers:
        worker.add(sleeper)
    wait_for(lambda: sleepers[-1].asked)
    time.sleep(0.05)
    before = sum(sleeper.asked for sleeper in sleepers)
    time.sleep(0.3)
    assert sum(sleeper.asked for sleeper in sleepers) == before
    assert not log


def test_who_asks_for_a_later_time_gets_it(worker):
    log = []
    at = time.monotonic() + 0.1
    worker.add(Sleeper(log, "later", at))
    wait_for(lambda: log)
    assert log[0][1] >= at
    assert len(log) == 1


def test_waking_wakes(worker):
    log = []
    sleeper = Sleeper(log, "sleeper")
    worker.add(sleeper)
    wait_for(lambda: sleeper.asked)
    sleeper.at = 0.0
    worker.wake()
    wait_for(lambda: log)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_task_is_taken_out_and_the_others_go_on(worker, caplog):
    class Broken(Steady):
        def turn(self, until):
            raise RuntimeError("broken")

    log = []
    broken = Broken(log, "broken")
    worker.add(broken)
    worker.add(Steady(log, "sound"))
    wait_for(lambda: len(log) > 5)
    asked = broken.asked
    wait_for(lambda: len(log) > 10)
    assert broken.asked <= asked + 1
    assert worker.alive
    assert "a turn failed" in caplog.text


def test_removed_tasks_get_no_more_turns(worker):
    log = []
    task = Steady(log, "gone")
    worker.add(task)
    wait_for(lambda: log)
    worker.remove(task)
    worker.remove(task)
    time.sleep(0.1)
    count = len(log)
    time.sleep(0.1)
    assert len(log) == count


def test_jobs_return_and_raise_in_the_workers_thread(worker):
    assert worker.call(lambda: threading.current_thread().name).result(PATIENCE) == "draggan-fast-worker"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0).result(PATIENCE)
    assert worker.call(lambda: 3).result(PATIENCE) == 3


def test_a_long_job_lets_others_in_between_its_pieces(worker):
    log = []
    worker.add(Steady(log, "task"))

    def pieces():
        for index in range(6):
            time.sleep(0.03)
            log.append(("piece", index))
            yield
        return "whole"

    assert worker.compute(pieces()).result(PATIENCE) == "whole"
    names = "".join(name[0] for name, _ in log)
    assert "pp" not in names
    assert names.count("p") == 6


def test_a_cancelled_job_is_left_out(worker):
    gate, ran = threading.Event(), []
    first = worker.call(gate.wait)
    second = worker.call(lambda: ran.append(1))
    assert second.cancel()
    gate.set()
    assert first.result(PATIENCE)
    assert worker.call(lambda: 1).result(PATIENCE) == 1
    assert not ran


def test_too_many_jobs_are_refused_and_stopping_gives_up_the_rest():
    worker = LiveWorker()
    futures = [worker.call(lambda: 1) for _ in range(live_worker.MAX_JOBS)]
    with pytest.raises(Busy):
        worker.call(lambda: 1)
    assert worker.stop(PATIENCE)
    for future in futures:
        with pytest.raises(Busy, match="stopping"):
            future.result(PATIENCE)
    with pytest.raises(Busy):
        worker.call(lambda: 1)
    assert not worker.alive


def test_stopping_does_not_wait_for_ever():
    gate = threading.Event()
    worker = LiveWorker()
    worker.start()
    running = worker.call(lambda: gate.wait(PATIENCE))
    waiting = worker.call(lambda: 1)
    wait_for(running.running) if running.running() else time.sleep(0.05)
    assert not worker.stop(0.05)
    gate.set()
    assert running.result(PATIENCE)
    with pytest.raises(Busy):
        waiting.result(PATIENCE)
    assert worker.stop(PATIENCE)
