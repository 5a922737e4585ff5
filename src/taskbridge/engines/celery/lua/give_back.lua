-- KEYS: unacked, index, list. ARGV: tag, item, lease in ms (0: whatever its lease). Returns: 1 if this put it back.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
local lease = tonumber(ARGV[3])
if lease > 0 and score and tonumber(score) > now - lease then return 0 end  -- renewed meanwhile
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('RPUSH', KEYS[3], ARGV[2])  -- where the next one is taken from
return 1
