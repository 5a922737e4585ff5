-- Take dead letters out; those that are replayed are parked in the same step.
-- KEYS: dead, letters, due, messages, engines. ARGV: engine, then of each letter id, the text's SHA-1 as it was read,
-- the member and text of the message that is parked, empty if there is none, and its delay in ms.
-- Returns: of each letter whether it was taken out: 0 if it is not there any more, or another one is.
local now = math.floor(now_ms())
local result = {}
for i = 2, #ARGV, 5 do
  local letter = try('HGET', KEYS[2], ARGV[i])
  local mine = letter and redis.sha1hex(letter) == ARGV[i + 1]
  if mine then
    own('ZREM', KEYS[1], ARGV[i])  -- the first write, which needs no memory to spare
    redis.call('HDEL', KEYS[2], ARGV[i])
    if ARGV[i + 2] ~= '' then
      own('ZADD', KEYS[3], now + ARGV[i + 4], ARGV[i + 2])
      own('HSET', KEYS[4], ARGV[i + 2], ARGV[i + 3])
      own('SADD', KEYS[5], ARGV[1])
    end
  end
  result[#result + 1] = mine and 1 or 0
end
return result
