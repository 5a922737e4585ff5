"""The Lua scripts of this engine's Redis broker; each is carried out as a whole, or not at all.

"Acks" is Dramatiq's name for a set of ids that a worker has taken from a queue and not acknowledged.
"""

from __future__ import annotations

from typing import Final

from taskbridge.brokers.redis.scripts import Script

# Returns the list to which a message goes back.
_HOME: Final = """
local function home(queue, id)
  local level = string.match(id, '^(%l+):')
  if level == 'critical' or level == 'high' or level == 'low' then
    return queue .. ':' .. level
  end
  return queue
end
"""

_NOW: Final = """
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS: heartbeats, acks, bodies, recovered, the lists in order. ARGV: worker, how many to take, how many are in hand,
# then the ids of those in hand that are done with.
# Returns: whether more is marked as taken than is in hand; then of each message the id, the body, and whether it was
# recovered from a worker that died.
# The sign of life is left out where there is nothing to take: LeaseKeeper gives it, and idle workers look often.
FETCH: Final = Script(
    """
local taken = {redis.call('scard', KEYS[2]) > tonumber(ARGV[3]) and 1 or 0}
for i = 4, #ARGV do
  if redis.call('srem', KEYS[2], ARGV[i]) > 0 then
    redis.call('hdel', KEYS[3], ARGV[i])
    redis.call('srem', KEYS[4], ARGV[i])
  end
end
local left = tonumber(ARGV[2])
if left == 0 or redis.call('exists', unpack(KEYS, 5)) == 0 then
  return taken
end
"""
    + _NOW
    + """
redis.call('zrem', KEYS[1], ARGV[1])  -- first, for a full Redis then refuses no later write of this script
redis.call('zadd', KEYS[1], now, ARGV[1])
for list = 5, #KEYS do
  while left > 0 do
    local id = redis.call('lpop', KEYS[list])
    if not id then
      break
    end
    redis.call('sadd', KEYS[2], id)
    taken[#taken + 1] = id
    taken[#taken + 1] = redis.call('hget', KEYS[3], id)
    taken[#taken + 1] = redis.call('sismember', KEYS[4], id)
    left = left - 1
  end
end
return taken
"""
)

# KEYS: acks, bodies, recovered. ARGV: ids. No heartbeat: it removes only, which Redis lets even a full server do.
ACK: Final = Script(
    """
for i = 1, #ARGV do
  if redis.call('srem', KEYS[1], ARGV[i]) > 0 then
    redis.call('hdel', KEYS[2], ARGV[i])
    redis.call('srem', KEYS[3], ARGV[i])
  end
end
"""
)

# KEYS: acks, bodies, recovered, dead ids, dead bodies. ARGV: id.
NACK: Final = Script(
    _NOW
    + """
if redis.call('srem', KEYS[1], ARGV[1]) > 0 then
  local body = redis.call('hget', KEYS[2], ARGV[1])
  if body then
    redis.call('zadd', KEYS[4], now, ARGV[1])
    redis.call('hset', KEYS[5], ARGV[1], body)
    redis.call('hdel', KEYS[2], ARGV[1])
  end
  redis.call('srem', KEYS[3], ARGV[1])
end
"""
)

# KEYS: acks, bodies, queue, recovered. ARGV: whether they may have been started, as 1 or 0, then their ids; the first
# ends up as the first.
RETURN: Final = Script(
    _HOME
    + """
for i = #ARGV, 2, -1 do
  if redis.call('srem', KEYS[1], ARGV[i]) > 0 and redis.call('hexists', KEYS[2], ARGV[i]) > 0 then
    redis.call('lpush', home(KEYS[3], ARGV[i]), ARGV[i])
    if ARGV[1] == '1' then
      redis.call('sadd', KEYS[4], ARGV[i])
    end
  end
end
"""
)

# KEYS: acks, bodies, queue. ARGV: the ids that the worker has in hand. Returns how many it had not.
RECONCILE: Final = Script(
    _HOME
    + """
local in_hand = {}
for i = 1, #ARGV do
  in_hand[ARGV[i]] = true
end
local lost = 0
for _, id in ipairs(redis.call('smembers', KEYS[1])) do
  if not in_hand[id] then
    redis.call('srem', KEYS[1], id)
    if redis.call('hexists', KEYS[2], id) > 0 then
      redis.call('lpush', home(KEYS[3], id), id)
    end
    lost = lost + 1
  end
end
return lost
"""
)

# KEYS: heartbeats, the worker's set of queues. ARGV: worker, queues ...
BEAT: Final = Script(
    _NOW
    + """
redis.call('zrem', KEYS[1], ARGV[1])  -- first, for a full Redis then refuses no later write of this script
redis.call('zadd', KEYS[1], now, ARGV[1])
redis.call('sadd', KEYS[2], unpack(ARGV, 2))
"""
)

# KEYS: heartbeats. ARGV: namespace, lease in ms, whether to look at strange workers too, ms after which those are
# forgotten, ms after which Dramatiq's own dead messages are, queues ... Returns how many messages went back.
MAINTAIN: Final = Script(
    _NOW
    + _HOME
    + """
local namespace = ARGV[1]

local function give_back(worker, queue)
  local acks = namespace .. ':__acks__.' .. worker .. '.' .. queue
  local key = namespace .. ':' .. queue
  local count = 0
  for _, id in ipairs(redis.call('smembers', acks)) do
    if redis.call('hexists', key .. '.msgs', id) > 0 then
      redis.call('lpush', home(key, id), id)
      redis.call('sadd', key .. '.recovered', id)
      count = count + 1
    end
  end
  redis.call('del', acks)
  return count
end

local returned = 0
for _, worker in ipairs(redis.call('zrangebyscore', KEYS[1], '-inf', now - ARGV[2])) do
  local own_queues = namespace .. ':__queues__.' .. worker
  local queues = redis.call('smembers', own_queues)
  for _, queue in ipairs(queues) do
    returned = returned + give_back(worker, queue)
  end
  if #queues > 0 then
    redis.call('del', own_queues)
    redis.call('zrem', KEYS[1], worker)
  elseif ARGV[3] == '1' then
    for i = 6, #ARGV do
      returned = returned + give_back(worker, ARGV[i])
    end
  end
end
redis.call('zremrangebyscore', KEYS[1], '-inf', now - ARGV[4])

for i = 6, #ARGV do
  local dead = namespace .. ':' .. ARGV[i] .. '.XQ'
  local ids = redis.call('zrangebyscore', dead, '-inf', now - ARGV[5], 'limit', 0, 1000)
  if #ids > 0 then
    redis.call('zrem', dead, unpack(ids))
    redis.call('hdel', dead .. '.msgs', unpack(ids))
  end
end
return returned
"""
)

# KEYS: heartbeats, the worker's set of queues. ARGV: worker, its sets of taken messages ...
LEAVE: Final = Script(
    """
for i = 2, #ARGV do
  if redis.call('scard', ARGV[i]) > 0 then
    return 0
  end
end
redis.call('del', KEYS[2])
redis.call('zrem', KEYS[1], ARGV[1])
return 1
"""
)
