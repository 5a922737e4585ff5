-- Returns the first cancelled lives after a number, each with its number.
-- KEYS: the cancelled lives. ARGV: the number, as ZRANGEBYSCORE takes it, and how many there may be.
return own('ZRANGEBYSCORE', KEYS[1], ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
