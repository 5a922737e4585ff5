-- Count.
-- KEYS: engines, dead, then lists. ARGV: namespace, time to live of the dead in ms.
-- Returns: how many are delayed, how many are dead, then the length of each list.
local delayed = 0
for _, engine in ipairs(try('SMEMBERS', KEYS[1]) or {}) do
  delayed = delayed + (try('ZCARD', ARGV[1] .. ':parked:' .. engine) or 0)
end
local over = string.format('(%.0f', math.floor(now_ms()) - ARGV[2])
local result = {delayed, try('ZCOUNT', KEYS[2], over, '+inf') or 0}
for i = 3, #KEYS do result[#result + 1] = try('LLEN', KEYS[i]) or 0 end
return result
