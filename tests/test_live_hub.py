"""The hub: who has which place, and how everything ends."""

import asyncio
import threading
import time

import pytest

from draggan_fast import live_hub
from draggan_fast.live_hub import LiveHub
from draggan_fast.live_worker import Busy
from draggan_fast.protocol import Limits
from tests.live_models import tiny_model
from tests.live_talk import Talk, make_hub

PATIENCE = 20.0


def test_halting_refuses_what_waits_and_stopping_does_not_wait_for_encoders():
    """A long step, a job behind it and an encoder: whoever waits for one of them hears at once that it ends."""
    hub = LiveHub([tiny_model()], Limits(), 600.0)
    step, encoder = threading.Event(), threading.Event()

    async def wait_and_halt():
        waiting = [
            asyncio.create_task(hub.call(lambda: step.wait(PATIENCE))),
            asyncio.create_task(hub.call(lambda: 1)),
            asyncio.create_task(hub.apart(lambda: encoder.wait(PATIENCE))),
        ]
        assert await hub.apart(lambda: 2) == 2
        hub.halt()
        for task in waiting:
            with pytest.raises(Busy, match="stopping"):
                await asyncio.wait_for(task, PATIENCE / 2)
        for late in (hub.call(lambda: 3), hub.apart(lambda: 4)):  # nothing begins any more
            with pytest.raises(Busy, match="stopping"):
                await late

    hub.start()
    try:
        asyncio.run(wait_and_halt())
        step.set()
        worker = hub._halted[0]
        assert worker.stop(PATIENCE)
        assert not hub.stop()  # of the encoder nothing more is known
    finally:
        step.set()
        encoder.set()
    deadline = time.monotonic() + PATIENCE
    while hub._apart:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert hub.stop()


def test_what_fails_apart_belongs_to_who_asked():
    hub = LiveHub([tiny_model()], Limits(), 600.0)

    async def fail():
        with pytest.raises(ZeroDivisionError):
            await hub.apart(lambda: 1 // 0)

    asyncio.run(fail())
    assert not hub._apart


def test_who_has_been_away_the_longest_gives_way(monkeypatch):
    hub = make_hub(sessions=2)
    first, second, third = Talk(hub), Talk(hub), Talk(hub)
    for talk in (first, second):
        talk.must("create", seed=1)
    ids = [talk.live.id for talk in (first, second)]
    assert third.ask("create", seed=2)[0]["code"] == "limit"  # both have their viewers
    second.conversation.end()
    first.conversation.end()
    hub.turns()
    assert third.ask("create", seed=2)[0]["code"] == "limit"  # both may still come back
    monkeypatch.setattr(live_hub, "GIVES_WAY_SECONDS", 0.0)
    third.must("create", seed=2)
    assert [hub.find(session) is not None for session in ids] == [True, False]
    assert Talk(hub, resume=ids[1]).welcome["resumed"] is False
    hub.turns(3)
    assert second.live not in hub._worker._tasks  # and nothing of it is left
    back = Talk(hub, resume=ids[0])
    assert back.welcome["resumed"] is True
    assert Talk(hub).ask("create", seed=3)[0]["code"] == "limit"  # who has come back keeps the place
    assert hub.metrics.open_sessions == 2


def test_a_replaced_viewer_does_not_leave_the_picture_for_the_new_one(monkeypatch):
    monkeypatch.setattr(live_hub, "GIVES_WAY_SECONDS", 0.0)
    hub = make_hub(sessions=1)
    first = Talk(hub)
    first.must("create", seed=1)
    second = Talk(hub, resume=first.live.id)
    first.conversation.end()
    assert Talk(hub).ask("create", seed=3)[0]["code"] == "limit"
    assert second.must("reset")
