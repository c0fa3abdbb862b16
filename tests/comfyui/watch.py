"""Print ComfyUI's websocket messages, one JSON text per line: `watch.py URL CLIENT_ID`. Runs in ComfyUI's Python."""

from __future__ import annotations

import asyncio
import sys

import aiohttp


async def watch(url: str, client_id: str) -> None:
    """Print messages until the server closes the connection."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws?clientId={client_id}") as socket:
        async for message in socket:
            if message.type == aiohttp.WSMsgType.TEXT:
                sys.stdout.write(message.data + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(watch(*sys.argv[1:]))
