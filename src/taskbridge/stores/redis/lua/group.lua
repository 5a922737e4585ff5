-- A group is a hash: how many members have `ended`, and of these `dead`, `discarded` and `cancelled`; up to which they were
-- `sent`; and `until`, if it is to expire. Beside it are two bitmaps, `:ended` and `:bad`, and of each hundred members a
-- hash of what is kept of their ends, which begins with how they have ended unless that is well.
local function page_of(group, index) return group .. ':' .. math.floor(index / 100) end

local function add(group, name, by)  -- returns how many there are then
  local count = redis.pcall('HINCRBY', group, name, by)
  if type(count) == 'number' then return count end
  own('HSET', group, name, own('BITCOUNT', group .. (name == 'ended' and ':ended' or ':bad')))  -- there was no number
  return tonumber(redis.call('HGET', group, name))
end
