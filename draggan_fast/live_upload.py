"""A viewer's upload on its way in: what is large comes in pieces, so that nobody who has not said hello can make the
server hold more than one of them."""

from __future__ import annotations

from dataclasses import replace

from .protocol import Limits, ProtocolError, Upload

MOST_REFUSED = 256  # ids of refused uploads that are kept in mind until their last piece has come


class Incoming:
    """The upload of one viewer that is not complete yet, if there is one."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._last: Upload | None = None  # the piece before the next
        self._data = bytearray()
        self._refused: dict[int | None, None] = {}  # the ids whose further pieces are passed over, the first first

    def begins(self, piece: Upload) -> bool:
        """Whether it is the first of its upload."""
        return piece.id not in self._refused and (self._last is None or self._last.id != piece.id)

    def add(self, piece: Upload) -> Upload | None:
        """The whole upload once its last piece is here, None before. Raises ProtocolError, once for each upload; what
        still comes of it is passed over, and the upload that it came between goes on."""
        if self.skip(piece):
            return None
        last = self._last
        if last is not None and (last.id, last.kind, last.follow - 1) != (piece.id, piece.kind, piece.follow):
            self.refuse(piece)
            raise ProtocolError(
                "order", "The pieces of an upload come one after the other, and no other's between.", piece.id
            )
        if len(self._data) + len(piece.data) > self._limits.upload_bytes:
            self.refuse(piece)
            raise ProtocolError("limit", f"An upload has at most {self._limits.upload_bytes} bytes.", piece.id)
        if last is None and not piece.follow:
            return piece
        self._last = piece
        self._data += piece.data
        if piece.follow:
            return None
        whole = replace(piece, data=bytes(self._data))
        self._forget()
        return whole

    def skip(self, piece: Upload) -> bool:
        """Whether it belongs to an upload that was refused."""
        skipped = piece.id in self._refused
        if skipped and not piece.follow:
            del self._refused[piece.id]
        return skipped

    def refuse(self, piece: Upload) -> None:
        """What has come of its upload is forgotten, and what still comes passed over."""
        if self._last is not None and self._last.id == piece.id:
            self._forget()
        if piece.follow:
            self._refused[piece.id] = None
            if len(self._refused) > MOST_REFUSED:
                del self._refused[next(iter(self._refused))]

    def _forget(self) -> None:
        self._last, self._data = None, bytearray()
