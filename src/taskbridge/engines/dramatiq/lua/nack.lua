-- KEYS: acks, bodies, recovered, dead ids, dead bodies. ARGV: id.
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('srem', KEYS[1], ARGV[1]) > 0 then
  local body = redis.call('hget', KEYS[2], ARGV[1])
  if body then
    redis.call('zadd', KEYS[4], now, ARGV[1])
    redis.call('hset', KEYS[5], ARGV[1], body)
    redis.call('hdel', KEYS[2], ARGV[1])
  end
  redis.call('srem', KEYS[3], ARGV[1])
end
