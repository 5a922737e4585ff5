-- Notes up to which member a group was published, unless that is less than what is known.
-- KEYS: the group. ARGV: the number.
local known = tonumber(own('HGET', KEYS[1], 'sent') or 0)
if not known or known < tonumber(ARGV[1]) then redis.call('HSET', KEYS[1], 'sent', ARGV[1]) end
