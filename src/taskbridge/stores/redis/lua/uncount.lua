-- Counts a member of a group as ended no more, if it is counted.
local function uncount(group, index)
  if try('GETBIT', group .. ':ended', index) ~= 1 then return end
  local page = page_of(group, index)
  local how = string.match(own('HGET', page, index) or '', '^%l+')
  redis.call('SETBIT', group .. ':ended', index, 0)
  own('HDEL', page, index)
  add(group, 'ended', -1)
  if how then add(group, (how == 'discarded' or how == 'cancelled') and how or 'dead', -1) end
end
