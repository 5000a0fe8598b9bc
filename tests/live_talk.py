"""Sessions in the server without a server: messages in, answers and frames out, in this thread, in a known order."""

import json
import time

from draggan_fast import protocol
from draggan_fast.live_hub import LiveHub
from draggan_fast.live_socket import Allowance, Conversation
from draggan_fast.live_viewer import Viewer
from draggan_fast.live_worker import LiveWorker
from draggan_fast.protocol import Limits
from tests.live_models import tiny_model

POINTS = {"handles": [[10, 10]], "targets": [[20, 12]]}


class Loop:
    """What a viewer needs of an event loop."""

    def call_soon_threadsafe(self, function):
        function()


class Hub(LiveHub):
    """A hub whose worker has no thread: the test gives the turns."""

    def start(self):
        if self._worker is None:
            self._worker = LiveWorker()

    def turns(self, most=1):
        """Up to so many rounds of turns, while anybody wants one."""
        for _ in range(most):
            times = [(task, task.wakes_at()) for task in list(self._worker._tasks)]
            ready = [task for task, at in times if at is not None and at <= time.monotonic()]
            if not ready:
                return
            for task in ready:
                task.turn(time.monotonic() + 0.01)


class Talk:
    """A viewer of such a hub, past its hello."""

    def __init__(self, hub, **hello):
        self.hub, self.viewer = hub, Viewer(Loop())
        self.conversation = Conversation(hub, self.viewer, None)
        self.conversation._allowance = self.conversation._wrong = Allowance(1e9, 1e9)
        self.frames, self._id = [], 0
        hub.arrive(self.viewer)
        self.say("hello", version=1, **hello)
        (self.welcome, *_) = self.hear()

    def say(self, kind, **fields):
        self.conversation.receive(json.dumps({"type": kind, **fields}))

    def hear(self):
        """The messages that wait; frames are looked at and acknowledged."""
        messages, frame = self.viewer.take()
        if frame is not None:
            self.frames.append(protocol.unpack_frame(frame)[0])
            self.viewer.ack(self.viewer._sent)
        return messages

    def ask(self, kind, **fields):
        """(answer, the other messages) of a message, after the turns that it takes."""
        self._id += 1
        before = self.live
        self.say(kind, id=self._id, **fields)
        self.hub.turns()
        for live in (before, self.live):
            while live is not None and live.commands:  # on a busy machine a turn may be over before it has begun
                self.hub.turns()
        messages = self.hear()
        answers = [m for m in messages if m["type"] in ("ok", "error") and m.get("id") == self._id]
        assert len(answers) == 1, messages
        return answers[0], [m for m in messages if m is not answers[0]]

    def must(self, kind, **fields):
        answer, others = self.ask(kind, **fields)
        assert answer["type"] == "ok", answer
        return {message["type"]: message for message in others}

    def refused(self, kind, **fields):
        before = self.live.drag.state if self.live is not None else None
        answer, _ = self.ask(kind, **fields)
        assert answer["type"] == "error", answer
        if self.live is not None:
            assert self.live.drag.state is before
        return answer["code"]

    def run(self, rounds=400):
        """Turns until nobody wants one: what was said."""
        heard = []
        for _ in range(rounds):
            self.hub.turns()
            heard += self.hear()
            if self.live.state != "running":
                break
        return heard

    def settle(self):
        """Until the picture at rest has been shown: what was said."""
        heard, deadline = [], time.monotonic() + 20
        while True:
            self.hub.turns()
            heard += self.hear()
            if not self.live.screen.owed and self.live.state != "running":
                return heard
            assert time.monotonic() < deadline
            time.sleep(0.002)

    @property
    def live(self):
        return self.conversation.live


def make_hub(*models, idle_seconds=600.0, **limits):
    hub = Hub(models or [tiny_model()], Limits(**limits), idle_seconds)
    hub.start()
    return hub
