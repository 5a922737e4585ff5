-- Replaces a text and counts a member of a group, if the text's first line still is what was decided about.
-- KEYS: the text, its channel, the cancelled lives, when each is forgotten, the outbox, its entries, and the group.
-- ARGV: that line, and what is written, as in write.lua; an entry: id, in how many ms it is due, text; when it is put in
-- the outbox ('last', 'bad' or 'always'); how many members there are, which one this is, how it has ended, and what is
-- kept of that, if anything is.
-- Returns 1 if it was not counted before, else 0, and the counts; or nil if nothing was done.
if not fits(KEYS[1], ARGV[1]) then return nil end
local group, id, index, ended = KEYS[7], ARGV[7], ARGV[12], ARGV[13]
local is_new = count(group, index, ended, ARGV[14])  -- before all else, for this alone may be refused
write(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
local counts = counts_of(group)
if counts[6] > 0 then expire({group, group .. ':ended', group .. ':bad', page_of(group, index)}, counts[6]) end
local posts, all = ARGV[10], counts[1] + counts[2] + counts[3] + counts[4] >= tonumber(ARGV[11])
if all or posts == 'always' or posts == 'bad' and BAD[ended] then
  local at = math.floor(now_ms()) + ARGV[8]
  if at < tonumber(own('ZSCORE', KEYS[5], id) or '+inf') then
    own('ZADD', KEYS[5], at, id)
    own('HSET', KEYS[6], id, ARGV[9])
  end
end
return {is_new, unpack(counts, 1, 5)}
