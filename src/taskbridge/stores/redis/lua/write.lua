-- A text may be written if its first line is as it was seen: '\n' is that there is none, '0' none, or one as made.
local function fits(key, seen)
  local found = own('GET', key)
  if seen == '\n' then return not found end
  return (found and string.match(found, '^[^\n]*') or '0') == seen
end

-- Writes a text (empty: removes it), kept for so many ms (empty: for ever), and publishes that if `tells` is '1'; `life`
-- is one that this cancels, and is told for so many ms (empty: for ever).
local function write(key, channel, lives, ends, text, kept, tells, life, told)
  if text == '' then redis.call('DEL', key)
  elseif kept == '' then redis.call('SET', key, text)
  else redis.call('SET', key, text, 'PX', kept) end
  if tells == '1' then redis.pcall('PUBLISH', channel, '') end  -- who may not publish still writes
  if not life or life == '' then return end
  local time = redis.call('TIME')
  local number = time[1] * 1000000 + time[2]  -- grows even when all have been forgotten
  local now = math.floor(number / 1000)
  local latest = string.format('%.0f', number + 86400 * 1000000)  -- what is beyond that is not told: see since.lua
  local last = own('ZREVRANGEBYSCORE', lives, latest, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  if last and tonumber(last) >= number then number = tonumber(last) + 1 end
  redis.call('ZADD', lives, string.format('%.0f', number), life)
  own('ZADD', ends, told == '' and '+inf' or string.format('%.0f', now + told), life)
  local old = redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 100)
  if #old > 0 then
    redis.call('ZREM', lives, unpack(old))
    redis.call('ZREM', ends, unpack(old))
  end
end
