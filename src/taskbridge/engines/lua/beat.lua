-- Renew a worker's lease, and give back what workers hold whose leases are over.
-- KEYS: leases, held. ARGV: worker, lease in ms (0: judge nobody), how the keys begin of what workers hold.
-- Returns: how many messages went back, the tags of what this worker holds, and some of the odd ones, which can't go back.
local function number(tag)  -- of a tag, which anybody may have written
  return tag:find('^%d+$') and #tag < 16 and tonumber(tag)
end

local now = math.floor(now_ms())
local count, lease, renewed = 0, tonumber(ARGV[2]), own('ZSCORE', KEYS[1], ARGV[1])
if renewed and now - renewed > lease / 2 then lease = 0 end  -- Redis was away: others may be about to renew theirs, too
own('ZREM', KEYS[1], ARGV[1])  -- not only ZADD: as a script's first write it needs memory to spare
redis.call('ZADD', KEYS[1], now, ARGV[1])
if lease > 0 then
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - lease, 'LIMIT', 0, 100)) do
    local held = ARGV[3] .. worker
    local tags = own('HKEYS', held)
    table.sort(tags, function(one, other) return (number(one) or 0) > (number(other) or 0) end)
    for _, tag in ipairs(tags) do count = count + settle(held, tag, 'suspect') end  -- the first ends up as the first
    redis.call('ZREM', KEYS[1], worker)
  end
end
local tags = {}
for _, tag in ipairs(own('HKEYS', KEYS[2])) do
  if number(tag) then tags[#tags + 1] = tag else count = count + settle(KEYS[2], tag, 'suspect') end
end
return {count, tags, own('LRANGE', KEYS[1] .. '.odd', 0, 99)}
