"""What happens to records and ticks on the Redis server in one step: the Lua scripts, and the keys that they work on.

| key | type | holds |
|---|---|---|
| `{ns}:record:{id}` | hash | a record, see below |
| `{ns}:ended:{id}` | channel | tells that a record became final |
| `{ns}:cancelled` | sorted set | the life of each cancelled message, by a growing number made of the server's time |
| `{ns}:cancelled:until` | sorted set | the same, by the millisecond at which it is forgotten |
| `{ns}:schedule:{name}` | hash | what is known of a schedule; the claim of an instant is the field `c:{instant}` |

A record's fields: `m`, the task, the queue and when it was sent, as JSON; `state`, `due`, `ended`, `replays`, `reason`,
`error`, `traceback`, `result`, `asked` for cancellation; `s{n}` and `e{n}`, start and end of attempt n, as JSON;
`attempt`, the latest that was heard of, `over`, the latest that ended; `writer` and `written`, who wrote last about a
run.
What is absent has its default. The rules are those of `taskbridge.stores.transitions`.
"""

from __future__ import annotations

from typing import Final

from taskbridge.brokers.redis.scripts import Script
from taskbridge.stores.records import CANCEL_KNOWN_S, MOST_ATTEMPTS

_FINAL: Final = "local final = {done = 1, dead = 1, discarded = 1, cancelled = 1}\n"

CREATE: Final = Script("""
for i, k in ipairs(KEYS) do
  local a = 5 * (i - 1)
  local old = redis.call('HMGET', k, 'state', 'replays')
  if not old[1] or tonumber(old[2] or '0') < tonumber(ARGV[a + 1]) then
    if old[1] then redis.call('DEL', k) end
    redis.call('HSET', k, 'm', ARGV[a + 3], 'state', ARGV[a + 4], 'replays', ARGV[a + 1])
    if ARGV[a + 5] ~= '' then redis.call('HSET', k, 'due', ARGV[a + 5]) end
    if ARGV[a + 2] ~= '' then redis.call('PEXPIRE', k, ARGV[a + 2]) end
  end
end
return 1
""")
"""KEYS: records. ARGV, for each: replays, how long it is kept in ms or nothing, m, state, due or nothing."""

FORGET: Final = Script("""
for _, k in ipairs(KEYS) do
  local old = redis.call('HMGET', k, 'state', 'attempt')
  if not old[2] and (old[1] == 'queued' or old[1] == 'scheduled') then redis.call('UNLINK', k) end
end
return 1
""")
"""KEYS: records."""

_JUDGE: Final = (
    _FINAL
    + """
local k, attempt, at = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local old = redis.call('HMGET', k, 'state', 'replays', 'attempt', 'over', 'writer', 'written', 'ended', 'asked')
local state, replays, latest = old[1], tonumber(old[2] or '0'), tonumber(old[3] or '0')
if state and replays > tonumber(ARGV[1]) then return '' end
local same = state and replays == tonumber(ARGV[1])
if same and (latest > attempt or tonumber(old[4] or '0') >= attempt) then return state end
local asked = same and old[8]
local function won(run_at)
  return state == 'cancelled' and run_at and run_at <= tonumber(old[7]) + """
    + repr(CANCEL_KNOWN_S)
    + """
end
local function begin()
  if same then return end
  redis.call('DEL', k)
  redis.call('HSET', k, 'm', ARGV[3], 'replays', ARGV[1])
end
local gone = string.format('%d', attempt - """
    + str(MOST_ATTEMPTS)
    + """)
local function keep(ms)
  if ms == '' then redis.call('PERSIST', k) else redis.call('PEXPIRE', k, ms) end
end
"""
)
"""ARGV: replays, attempt, m, when it happened. Ends the script where the write is of an earlier time."""

STARTED: Final = Script(
    _JUDGE
    + """
if same then
  if latest == attempt and old[5] == ARGV[5] and at <= tonumber(old[6]) then return 0 end
  if final[state] and not won(at) then return 0 end
  if final[state] then redis.call('HSET', k, 'asked', '1') end
end
begin()
redis.call('HDEL', k, 'due', 'ended', 'e' .. ARGV[2], 's' .. gone, 'e' .. gone)
redis.call('HSET', k, 'state', 'running', 'attempt', ARGV[2], 'writer', ARGV[5], 'written', ARGV[4])
redis.call('HSET', k, 's' .. ARGV[2], ARGV[6])
keep(ARGV[7])
return 1
"""
)
"""KEYS: a record. ARGV: those of `_JUDGE`, writer, s{n}, how long it is kept in ms or nothing."""

ENDED: Final = Script(
    _JUDGE
    + """
if same and final[state] then
  if not won(tonumber(ARGV[7])) then return state end
  asked = '1'
end
local new = ARGV[8]
if new == 'queued' and same and state == 'running' and old[5] ~= ARGV[5] then return state end
begin()
redis.call('HDEL', k, 'due', 'ended', 'reason', 'traceback', 'result', 's' .. gone, 'e' .. gone)
local words = {'attempt', ARGV[2]}
local function set(field, value) words[#words + 1] = field; words[#words + 1] = value end
if asked then set('asked', '1') end
if new == 'queued' then
  redis.call('HDEL', k, 's' .. ARGV[2], 'e' .. ARGV[2])
  set('writer', ARGV[5])
  set('written', ARGV[4])
else
  set('over', ARGV[2])
  set('e' .. ARGV[2], ARGV[12])
  if ARGV[6] ~= '' then set('s' .. ARGV[2], ARGV[6]) end
end
if ARGV[14] ~= '' then set('error', ARGV[14]) end
if final[new] and ARGV[13] ~= '' then set('reason', ARGV[13]) end
if new == 'dead' and ARGV[15] ~= '' then set('traceback', ARGV[15]) end
if new == 'done' and ARGV[16] ~= '' then set('result', ARGV[16]) end
if asked and not final[new] then new = 'cancelled' end
set('state', new)
if new == 'retrying' and ARGV[9] ~= '' then set('due', ARGV[9]) end
if final[new] then set('ended', ARGV[4]) end
redis.call('HSET', k, unpack(words))
if final[new] then
  keep(ARGV[10])
  redis.call('PUBLISH', KEYS[2], new)
else
  keep(ARGV[11])
end
return new
"""
)
"""KEYS: a record, its channel. Returns the state that it left; nothing if the record is of a later life.

ARGV: those of `_JUDGE`, writer, s{n} and when it started or nothing, state, due, how long it is kept if it is final and
if it is not, e{n}, reason, error, traceback, result.
"""

CANCEL: Final = Script(
    _FINAL
    + """
local k = KEYS[1]
local old = redis.call('HMGET', k, 'state', 'replays', 'due')
if not old[1] then return {} end
if final[old[1]] then return redis.call('HGETALL', k) end
local time = redis.call('TIME')
local number = time[1] * 1000000 + time[2]
local now = math.floor(number / 1000)
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if last and tonumber(last) >= number then number = tonumber(last) + 1 end
local life = ARGV[2]
if tonumber(old[2] or '0') > 0 then life = life .. '.' .. old[2] end
local known = '+inf'
if ARGV[3] ~= '' then
  known = string.format('%.0f', math.max(now, tonumber(old[3] or '0') * 1000) + ARGV[3])
end
redis.call('ZADD', KEYS[2], string.format('%.0f', number), life)
redis.call('ZADD', KEYS[3], known, life)
local gone = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 100)
if #gone > 0 then
  redis.call('ZREM', KEYS[2], unpack(gone))
  redis.call('ZREM', KEYS[3], unpack(gone))
end
if old[1] == 'running' then
  redis.call('HSET', k, 'asked', '1')
else
  redis.call('HDEL', k, 'due')
  redis.call('HSET', k, 'state', 'cancelled', 'ended', ARGV[1])
  if ARGV[4] == '' then redis.call('PERSIST', k) else redis.call('PEXPIRE', k, ARGV[4]) end
  redis.call('PUBLISH', KEYS[4], 'cancelled')
end
return redis.call('HGETALL', k)
"""
)
"""KEYS: a record, the two sorted sets, the record's channel.

ARGV: when, the id, how long the cancellation is kept past the due time in ms or nothing, how long the record is.
"""

BEGIN: Final = Script("""
redis.call('HSETNX', KEYS[1], 'settled', ARGV[1])
return redis.call('HMGET', KEYS[1], 'settled', 'paused', 'last_id', 'last_at', 'missed')
""")
"""KEYS: a schedule. ARGV: until when it is settled if nobody knew of it."""

CLAIM_TICK: Final = Script("""
local k = KEYS[1]
local settled = redis.call('HGET', k, 'settled')
if settled and tonumber(ARGV[1]) <= tonumber(settled) then return 'settled' end
local claim = redis.call('HGET', k, 'c:' .. ARGV[1])
if claim then
  local ends, claimant = string.match(claim, '^(%S+) (.*)$')
  if claimant ~= ARGV[2] and tonumber(ends) > tonumber(ARGV[3]) then return 'claimed' end
end
redis.call('HSET', k, 'c:' .. ARGV[1], ARGV[4] .. ' ' .. ARGV[2])
if claim then return 'again' end
return 'ours'
""")
"""KEYS: a schedule. ARGV: the instant, the claimant, now, when the claim ends."""

RELEASE_TICK: Final = Script("""
local claim = redis.call('HGET', KEYS[1], 'c:' .. ARGV[1])
if claim and string.match(claim, '^%S+ (.*)$') == ARGV[2] then redis.call('HDEL', KEYS[1], 'c:' .. ARGV[1]) end
return 1
""")
"""KEYS: a schedule. ARGV: the instant, the claimant."""

SETTLE: Final = Script("""
local k = KEYS[1]
local settled = redis.call('HGET', k, 'settled')
if settled and tonumber(ARGV[1]) <= tonumber(settled) then return 0 end
redis.call('HSET', k, 'settled', ARGV[1])
redis.call('HINCRBY', k, 'missed', ARGV[3])
if ARGV[2] ~= '' then redis.call('HSET', k, 'last_id', ARGV[2], 'last_at', ARGV[1]) end
for _, field in ipairs(redis.call('HKEYS', k)) do
  local instant = string.match(field, '^c:(.*)$')
  if instant and tonumber(instant) <= tonumber(ARGV[1]) then redis.call('HDEL', k, field) end
end
return 1
""")
"""KEYS: a schedule. ARGV: the instant, the message's id or nothing, how many were missed."""

PAUSE: Final = Script("""
redis.call('HSETNX', KEYS[1], 'settled', ARGV[2])
redis.call('HSET', KEYS[1], 'paused', ARGV[1])
return 1
""")
"""KEYS: a schedule. ARGV: 1 or 0, until when it is settled if nobody knew of it."""
