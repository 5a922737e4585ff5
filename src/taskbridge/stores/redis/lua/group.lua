-- A group is a hash of how many of its members have ended, by how they have, and `sent`; also `until`, if it is to expire
-- then. Beside it are two bitmaps, `:ended` and `:bad`, and of each hundred members a hash of what is kept of their ends,
-- which begins with how they have ended unless that is well.
local BAD = {dead = true, discarded = true, cancelled = true}

local function page_of(group, index) return group .. ':' .. math.floor(index / 100) end

local function counts_of(group)
  local found, counts = try('HMGET', group, 'done', 'dead', 'discarded', 'cancelled', 'sent', 'until') or {}, {}
  for i = 1, 6 do counts[i] = tonumber(string.match(found[i] or '', '^%d+$')) or 0 end
  return counts
end

local function add(group, ended, by)
  if type(redis.pcall('HINCRBY', group, ended, by)) == 'number' then return end
  local bad = own('BITCOUNT', group .. ':bad')  -- there was something else; the bitmaps tell nearly as much
  own('HSET', group, 'done', own('BITCOUNT', group .. ':ended') - bad, 'dead', bad, 'discarded', 0, 'cancelled', 0)
end

-- Counts a member; nothing is kept of its end if `text` is nil. Returns 1, or 0 if it was counted before.
local function count(group, index, ended, text)
  if own('SETBIT', group .. ':ended', index, 1) == 1 then return 0 end
  if BAD[ended] then
    own('SETBIT', group .. ':bad', index, 1)
    text = text and ended .. '\n' .. text or ended
  end
  if text then own('HSET', page_of(group, index), index, text) end
  add(group, ended, 1)
  return 1
end

-- Counts a member no more.
local function uncount(group, index)
  if try('GETBIT', group .. ':ended', index) ~= 1 then return end
  local ended = 'done'
  redis.call('SETBIT', group .. ':ended', index, 0)
  if own('GETBIT', group .. ':bad', index) == 1 then
    redis.call('SETBIT', group .. ':bad', index, 0)
    ended = string.match(own('HGET', page_of(group, index), index) or '', '^%l+')
    ended = BAD[ended] and ended or 'dead'
  end
  own('HDEL', page_of(group, index), index)
  add(group, ended, -1)
end

-- Has keys of a group expire at a time of the server, in ms; nil is never.
local function expire(keys, at)
  for _, key in ipairs(keys) do
    if at then redis.call('PEXPIREAT', key, at) else redis.call('PERSIST', key) end
  end
end
