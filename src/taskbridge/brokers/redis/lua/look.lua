-- Look for due messages, and claim them: other pumps don't see them for a while, and if this one dies, they will.
-- KEYS: due, messages. ARGV: claim in ms (0 claims nothing), how many to pass over, most messages, most bytes.
-- Returns: ms until there is more (0: more is due; -1: nothing more is parked), then of each member, score, text.
local now, claim, room = math.floor(now_ms()), tonumber(ARGV[1]), tonumber(ARGV[4])
local found = own('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', ARGV[2], ARGV[3])
local result = {-1}
for i = 1, #found, 2 do
  local member, score, text = found[i], found[i + 1], try('HGET', KEYS[2], found[i])
  if claim > 0 or not text then  -- without a text it is gone: somebody has changed the hash by hand
    redis.call('ZREM', KEYS[1], member)  -- not only ZADD: as a script's first write it needs memory to spare
  end
  if text then
    if claim > 0 then
      score = string.format('%.0f', now + claim)
      redis.call('ZADD', KEYS[1], score, member)
    end
    result[#result + 1] = member
    result[#result + 1] = score
    result[#result + 1] = text
    room = room - #text
    if room <= 0 then break end
  end
end
local next = claim > 0 and 0 or ARGV[2] + (#result - 1) / 3
local first = redis.call('ZRANGE', KEYS[1], next, next, 'WITHSCORES')
if first[2] then result[1] = math.max(0, tonumber(first[2]) - now) end
return result
