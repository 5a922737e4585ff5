-- Say that a pump lives, count those that do, and find whose parked messages nobody promotes.
-- KEYS: engines, pumps of the own engine. ARGV: namespace, own engine, pump, time to live in ms.
-- Returns: how many of the own engine's pumps live, then the other engines that have something parked and none.
local now = math.floor(now_ms())
own('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)  -- before ZADD, which as the first write needs memory to spare
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local result = {redis.call('ZCARD', KEYS[2])}
for _, engine in ipairs(own('SMEMBERS', KEYS[1])) do
  if engine ~= ARGV[2]
    and (try('ZCARD', ARGV[1] .. ':parked:' .. engine) or 0) > 0
    and own('ZCOUNT', ARGV[1] .. ':pumps:' .. engine, '(' .. string.format('%.0f', now), '+inf') == 0
  then
    result[#result + 1] = engine
  end
end
return result
