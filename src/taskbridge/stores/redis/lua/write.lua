-- Replaces a hash by what was decided about it, if it is still the one that the decision was made about: it has the same
-- version, and where the decision was made without reading it, that version is the start of a certain run.
-- Returns nothing then, and else the hash as it is now.
-- KEYS: the hash, and for a record its channel, the cancelled lives, when each of them is forgotten.
-- ARGV: the version; that start, or nothing; for how many ms it is kept (empty: for ever); the final state to publish, or
-- nothing; the life that is cancelled, or nothing; for how many ms that is kept (empty: for ever); then fields and
-- values.
local found = redis.call('HMGET', KEYS[1], 'version', 'start:' .. ARGV[1])
local version = tonumber(found[1] or '0')
if version ~= tonumber(ARGV[1]) or (ARGV[2] ~= '' and found[2] ~= ARGV[2]) then
  return redis.call('HGETALL', KEYS[1])
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'version', version + 1, unpack(ARGV, 7))
if ARGV[3] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
if ARGV[4] ~= '' then redis.call('PUBLISH', KEYS[2], ARGV[4]) end
if ARGV[5] ~= '' then
  local time = redis.call('TIME')
  local number = time[1] * 1000000 + time[2]  -- grows even when all have been forgotten
  local now = math.floor(number / 1000)
  local last = redis.call('ZREVRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
  if last and tonumber(last) >= number then number = tonumber(last) + 1 end
  redis.call('ZADD', KEYS[3], string.format('%.0f', number), ARGV[5])
  redis.call('ZADD', KEYS[4], ARGV[6] == '' and '+inf' or string.format('%.0f', now + ARGV[6]), ARGV[5])
  local old = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, 100)
  if #old > 0 then
    redis.call('ZREM', KEYS[3], unpack(old))
    redis.call('ZREM', KEYS[4], unpack(old))
  end
end
return false
