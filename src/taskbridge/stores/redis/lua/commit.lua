-- Carries a commit out, wholly if all of its texts are as they were seen, and else not at all.
-- KEYS: the outbox, its entries, the cancelled lives, and when each is forgotten.
-- ARGV: what keys begin with, what channels begin with; then, each after their number, writes (key, line that was seen,
-- and six words as in write.lua), entries (id, in how many ms it is due, text; an empty one changes when an entry is due
-- that is there), members of groups that are counted no more (group, index), and commands, each after the number of its
-- words (PARK with due, messages, engines, engine, member, delay in ms and text parks a message).
-- Returns whether it was carried out, as 1 or 0.
local first, last = 4, 3 + 7 * ARGV[3]
for i = first, last, 7 do
  if not fits(ARGV[1] .. ARGV[i], ARGV[i + 1]) then return 0 end
end
local first_entry = last + 2
local last_entry = last + 1 + 3 * ARGV[last + 1]
local first_member = last_entry + 2
local last_member = last_entry + 1 + 2 * ARGV[last_entry + 1]
local at = last_member + 1
while at <= #ARGV do  -- before all else, for these alone may be refused
  local from, to = at + 1, at + ARGV[at]
  if ARGV[from] == 'PARK' then
    park(ARGV[from + 1], ARGV[from + 2], math.ceil(now_ms()) + ARGV[from + 6], ARGV[from + 5], ARGV[from + 7])
    own('SADD', ARGV[from + 3], ARGV[from + 4])
  else
    redis.call(unpack(ARGV, from, to))
  end
  at = to + 1
end
for i = first, last, 7 do
  local key, channel = ARGV[1] .. ARGV[i], ARGV[2] .. ARGV[i]
  write(key, channel, KEYS[3], KEYS[4], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[i + 6])
end
for i = first_member, last_member, 2 do uncount(ARGV[1] .. ARGV[i], ARGV[i + 1]) end
for i = first_entry, last_entry, 3 do
  local id, text = ARGV[i], ARGV[i + 2]
  if text ~= '' or own('HGET', KEYS[2], id) then own('ZADD', KEYS[1], math.floor(now_ms()) + ARGV[i + 1], id) end
  if text ~= '' then own('HSET', KEYS[2], id, text) end
end
return 1
