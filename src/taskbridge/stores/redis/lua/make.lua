-- Makes texts where there are none, and carries commands out; returns whether it did, as 1 or 0.
-- KEYS: the texts. ARGV: each text, and for how many ms it is kept (empty: for ever); then commands, each after the
-- number of its words.
if redis.call('EXISTS', unpack(KEYS)) > 0 then
  for _, key in ipairs(KEYS) do if own('GET', key) then return 0 end end
end
local at = 2 * #KEYS + 1
while at <= #ARGV do  -- before all else, for these alone may be refused
  local last = at + ARGV[at]
  redis.call(unpack(ARGV, at + 1, last))
  at = last + 1
end
for i, key in ipairs(KEYS) do
  if ARGV[2 * i] == '' then redis.call('SET', key, ARGV[2 * i - 1])
  else redis.call('SET', key, ARGV[2 * i - 1], 'PX', ARGV[2 * i]) end
end
return 1
