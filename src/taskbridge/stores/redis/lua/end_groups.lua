-- Has groups expire.
-- KEYS: the groups. ARGV: in how many ms; empty is never.
local at = ARGV[1] ~= '' and math.floor(now_ms()) + ARGV[1]
for _, group in ipairs(KEYS) do
  local keys = {group, group .. ':ended'}
  for index = 0, (try('STRLEN', keys[2]) or 0) * 8, 100 do keys[#keys + 1] = page_of(group, index) end
  if at then
    own('HSET', group, 'until', at)
    own('APPEND', keys[2], '')  -- makes it, so that it expires, though the first member ends later
  end
  if at or try('HDEL', group, 'until') == 1 then
    for _, key in ipairs(keys) do
      if at then redis.call('PEXPIREAT', key, at) else redis.call('PERSIST', key) end
    end
  end
end
