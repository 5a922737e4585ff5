-- KEYS: heartbeats, the worker's set of queues. ARGV: worker, its sets of taken messages ...
for i = 2, #ARGV do
  if redis.call('scard', ARGV[i]) > 0 then
    return 0
  end
end
redis.call('del', KEYS[2])
redis.call('zrem', KEYS[1], ARGV[1])
return 1
