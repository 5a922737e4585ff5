-- KEYS: index. ARGV: tags. Returns: how many are still held.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[1], '')  -- removes nothing, but a full Redis refuses no later write of this script
local held = 0
for i = 1, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    redis.call('ZADD', KEYS[1], 'XX', now, ARGV[i])
    held = held + 1
  end
end
return held
