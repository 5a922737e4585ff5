-- Park messages; the same member again replaces the first.
-- KEYS: due, messages, engines. ARGV: engine, then of each message member, delay in ms, text.
local now = math.ceil(now_ms())  -- never early
for i = 2, #ARGV, 3 do
  own('ZADD', KEYS[1], now + ARGV[i + 1], ARGV[i])
  own('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
end
own('SADD', KEYS[3], ARGV[1])
