-- Carries out commits in order, each wholly if all of its texts are as they were seen, and else not at all.
-- KEYS: the outbox, its entries, the cancelled lives, and when each is forgotten.
-- ARGV: what keys begin with, what channels begin with; then of each commit, each after their number, its writes (key,
-- line that was seen, and six words as in write.lua), its entries (id, in how many ms it is due, text; an empty one
-- changes when an entry is due that is there), and its commands (each after the number of its words; PARK with due,
-- messages, engines, engine, member, delay in ms and text parks a message).
-- Returns of each commit whether it was carried out, as 1 or 0.
local at = 3
local function section(size)  -- begins with the next one: returns where its words are
  local first = at + 1
  at = first + ARGV[at] * size
  return first, at - 1
end
local result = {}
while at <= #ARGV do
  local fit, first, last = true, section(7)
  for i = first, last, 7 do fit = fit and fits(ARGV[1] .. ARGV[i], ARGV[i + 1]) end
  local first_entry, last_entry = section(3)
  local commands = ARGV[at]
  at = at + 1
  for _ = 1, commands do  -- before all else, for these alone may be refused
    local from, to = section(1)
    if fit and ARGV[from] == 'PARK' then
      park(ARGV[from + 1], ARGV[from + 2], math.ceil(now_ms()) + ARGV[from + 6], ARGV[from + 5], ARGV[from + 7])
      own('SADD', ARGV[from + 3], ARGV[from + 4])
    elseif fit then
      redis.call(unpack(ARGV, from, to))
    end
  end
  for i = first, fit and last or 0, 7 do
    local key, channel = ARGV[1] .. ARGV[i], ARGV[2] .. ARGV[i]
    write(key, channel, KEYS[3], KEYS[4], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[i + 6])
  end
  for i = first_entry, fit and last_entry or 0, 3 do
    local id, text = ARGV[i], ARGV[i + 2]
    if text ~= '' or own('HGET', KEYS[2], id) then own('ZADD', KEYS[1], math.ceil(now_ms()) + ARGV[i + 1], id) end
    if text ~= '' then own('HSET', KEYS[2], id, text) end
  end
  result[#result + 1] = fit and 1 or 0
end
return result
