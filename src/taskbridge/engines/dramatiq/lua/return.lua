-- KEYS: acks, bodies, queue, recovered. ARGV: whether they may have been started, as 1 or 0, then their ids; the first
-- ends up as the first.
-- Returns the list to which a message goes back.
local function home(queue, id)
  local level = string.match(id, '^(%l+):')
  if level == 'critical' or level == 'high' or level == 'low' then
    return queue .. ':' .. level
  end
  return queue
end
for i = #ARGV, 2, -1 do
  if redis.call('srem', KEYS[1], ARGV[i]) > 0 and redis.call('hexists', KEYS[2], ARGV[i]) > 0 then
    redis.call('lpush', home(KEYS[3], ARGV[i]), ARGV[i])
    if ARGV[1] == '1' then
      redis.call('sadd', KEYS[4], ARGV[i])
    end
  end
end
