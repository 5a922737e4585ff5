-- KEYS: index. ARGV: tag, lease in ms. Returns: 1 if its lease was over and is now the caller's.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not score or tonumber(score) > now - ARGV[2] then return 0 end
redis.call('ZADD', KEYS[1], now, ARGV[1])
return 1
