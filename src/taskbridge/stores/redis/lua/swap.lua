-- Replaces a text if its first line still is what was decided about; returns whether it was, as 1 or 0.
-- KEYS: the text, and its channel, and for a cancellation the cancelled lives and when each is forgotten.
-- ARGV: that line ('0': there may be no text either), the new text (empty: it is removed), for how many ms it is kept
-- (empty: for ever), and whether whoever watches is told (1 or 0); then the life that is cancelled, and for how many ms
-- that is kept (empty: for ever).
local found = own('GET', KEYS[1])
local line = found and string.match(found, '^[^\n]*') or '0'
if line ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1])
elseif ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
if ARGV[4] == '1' then redis.call('PUBLISH', KEYS[2], '') end
if ARGV[5] then
  local time = redis.call('TIME')
  local number = time[1] * 1000000 + time[2]  -- grows even when all have been forgotten
  local now = math.floor(number / 1000)
  local latest = string.format('%.0f', number + 86400 * 1000000)  -- what is beyond that is not told: see since.lua
  local last = own('ZREVRANGEBYSCORE', KEYS[3], latest, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  if last and tonumber(last) >= number then number = tonumber(last) + 1 end
  redis.call('ZADD', KEYS[3], string.format('%.0f', number), ARGV[5])
  own('ZADD', KEYS[4], ARGV[6] == '' and '+inf' or string.format('%.0f', now + ARGV[6]), ARGV[5])
  local old = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 100)
  if #old > 0 then
    redis.call('ZREM', KEYS[3], unpack(old))
    redis.call('ZREM', KEYS[4], unpack(old))
  end
end
return 1
