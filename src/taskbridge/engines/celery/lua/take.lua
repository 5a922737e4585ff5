-- End what is done with, and take what there are slots for: each in its list or under its tag, at any moment.
-- KEYS: lists by priority and, within one, by queue, then unacked, index.
-- ARGV: tag, most, queues, from which of them on, counted from 0; then tags to end.
-- Returns: of each message taken its list, counted from 1, and its item; its tag ends in how many there were before.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lists, most, queues, start = #KEYS - 2, tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if #ARGV > 4 then
  redis.call('HDEL', KEYS[lists + 1], unpack(ARGV, 5))
  redis.call('ZREM', KEYS[lists + 2], unpack(ARGV, 5))
end
local taken = {}
local function take(i)
  local item = redis.call('RPOP', KEYS[i])  -- first, for Redis then refuses no later write for want of memory
  if not item then return false end
  local tag = ARGV[1] .. '.' .. string.format('%d', #taken / 2)
  local queue = string.match(KEYS[i], '^(.-)\6\22') or KEYS[i]
  redis.call('HSET', KEYS[lists + 1], tag, '[' .. item .. ',"","' .. queue .. '"]')
  redis.call('ZADD', KEYS[lists + 2], now, tag)
  taken[#taken + 1] = i
  taken[#taken + 1] = item
  return true
end
local function not_empty(first)  -- the lists of one priority, in turn; asked for some at a time, as most are empty
  local found = {}
  for from = 0, queues - 1, 16 do
    local ring, keys = {}, {}
    for n = from, math.min(from + 16, queues) - 1 do
      ring[#ring + 1] = first + (start + n) % queues
      keys[#keys + 1] = KEYS[ring[#ring]]
    end
    if redis.call('EXISTS', unpack(keys)) > 0 then
      for _, i in ipairs(ring) do found[#found + 1] = i end
    end
  end
  return found
end
for first = 1, lists, math.max(queues, 1) do  -- a step of 0 never ends
  local waiting = not_empty(first)
  while #waiting > 0 do
    local more = {}
    for _, i in ipairs(waiting) do
      if #taken == 2 * most then return taken end
      if take(i) then more[#more + 1] = i end
    end
    waiting = more
  end
end
return taken
