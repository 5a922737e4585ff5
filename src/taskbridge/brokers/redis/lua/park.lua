-- Park messages; the same member again replaces the first.
-- KEYS: due, messages, engines. ARGV: engine, then of each message member, delay in ms, text.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if time[2] % 1000 > 0 then now = now + 1 end  -- never early
for i = 2, #ARGV, 3 do
  redis.call('ZADD', KEYS[1], now + ARGV[i + 1], ARGV[i])
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
end
redis.call('SADD', KEYS[3], ARGV[1])
