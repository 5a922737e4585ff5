-- Replaces a text and counts a member of a group, if the text's first line still is what was decided about.
-- KEYS: the text, its channel, the cancelled lives, when each is forgotten, the outbox, its entries, the group, and the
-- hash of this one's hundred members.
-- ARGV: that line, and what is written, as in write.lua; an entry: id, in how many ms it is due, text; when it is put in
-- the outbox ('last', 'bad' or 'always'); how many members there are, which one this is, how it has ended, and what is
-- kept of that, as in group.lua (empty: nothing).
-- Returns whether the entry was to be put in the outbox, as 1 or 0; or nil if nothing was done.
if not fits(KEYS[1], ARGV[1]) then return nil end
local group, index, how = KEYS[7], ARGV[12], ARGV[13]
local is_new = own('SETBIT', group .. ':ended', index, 1) == 0  -- before all else, for this alone may be refused
write(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
local ended = add(group, 'ended', is_new and 1 or 0)
if is_new and how ~= 'done' then add(group, how, 1) end
if is_new and ARGV[14] ~= '' then
  own('HSET', KEYS[8], index, ARGV[14])
  local at = redis.call('HGET', group, 'until')
  if at then redis.pcall('PEXPIREAT', KEYS[8], at) end  -- for it may be new
end
local posts = ended >= tonumber(ARGV[11]) or ARGV[10] == 'always' or ARGV[10] == 'bad' and how ~= 'done'
if posts then
  local due = math.floor(now_ms()) + ARGV[8]
  if due < tonumber(own('ZSCORE', KEYS[5], ARGV[7]) or '+inf') then
    own('ZADD', KEYS[5], due, ARGV[7])
    own('HSET', KEYS[6], ARGV[7], ARGV[9])
  end
end
return posts and 1 or 0
