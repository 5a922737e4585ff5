-- Do with messages what was decided, each only if nobody has moved it since it was looked up.
-- KEYS: due, messages, dead, letters. ARGV: of each message member, score as looked up, and one of
--   'publish', number of commands, and of each its number of words and its words
--   'bury', id, when it died in ms, letter
--   'postpone', ms
--   'drop'
-- Returns: how many were published, then of each that could not be its member and the error.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local at = 1
local function take()
  at = at + 1
  return ARGV[at - 1]
end
local function command()
  local words = {}
  for i = 1, tonumber(take()) do words[i] = take() end
  return words
end
local result = {0}
while at <= #ARGV do
  local member, looked_up, action = take(), tonumber(take()), take()
  local score = redis.call('ZSCORE', KEYS[1], member)
  local mine = score and tonumber(score) == looked_up
  local keep_ms
  if mine then redis.call('ZREM', KEYS[1], member) end  -- the first write, which needs no memory to spare
  if action == 'publish' then
    local failure
    for _ = 1, tonumber(take()) do
      local words = command()
      if mine and not failure then
        local reply = redis.pcall(unpack(words))
        failure = type(reply) == 'table' and reply.err
      end
    end
    if failure then
      keep_ms = 30000
      result[#result + 1] = member
      result[#result + 1] = failure
    elseif mine then
      result[1] = result[1] + 1
    end
  elseif action == 'bury' then
    local id, died_at, letter = take(), take(), take()
    if mine then
      redis.call('ZADD', KEYS[3], died_at, id)
      redis.call('HSET', KEYS[4], id, letter)
    end
  elseif action == 'postpone' then
    keep_ms = tonumber(take())
  end
  if mine and keep_ms then
    redis.call('ZADD', KEYS[1], now + keep_ms, member)
  elseif mine then
    redis.call('HDEL', KEYS[2], member)
  end
end
return result
