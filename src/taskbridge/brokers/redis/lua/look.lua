-- Look for due messages, and claim them: other pumps don't see them for a while, and if this one dies, they will.
-- KEYS: due, messages. ARGV: claim in ms, offset, most messages, most bytes.
-- Returns: ms until there is more (0: more is due; -1: nothing more is parked), then of each member, score, text.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claim, most, room = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', ARGV[2], most)
local result = {-1}
for i = 1, #found, 2 do
  local text = redis.call('HGET', KEYS[2], found[i])
  local score = found[i + 1]
  if claim > 0 then
    score = string.format('%.0f', now + claim)
    redis.call('ZREM', KEYS[1], found[i])  -- not only ZADD: as a script's first write it needs memory to spare
    redis.call('ZADD', KEYS[1], score, found[i])
  end
  result[#result + 1] = found[i]
  result[#result + 1] = score
  result[#result + 1] = text  -- false if there is none
  room = room - (text and #text or 0)
  if room <= 0 then break end
end
local next = claim > 0 and 0 or ARGV[2] + (#result - 1) / 3
local first = redis.call('ZRANGE', KEYS[1], next, next, 'WITHSCORES')
if first[2] then result[1] = math.max(0, tonumber(first[2]) - now) end
return result
