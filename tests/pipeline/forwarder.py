"""An endpoint of its own before a simulator, as a process: TCP from one port to another. What it holds is lost when it is killed."""

from __future__ import annotations

import asyncio
import sys


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def main(target: int, port: int) -> None:
    async def entered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_simulator, to_simulator = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pipe(reader, to_simulator), pipe(from_simulator, writer))

    server = await asyncio.start_server(entered, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
