-- Counts a member of a group as ended no more, if it is counted.
local function uncount(group, index)
  if try('GETBIT', group .. ':ended', index) ~= 1 then return end
  local page = page_of(group, index)
  redis.call('SETBIT', group .. ':ended', index, 0)
  add(group, 'ended', -1)
  if own('GETBIT', group .. ':bad', index) == 1 then
    local how = string.match(own('HGET', page, index) or '', '^%l+')
    redis.call('SETBIT', group .. ':bad', index, 0)
    add(group, (how == 'discarded' or how == 'cancelled') and how or 'dead', -1)
  end
  own('HDEL', page, index)
end
