"""The hub: who has which place, and how everything ends."""

import asyncio
import threading
import time

import pytest

from draggan_fast import live_hub, protocol
from draggan_fast.live_hub import LiveHub
from draggan_fast.live_worker import Busy
from draggan_fast.protocol import Limits
from tests.live_models import tiny_model
from tests.live_talk import Talk, make_hub

PATIENCE = 20.0


def test_halting_refuses_what_waits_and_stopping_does_not_wait_for_encoders():
    """A long step, a job behind it and an encoder: whoever waits for one of them hears at once that it ends."""
    hub = LiveHub([tiny_model()], Limits(), 600.0)
    step, encoder, encoding = threading.Event(), threading.Event(), threading.Event()

    def encode():
        encoding.set()
        encoder.wait(PATIENCE)

    async def wait_and_halt():
        waiting = [
            asyncio.create_task(hub.call(lambda: step.wait(PATIENCE))),
            asyncio.create_task(hub.call(lambda: 1)),
            asyncio.create_task(hub.apart(encode)),
        ]
        assert await hub.apart(lambda: 2) == 2
        assert await asyncio.to_thread(encoding.wait, PATIENCE)
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
        assert hub._ending.stop(PATIENCE)
        assert not hub.stop()  # of the encoder nothing more is known
    finally:
        step.set()
        encoder.set()
    deadline = time.monotonic() + PATIENCE
    while hub._encoders:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert hub.stop()


def test_encoders_are_few_and_what_waits_for_them_is_bounded(monkeypatch):
    monkeypatch.setattr(live_hub, "MOST_TO_ENCODE", 3)
    hub, free = LiveHub([tiny_model()], Limits(), 600.0), threading.Event()
    most = live_hub.ENCODERS + 3
    threads = set()

    def encode():
        threads.add(threading.current_thread())
        free.wait(PATIENCE)
        return threading.current_thread()

    async def crowd():
        busy = []
        for _ in range(most):
            busy.append(asyncio.create_task(hub.apart(encode)))
            deadline = time.monotonic() + PATIENCE
            while len(busy) <= live_hub.ENCODERS and len(threads) < len(busy):  # each has its thread
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="too much"):
            await hub.apart(encode)
        busy.pop().cancel()  # who has gone away
        free.set()
        assert {await task for task in busy} == threads
        assert len(threads) == live_hub.ENCODERS

    try:
        asyncio.run(crowd())
    finally:
        free.set()


def test_a_second_run_waits_for_the_first_ones_step():
    """Two workers would share the device; and a warm-up that ends late says nothing of the next run."""
    hub, warm, begun = LiveHub([tiny_model()], Limits(), 600.0), threading.Event(), threading.Event()
    drawn = hub.models.from_seed

    def slow(*arguments):
        begun.set()
        assert warm.wait(PATIENCE)
        return drawn(*arguments)

    hub.models.from_seed = slow
    try:
        hub.start()
        first = hub._worker
        assert begun.wait(PATIENCE)
        assert not hub.stop()  # its present step takes longer
        for _ in range(2):
            hub.start()
            assert hub._worker is None
        with pytest.raises(Busy, match="stopping"):
            _ = hub.worker
    finally:
        warm.set()
    assert first.stop(PATIENCE)
    assert not hub.ready
    hub.start()
    second = hub._worker
    assert second not in (first, None)
    hub.halt()
    assert second.stop(PATIENCE)
    hub.stop()


def test_no_picture_enters_a_server_that_stops(monkeypatch):
    hub = make_hub()
    talk = Talk(hub)
    room = hub._room

    def halted_meanwhile():
        hub.halt()
        room()

    monkeypatch.setattr(hub, "_room", halted_meanwhile)
    talk.say("create", id=7, seed=1)
    assert [(m["code"], m["id"]) for m in talk.hear()] == [("limit", 7)]
    assert talk.live is None
    assert not hub._sessions
    assert not hub._beginning


def test_what_fails_apart_belongs_to_who_asked():
    hub = LiveHub([tiny_model()], Limits(), 600.0)

    async def fail():
        with pytest.raises(ZeroDivisionError):
            await hub.apart(lambda: 1 // 0)

    asyncio.run(fail())
    assert not hub._to_encode


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


def test_what_is_refused_takes_nobodys_place(monkeypatch):
    """On a full server: an unknown class or model, a bad file; only a picture that is there displaces another."""
    monkeypatch.setattr(live_hub, "GIVES_WAY_SECONDS", 0.0)
    hub = make_hub(sessions=1)
    first = Talk(hub)
    first.must("create", seed=1)
    away = first.live.id
    first.conversation.end()
    hub.turns()
    other = Talk(hub)
    for fields in ({"model": "none"}, {"label": 3}):
        assert other.ask("create", seed=2, **fields)[0]["code"] == "value"
    other.conversation.receive(protocol.pack_upload(2, 99, b"nothing"))
    hub.turns()
    assert [m["code"] for m in other.hear()] == ["value"]
    assert hub.find(away) is first.live
    assert hub.metrics.open_sessions == 1
    back = Talk(hub, resume=away)
    assert back.welcome["resumed"] is True
    assert other.ask("create", seed=2)[0]["code"] == "limit"  # the place is taken again
    back.conversation.end()
    hub.turns()
    other.must("create", seed=2)
    assert hub.find(away) is None
    assert list(hub._sessions) == [other.live.id]


def test_of_two_who_begin_at_once_the_second_finds_no_place():
    hub = make_hub(sessions=1)
    talks = [Talk(hub), Talk(hub)]
    for number, talk in enumerate(talks):
        talk.say("create", id=50 + number, seed=number)
    hub.turns(3)
    assert [m.get("code", "ok") for talk in talks for m in talk.hear() if m.get("id") in (50, 51)] == ["ok", "limit"]
    assert list(hub._sessions) == [talks[0].live.id]


def test_who_has_gone_before_the_first_picture_was_there_leaves_nothing():
    for last in ("end", "close"):
        hub = make_hub(sessions=1)
        talk = Talk(hub)
        talk.say("create", seed=1)
        if last == "end":
            talk.conversation.end()
        else:
            talk.say("close")
        hub.turns(3)
        assert not hub._sessions
        assert not hub._beginning
        assert len(hub._worker._tasks) == 1  # that of the jobs
        Talk(hub).must("create", seed=1)


def test_a_replaced_viewer_does_not_leave_the_picture_for_the_new_one(monkeypatch):
    monkeypatch.setattr(live_hub, "GIVES_WAY_SECONDS", 0.0)
    hub = make_hub(sessions=1)
    first = Talk(hub)
    first.must("create", seed=1)
    second = Talk(hub, resume=first.live.id)
    first.conversation.end()
    assert Talk(hub).ask("create", seed=3)[0]["code"] == "limit"
    assert second.must("reset")
