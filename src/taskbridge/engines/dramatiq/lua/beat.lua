-- KEYS: heartbeats, the worker's set of queues. ARGV: worker, queues ...
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('zrem', KEYS[1], ARGV[1])  -- first, for a full Redis then refuses no later write of this script
redis.call('zadd', KEYS[1], now, ARGV[1])
redis.call('sadd', KEYS[2], unpack(ARGV, 2))
