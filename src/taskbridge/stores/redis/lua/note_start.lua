-- Notes the start of a run beside a record; whoever reads the record next works out what it means.
-- KEYS: the record. ARGV: the start, for how many ms a record is kept that isn't final (empty: for ever).
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HSET', KEYS[1], 'start:' .. version, ARGV[1])
if version == 1 and ARGV[2] ~= '' and redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
