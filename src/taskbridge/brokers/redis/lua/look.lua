-- Look for due messages, and claim them: other pumps don't see them for a while, and if this one dies, they will.
-- KEYS: due, messages. ARGV: claim in ms, most messages, most bytes.
-- Returns: ms until there is more (0: more is due; -1: nothing more is parked), then of each member, score, text.
local now, room = math.floor(now_ms()), tonumber(ARGV[3])
local claimed = string.format('%.0f', now + ARGV[1])
local result = {-1}
for _, member in ipairs(own('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local text = try('HGET', KEYS[2], member)  -- without one it is gone: somebody has changed the hash by hand
  redis.call('ZREM', KEYS[1], member)  -- not only ZADD: as a script's first write it needs memory to spare
  if text then
    redis.call('ZADD', KEYS[1], claimed, member)
    result[#result + 1] = member
    result[#result + 1] = claimed
    result[#result + 1] = text
    room = room - #text
    if room <= 0 then break end
  end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if first[2] then result[1] = math.max(0, tonumber(first[2]) - now) end
return result
