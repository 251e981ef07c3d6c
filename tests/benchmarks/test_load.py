"""The benchmark's own client: what it reads of an answer, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest

from benchmarks.load import Client

BODY = bytes(range(256)) * 300


async def answers(replies: list[bytes]) -> tuple[list[tuple[int, bool]], int, list[bytes]]:
    """What a client makes of these replies to its requests, one after the other; on how many connections; and what
    came."""
    connections, received, left = 0, list[bytes](), list(replies)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while left:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            received.append(head + await reader.readexactly(len(BODY)))
            reply = left.pop(0)
            writer.write(reply)
            await writer.drain()
            if b"close" in reply or not reply:
                break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with closing(Client(f"http://127.0.0.1:{port}/score", timeout_s=2.5)) as client:
            results = [await client.send(client.request(BODY)) for _ in replies]
    return results, connections, received


def reply(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


@pytest.mark.parametrize("close", [False, True])
def test_a_connection_is_kept_unless_the_service_closes_it(close: bool) -> None:
    headers = ["Connection: close"] if close else []
    replies = [reply("200 OK", *headers, body=b"{}"), reply("503 Service Unavailable", "Retry-After: 1", *headers)]
    results, connections, received = asyncio.run(answers(replies))
    assert results == [(200, False), (503, True)]
    assert connections == (2 if close else 1)
    head, body = received[0].split(b"\r\n\r\n", 1)
    assert body == BODY
    assert head.startswith(b"POST /score HTTP/1.1\r\n")
    assert f"Content-Length: {len(BODY)}".encode() in head
    assert b"X-Request-Timeout: 2.5" in head


def test_no_answer_is_told_as_such() -> None:
    results, connections, _ = asyncio.run(answers([b"", reply("200 OK")]))
    assert results == [(0, False), (200, False)]
    assert connections == 2
