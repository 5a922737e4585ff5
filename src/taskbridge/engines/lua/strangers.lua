-- Look after what stock Dramatiq clients leave behind, as Dramatiq's own maintenance does by chance (dispatch.lua).
-- KEYS: the heartbeats of Dramatiq's clients. ARGV: namespace, ms after which a worker is dead, ms after which a client is
-- forgotten, ms after which Dramatiq's own dead messages are, then queues. Returns: how many messages went back.
local now, count = math.floor(now_ms()), 0
for _, worker in ipairs(try('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2]) or {}) do
  for i = 5, #ARGV do
    local acks, queue = ARGV[1] .. ':__acks__.' .. worker .. '.' .. ARGV[i], ARGV[1] .. ':' .. ARGV[i]
    for _, id in ipairs(try('SMEMBERS', acks) or {}) do
      local level = id:match('^(%l+):')
      redis.call('SREM', acks, id)
      local reply = put_back(level and queue .. ':' .. level or queue, id, true)
      if type(reply) == 'table' then redis.call('SADD', acks, id) else count = count + 1 end
    end
  end
end
try('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
for i = 5, #ARGV do
  local dead = ARGV[1] .. ':' .. ARGV[i] .. '.XQ'
  local ids = try('ZRANGEBYSCORE', dead, '-inf', now - ARGV[4], 'LIMIT', 0, 1000) or {}
  if #ids > 0 then
    redis.call('ZREM', dead, unpack(ids))
    try('HDEL', dead .. '.msgs', unpack(ids))
  end
end
return count
