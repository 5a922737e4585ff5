-- Notes up to which member a group was published, unless that is less than what is known.
-- KEYS: the group. ARGV: the number.
if counts_of(KEYS[1])[5] < tonumber(ARGV[1]) then own('HSET', KEYS[1], 'sent', ARGV[1]) end
