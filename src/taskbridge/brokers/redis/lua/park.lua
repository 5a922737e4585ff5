-- Park messages.
-- KEYS: due, messages, engines. ARGV: engine, then of each message member, delay in ms, text.
local now = math.ceil(now_ms())  -- never early
for i = 2, #ARGV, 3 do park(KEYS[1], KEYS[2], now + ARGV[i + 1], ARGV[i], ARGV[i + 2]) end
own('SADD', KEYS[3], ARGV[1])
