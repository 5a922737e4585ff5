-- KEYS: acks, bodies, queue. ARGV: the ids that the worker has in hand. Returns how many it had not.
-- Returns the list to which a message goes back.
local function home(queue, id)
  local level = string.match(id, '^(%l+):')
  if level == 'critical' or level == 'high' or level == 'low' then
    return queue .. ':' .. level
  end
  return queue
end
local in_hand = {}
for i = 1, #ARGV do
  in_hand[ARGV[i]] = true
end
local lost = 0
for _, id in ipairs(redis.call('smembers', KEYS[1])) do
  if not in_hand[id] then
    redis.call('srem', KEYS[1], id)
    if redis.call('hexists', KEYS[2], id) > 0 then
      redis.call('lpush', home(KEYS[3], id), id)
    end
    lost = lost + 1
  end
end
return lost
