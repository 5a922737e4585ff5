-- Settle what is held, and take what there are slots for; at any moment a message is in its list, or held.
-- KEYS: leases, held, then lists by priority and, within one, by queue.
-- ARGV: worker, first tag, most, queues, from which of these on, counted from 0; then of each message to
-- settle its tag, and what becomes of it.
-- Returns: numbers in one text, of each message taken its queue, counted from 0, times 2, and 1 more if it may have been
-- started; and then their texts. A message's tag is the first one and how many there were before.
local tag, most, queues, start = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
for i = 6, #ARGV, 2 do settle(KEYS[2], ARGV[i], ARGV[i + 1]) end
local taken, about = {}, {}
local function take(i)
  local item = pop(KEYS[i])  -- as the first write, which a full Redis allows; it then refuses no later one
  while item do
    local text, suspect = look(KEYS[i], item)
    if text then
      own('HSET', KEYS[2], string.format('%.0f', tag + #taken), KEYS[i] .. '\n' .. item)
      taken[#taken + 1] = text
      about[#taken] = (i - 3) % queues * 2 + suspect
      return true
    end
    item = pop(KEYS[i])
  end
  return false
end
local level = {}  -- by queue, the list from which it is taken next
local function serve(queue)
  while level[queue] <= #KEYS do
    if take(level[queue]) then return true end
    level[queue] = level[queue] + queues
  end
  return false
end
local waiting = {}  -- the queues in turn; asked for some at a time, as most are empty
for from = 0, queues - 1, 16 do
  local ring, keys = {}, {}
  for n = from, math.min(from + 16, queues) - 1 do
    ring[#ring + 1] = (start + n) % queues
    for i = 3 + ring[#ring], #KEYS, queues do keys[#keys + 1] = KEYS[i] end
  end
  if redis.call('EXISTS', unpack(keys)) > 0 then
    for _, queue in ipairs(ring) do
      waiting[#waiting + 1] = queue
      level[queue] = 3 + queue
    end
  end
end
while #waiting > 0 and #taken < most do
  local more = {}
  for _, queue in ipairs(waiting) do
    if #taken < most and serve(queue) then more[#more + 1] = queue end
  end
  waiting = more
end
if #taken > 0 then own('ZADD', KEYS[1], math.floor(now_ms()), ARGV[1]) end
table.insert(taken, 1, table.concat(about, ' '))
return taken
