-- KEYS: acks, bodies, recovered. ARGV: ids. No heartbeat: it removes only, which Redis lets even a full server do.
for i = 1, #ARGV do
  if redis.call('srem', KEYS[1], ARGV[i]) > 0 then
    redis.call('hdel', KEYS[2], ARGV[i])
    redis.call('srem', KEYS[3], ARGV[i])
  end
end
