-- Keep a dead letter, and forget those whose time is over.
-- KEYS: dead, letters. ARGV: time to live in ms, and id, when it died in ms, letter; without these it only trims.
-- Returns: whether there may be more to trim.
if ARGV[2] then
  own('ZADD', KEYS[1], ARGV[3], ARGV[2])
  own('HSET', KEYS[2], ARGV[2], ARGV[4])
end
local expired = own('ZRANGEBYSCORE', KEYS[1], '-inf', math.floor(now_ms()) - ARGV[1], 'LIMIT', 0, 1000)
if #expired > 0 then
  redis.call('ZREM', KEYS[1], unpack(expired))
  own('HDEL', KEYS[2], unpack(expired))
end
return #expired == 1000 and 1 or 0
