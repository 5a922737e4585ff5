-- A group is a hash: how many members have `ended`, and of these `dead`, `discarded` and `cancelled`; up to which they were
-- `sent`; and `until`, if it is to expire. Beside it is the bitmap `:ended`, and of each hundred members a hash of what is
-- kept of their ends: how they have ended unless that is well, a line break and the text; or only how.
local function page_of(group, index) return group .. ':' .. math.floor(index / 100) end

local function add(group, name, by)  -- returns how many there are then
  local count = redis.pcall('HINCRBY', group, name, by)
  if type(count) == 'number' then return count end
  count = name == 'ended' and own('BITCOUNT', group .. ':ended') or 0  -- for there was no number
  own('HSET', group, name, count)
  return count
end
