"""What a server says of itself, and what the system says of its process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.servers import PrivateRabbitMQ, PrivateRedis, PrivateServer

_COLLECTED: Final = "[erlang:garbage_collect(Each) || Each <- erlang:processes()], erlang:memory([total, processes])."
"""What Erlang has allocated without what it would collect sooner or later; its resident set shrinks late, if at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a server has done since it was started, and holds now.

    Attributes:
        cpu_s: The CPU time that it has used.
        held: The bytes of memory that it has allocated; of RabbitMQ, and what follows, 0 if it was not asked closely.
        kept: Those of them that its own processes hold, without messages and the buffers of sockets, which RabbitMQ
            makes as large as the system's: on a loopback 4 MB, on a network some 100 KB. Redis tells no difference.
        commands: The commands that Redis has carried out, those in scripts too; 0 of RabbitMQ.
        connections: The connections that are open.
        channels: The channels in them; 0 of Redis.
        moved: The bytes that were received and sent by it, on the connections that RabbitMQ has now.
    """

    cpu_s: float
    held: int = 0
    kept: int = 0
    commands: int = 0
    connections: int = 0
    channels: int = 0
    moved: int = 0


def read(server: PrivateServer, *, closely: bool = False) -> Reading:
    """Ask a server.

    Args:
        server: Which one.
        closely: Whether RabbitMQ is asked about its memory and connections, which takes 4 s, and much CPU time of its
            own; Redis always tells all.
    """
    if isinstance(server, PrivateRedis):
        return from_info(server.command("INFO"))
    assert isinstance(server, PrivateRabbitMQ)
    cpu_s = _cpu_s(server.pid)
    if not closely:
        return Reading(cpu_s=cpu_s)
    numbers = counted(server.ctl("list_connections", "channels", "recv_oct", "send_oct"))
    total, processes = re.findall(r"\d+", server.ctl("eval", _COLLECTED))
    return Reading(
        cpu_s=cpu_s,
        held=int(total),
        kept=int(processes),
        connections=len(numbers),
        channels=sum(each[0] for each in numbers),
        moved=sum(each[1] + each[2] for each in numbers),
    )


_HELD: Final = """
local held, cursor = 0, '0'
repeat
    local page = redis.call('SCAN', cursor, 'MATCH', ARGV[1], 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do held = held + redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0) end
until cursor == '0'
return tostring(held)
"""


def held_by(server: PrivateRedis, pattern: str) -> int:
    """Return the bytes that Redis has allocated for the keys that match a pattern."""
    return int(server.command("EVAL", _HELD, "0", pattern))


def _cpu_s(pid: int | None) -> float:
    """Return the CPU time of a process's threads that live; its own account of it goes by steps of 10 ms."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e9


def from_info(text: str) -> Reading:
    """Return what Redis answers to INFO."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return Reading(
        cpu_s=float(fields["used_cpu_user"]) + float(fields["used_cpu_sys"]),
        held=int(fields["used_memory"]),
        kept=int(fields["used_memory"]),
        commands=int(fields["total_commands_processed"]),
        connections=int(fields["connected_clients"]),
        moved=int(fields["total_net_input_bytes"]) + int(fields["total_net_output_bytes"]),
    )


def counted(table: str) -> list[tuple[int, ...]]:
    """Return the lines of numbers that rabbitmqctl prints below the names of its columns."""
    words = [line.split() for line in table.splitlines()]
    return [tuple(map(int, line)) for line in words if line and all(word.isdecimal() for word in line)]
