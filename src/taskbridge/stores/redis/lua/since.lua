-- Returns the first cancelled lives after a number, each with its number; none from beyond tomorrow, which anybody may
-- have written: nothing would come after it.
-- KEYS: the cancelled lives. ARGV: the number, as ZRANGEBYSCORE takes it, and how many there may be.
local latest = string.format('%.0f', (redis.call('TIME')[1] + 86400) * 1000000)
local after = ARGV[1]
if (tonumber((after:gsub('^%(', ''))) or 0) > tonumber(latest) then after = '-inf' end  -- a clock was far ahead, and set back
return own('ZRANGEBYSCORE', KEYS[1], after, latest, 'WITHSCORES', 'LIMIT', 0, ARGV[2])
