"""What happens on the Redis server in one step: the Lua scripts, and the keys that they work on.

All times are in milliseconds since the epoch, and the server's own clock's, so that no two computers' clocks are
compared; only a dead letter's is that of the worker that buried it.

| key | type | holds |
|---|---|---|
| `{ns}:parked:{engine}` | sorted set | `id:attempt` of each parked message, by when it is due |
| `{ns}:parked:{engine}:messages` | hash | the message of each, as `Message.dumps` wrote it |
| `{ns}:engines` | set | the engines whose bridges have parked something |
| `{ns}:pumps:{engine}` | sorted set | the engine's living pumps, by when they will have been silent for too long |
| `{ns}:dead` | sorted set | the id of each dead letter, by when it died |
| `{ns}:dead:letters` | hash | each dead letter, as `DeadLetter.dumps` wrote it |

A script that fails at its first write, for want of memory or on a replica, has changed nothing; Redis refuses no later
write of a script for these reasons. A `kill -9` of the server keeps all of a script's changes or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from typing import Final


class Script:
    """A Lua script, and the name by which the server knows it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text: str = text
        self.sha: str = sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Parking:
    """The keys of what one engine's bridges have parked."""

    namespace: str
    engine: str

    @property
    def due(self) -> str:
        """The sorted set."""
        return f"{self.namespace}:parked:{self.engine}"

    @property
    def messages(self) -> str:
        """The hash."""
        return f"{self.due}:messages"

    @property
    def pumps(self) -> str:
        """The engine's living pumps."""
        return f"{self.namespace}:pumps:{self.engine}"


def engines_key(namespace: str) -> str:
    """Return the key of the engines whose bridges have parked something."""
    return f"{namespace}:engines"


def dead_keys(namespace: str) -> tuple[str, str]:
    """Return the keys of the dead: their ids by time, and their letters."""
    return f"{namespace}:dead", f"{namespace}:dead:letters"


_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

PARK: Final = Script(
    _NOW
    + """
-- KEYS: due, messages, engines. ARGV: engine, then of each message member, delay in ms, text.
if time[2] % 1000 > 0 then now = now + 1 end  -- never early
for i = 2, #ARGV, 3 do
  redis.call('ZADD', KEYS[1], now + ARGV[i + 1], ARGV[i])
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
end
redis.call('SADD', KEYS[3], ARGV[1])
"""
)
"""Park messages; the same member again replaces the first."""

LOOK: Final = Script(
    _NOW
    + """
-- KEYS: due, messages. ARGV: claim in ms, offset, most messages, most bytes.
-- Returns: ms until there is more (0: more is due; -1: nothing more is parked), then of each member, score, text.
local claim, most, room = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', ARGV[2], most)
local result = {-1}
for i = 1, #found, 2 do
  local text = redis.call('HGET', KEYS[2], found[i])
  local score = found[i + 1]
  if claim > 0 then
    score = string.format('%.0f', now + claim)
    redis.call('ZREM', KEYS[1], found[i])  -- not only ZADD: as a script's first write it needs memory to spare
    redis.call('ZADD', KEYS[1], score, found[i])
  end
  result[#result + 1] = found[i]
  result[#result + 1] = score
  result[#result + 1] = text  -- false if there is none
  room = room - (text and #text or 0)
  if room <= 0 then break end
end
local next = claim > 0 and 0 or ARGV[2] + (#result - 1) / 3
local first = redis.call('ZRANGE', KEYS[1], next, next, 'WITHSCORES')
if first[2] then result[1] = math.max(0, tonumber(first[2]) - now) end
return result
"""
)
"""Look for due messages, and claim them: other pumps don't see them for a while, and if this one dies, they will."""

SETTLE: Final = Script(
    _NOW
    + """
-- KEYS: due, messages, dead, letters. ARGV: of each message member, score as looked up, and one of
--   'publish', number of commands, and of each its number of words and its words
--   'bury', id, when it died in ms, letter
--   'postpone', ms
--   'drop'
-- Returns: how many were published, then of each that could not be its member and the error.
local at = 1
local function take()
  at = at + 1
  return ARGV[at - 1]
end
local function command()
  local words = {}
  for i = 1, tonumber(take()) do words[i] = take() end
  return words
end
local result = {0}
while at <= #ARGV do
  local member, looked_up, action = take(), tonumber(take()), take()
  local score = redis.call('ZSCORE', KEYS[1], member)
  local mine = score and tonumber(score) == looked_up
  local keep_ms
  if mine then redis.call('ZREM', KEYS[1], member) end  -- the first write, which needs no memory to spare
  if action == 'publish' then
    local failure
    for _ = 1, tonumber(take()) do
      local words = command()
      if mine and not failure then
        local reply = redis.pcall(unpack(words))
        failure = type(reply) == 'table' and reply.err
      end
    end
    if failure then
      keep_ms = 30000
      result[#result + 1] = member
      result[#result + 1] = failure
    elseif mine then
      result[1] = result[1] + 1
    end
  elseif action == 'bury' then
    local id, died_at, letter = take(), take(), take()
    if mine then
      redis.call('ZADD', KEYS[3], died_at, id)
      redis.call('HSET', KEYS[4], id, letter)
    end
  elseif action == 'postpone' then
    keep_ms = tonumber(take())
  end
  if mine and keep_ms then
    redis.call('ZADD', KEYS[1], now + keep_ms, member)
  elseif mine then
    redis.call('HDEL', KEYS[2], member)
  end
end
return result
"""
)
"""Do with messages what was decided, each only if nobody has moved it since it was looked up."""

BEAT: Final = Script(
    _NOW
    + """
-- KEYS: engines, pumps of the own engine. ARGV: namespace, own engine, pump, time to live in ms.
-- Returns: how many of the own engine's pumps live, then the other engines that have something parked and none.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)  -- before ZADD, which as the first write needs memory to spare
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local result = {redis.call('ZCARD', KEYS[2])}
for _, engine in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if engine ~= ARGV[2]
    and redis.call('EXISTS', ARGV[1] .. ':parked:' .. engine) == 1
    and redis.call('ZCOUNT', ARGV[1] .. ':pumps:' .. engine, '(' .. string.format('%.0f', now), '+inf') == 0
  then
    result[#result + 1] = engine
  end
end
return result
"""
)
"""Say that a pump lives, count those that do, and find whose parked messages nobody promotes."""

BURY: Final = Script(
    _NOW
    + """
-- KEYS: dead, letters. ARGV: time to live in ms, and id, when it died in ms, letter; without these it only trims.
-- Returns: whether there may be more to trim.
if ARGV[2] then
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
end
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1], 'LIMIT', 0, 1000)
if #expired > 0 then
  redis.call('ZREM', KEYS[1], unpack(expired))
  redis.call('HDEL', KEYS[2], unpack(expired))
end
return #expired == 1000 and 1 or 0
"""
)
"""Keep a dead letter, and forget those whose time is over."""

TAKE_DEAD: Final = Script(
    _NOW
    + """
-- KEYS: dead, letters, due, messages, engines. ARGV: engine, then of each letter id, the text's SHA-1 as it was read,
-- and the member and text of the message that is due now, empty if there is none.
-- Returns: of each letter whether it was taken out: 0 if it is not there any more, or another one is.
local result = {}
for i = 2, #ARGV, 4 do
  local letter = redis.call('HGET', KEYS[2], ARGV[i])
  local mine = letter and redis.sha1hex(letter) == ARGV[i + 1]
  if mine then
    redis.call('ZREM', KEYS[1], ARGV[i])  -- the first write, which needs no memory to spare
    redis.call('HDEL', KEYS[2], ARGV[i])
    if ARGV[i + 2] ~= '' then
      redis.call('ZADD', KEYS[3], now, ARGV[i + 2])
      redis.call('HSET', KEYS[4], ARGV[i + 2], ARGV[i + 3])
      redis.call('SADD', KEYS[5], ARGV[1])
    end
  end
  result[#result + 1] = mine and 1 or 0
end
return result
"""
)
"""Take dead letters out; those that are replayed are parked in the same step, due now."""

COUNT: Final = Script(
    _NOW
    + """
-- KEYS: engines, dead, then lists. ARGV: namespace, time to live of the dead in ms.
-- Returns: how many are delayed, how many are dead, then the length of each list.
local delayed = 0
for _, engine in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  delayed = delayed + redis.call('ZCARD', ARGV[1] .. ':parked:' .. engine)
end
local result = {delayed, redis.call('ZCOUNT', KEYS[2], '(' .. string.format('%.0f', now - ARGV[2]), '+inf')}
for i = 3, #KEYS do result[#result + 1] = redis.call('LLEN', KEYS[i]) end
return result
"""
)
"""Count."""
