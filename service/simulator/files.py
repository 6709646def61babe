"""/v1/files: an upload goes to a temporary file as it arrives; memory holds only where its parts are."""

import mmap
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.parser import HeaderParser
from hashlib import sha256
from typing import BinaryIO

from aiohttp import web

from service.simulator import models
from service.simulator.call import Call, too_large
from service.simulator.errors import ApiError, invalid, not_found
from service.simulator.generate import new_id
from service.simulator.limits import rfc3339

LIMIT = 500 << 20  # Errors page, request size limits
_PIECE = 1 << 18


@dataclass
class File:
    """One file: what is said about it and where its bytes are."""

    id: str
    owner: str
    created: float
    name: str
    mime_type: str
    storage: BinaryIO
    start: int
    size: int
    expires: float | None = None

    def shown(self) -> dict[str, object]:
        """The file as the API shows it. Unlike there, uploads can be downloaded."""
        return {
            "id": self.id,
            "type": "file",
            "filename": self.name,
            "mime_type": self.mime_type,
            "size_bytes": self.size,
            "created_at": rfc3339(int(self.created)),
            "expires_at": self.expires and rfc3339(int(self.expires)),
            "downloadable": True,
        }


@dataclass
class _Part:
    """One part of a multipart body; `start` and `end` say where its content is."""

    name: str
    filename: str | None
    mime_type: str
    start: int
    end: int


class Files:
    """The files of all keys and the handlers that serve them."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}

    async def upload(self, call: Call) -> web.StreamResponse:
        """Keep the part called `file`; raises a 400 that names what is missing."""
        with ExitStack() as unless_kept:
            storage = unless_kept.enter_context(tempfile.TemporaryFile())
            await _spool(call, storage)
            file = _file(call, storage)
            unless_kept.pop_all()
        self._files[file.id] = file
        return call.answer(file.shown())

    async def list(self, call: Call) -> web.StreamResponse:
        """One page of the key's files, newest first; `ids[]` picks some."""
        query = call.request.query
        wanted = query.getall("ids[]", None) or query.getall("ids", None)
        mine = [
            file.shown()
            for file in reversed(self._files.values())
            if file.owner == call.line.key_hash and (not wanted or file.id in wanted)
        ]
        return call.answer(models.page(mine, dict(query)))

    async def retrieve(self, call: Call) -> web.StreamResponse:
        """What is said about one file."""
        return call.answer(self._find(call).shown())

    async def delete(self, call: Call) -> web.StreamResponse:
        """Forget a file."""
        file = self._find(call)
        del self._files[file.id]
        file.storage.close()
        return call.answer({"id": file.id, "type": "file_deleted"})

    async def content(self, call: Call) -> web.StreamResponse:
        """The bytes of one file, streamed."""
        file = self._find(call)
        call.line.status = 200
        response = web.StreamResponse(headers={**call.response_headers(), "content-type": file.mime_type})
        response.content_length = file.size
        await response.prepare(call.request)
        call.line.first_byte = call.sim.clock.time()
        for start in range(0, file.size, _PIECE):
            file.storage.seek(file.start + start)
            await response.write(file.storage.read(min(_PIECE, file.size - start)))
        await response.write_eof()
        return response

    async def close(self, _: web.Application) -> None:
        """Give up all files, when the application ends."""
        for file in self._files.values():
            file.storage.close()

    def _find(self, call: Call) -> File:
        file = self._files.get(call.request.match_info["id"])
        if file is None or file.owner != call.line.key_hash:
            raise not_found(f"File not found: {call.request.match_info['id']}")
        if file.expires is not None and file.expires <= call.sim.clock.time():
            raise ApiError(404, "not_found_error", "File has expired", code="file_expired")
        return file


async def _spool(call: Call, storage: BinaryIO) -> None:
    """Write the body to `storage`, piece by piece; raises 413 when it is too large."""
    digest, size = sha256(), 0
    if (call.request.content_length or 0) > LIMIT:
        raise too_large()
    async for piece in call.request.content.iter_any():
        size += len(piece)
        if size > LIMIT:
            raise too_large()
        digest.update(piece)
        storage.write(piece)
    storage.flush()
    call.recorded.body_bytes, call.recorded.body_sha256 = size, digest.hexdigest()


def _file(call: Call, storage: BinaryIO) -> File:
    parts = {part.name: part for part in _parts(storage, call.request.headers.get("content-type", ""))}
    part = parts.get("file")
    if part is None or part.filename is None:
        raise invalid("file: Field required")
    now = call.sim.clock.time()
    return File(
        id=new_id("file_011C", 20),
        owner=call.line.key_hash,
        created=now,
        name=part.filename,
        mime_type=part.mime_type,
        storage=storage,
        start=part.start,
        size=part.end - part.start,
        expires=_expiry(storage, parts.get("expires_in_seconds"), now),
    )


def _parts(storage: BinaryIO, content_type: str) -> Iterator[_Part]:
    """The parts of a multipart/form-data body (RFC 7578), found without reading it into memory."""
    boundary = re.search(r'boundary="?([^";,]+)"?', content_type)
    if not content_type.startswith("multipart/form-data") or boundary is None:
        raise invalid("content-type: must be multipart/form-data with a boundary")
    if not storage.seek(0, 2):
        return
    mark = b"--" + boundary[1].encode()
    with mmap.mmap(storage.fileno(), 0, access=mmap.ACCESS_READ) as view:
        at = view.find(mark)
        while at >= 0 and view[at + len(mark) : at + len(mark) + 2] == b"\r\n":
            head, end = view.find(b"\r\n\r\n", at), view.find(b"\r\n" + mark, at)
            if not 0 <= head < end:
                raise invalid("The multipart body is cut off")
            headers = HeaderParser().parsestr(view[at + len(mark) + 2 : head + 4].decode(errors="replace"))
            name = str(headers.get_param("name", "", "content-disposition"))
            mime_type = headers.get("content-type", "application/octet-stream")
            yield _Part(name, headers.get_filename(), mime_type, head + 4, end)
            at = end + 2


def _expiry(storage: BinaryIO, part: _Part | None, now: float) -> float | None:
    if part is None:
        return None
    storage.seek(part.start)
    text = storage.read(part.end - part.start)
    if not text.isdigit():
        raise invalid("expires_in_seconds: Input should be a valid integer")
    return now + int(text)
