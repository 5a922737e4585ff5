-- Renew a worker's lease, and give back what workers hold whose leases are over.
-- KEYS: leases, held. ARGV: worker, lease in ms (0: judge nobody), how the keys begin of what workers hold.
-- Returns: how many messages went back, and the tags of what this worker holds.
local now = math.floor(now_ms())
redis.call('ZREM', KEYS[1], ARGV[1])  -- not only ZADD: as a script's first write it needs memory to spare
redis.call('ZADD', KEYS[1], now, ARGV[1])
local count, lease = 0, tonumber(ARGV[2])
if lease > 0 then
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - lease, 'LIMIT', 0, 100)) do
    local held = ARGV[3] .. worker
    local tags = redis.call('HKEYS', held)
    table.sort(tags, function(one, other) return tonumber(one) > tonumber(other) end)
    for _, tag in ipairs(tags) do count = count + settle(held, tag, 'suspect') end  -- the first ends up as the first
    redis.call('ZREM', KEYS[1], worker)
  end
end
return {count, redis.call('HKEYS', KEYS[2])}
