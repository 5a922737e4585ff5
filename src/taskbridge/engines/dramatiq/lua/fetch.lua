-- KEYS: heartbeats, acks, bodies, recovered, the lists in order. ARGV: worker, how many to take, how many are in hand,
-- then the ids of those in hand that are done with.
-- Returns: whether more is marked as taken than is in hand; then of each message the id, the body, and whether it was
-- recovered from a worker that died.
-- The sign of life is left out where there is nothing to take: LeaseKeeper gives it, and idle workers look often.
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
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
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
