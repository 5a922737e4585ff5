-- Makes texts where there are none, and carries commands out; returns whether it did, as 1 or 0. If it did not, or a
-- command is refused, no text is made.
-- KEYS: the texts; the first is the one that is there most often. ARGV: each text, and for how many ms it is kept
-- (empty: for ever); then commands, each after the number of its words.
local at = 1
for i, key in ipairs(KEYS) do
  local text, kept = ARGV[at], ARGV[at + 1]
  local made, refusal, is_there
  repeat  -- again, if what was there is no text
    if kept == '' then made = redis.pcall('SET', key, text, 'NX')
    else made = redis.pcall('SET', key, text, 'NX', 'PX', kept) end
    refusal = made and made.err and made
    local full = refusal and refusal.err:find('OOM ', 1, true)  -- what is there can still be told; not by a replica
    is_there = (full or not made) and own('GET', key)
  until made or is_there
  if refusal or is_there then
    for before = 1, i - 1 do redis.call('DEL', KEYS[before]) end
    return is_there and 0 or refusal
  end
  at = at + 2
end
while at <= #ARGV do
  local last = at + ARGV[at]
  local reply = redis.pcall(unpack(ARGV, at + 1, last))
  if type(reply) == 'table' and reply.err then
    for _, key in ipairs(KEYS) do redis.call('DEL', key) end
    return reply
  end
  at = last + 1
end
return 1
