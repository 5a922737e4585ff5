-- Carry out for due messages what was decided, each only if nobody has moved it since it was looked up.
-- KEYS: due, messages. ARGV: for how many ms what can't be carried out is put off, then of each message its member, its
-- score as looked up, the number of commands (0 puts it off), and of each of these its number of words and its words.
-- Returns: how many are carried out, then of each that could not be its member and the error.
local at = 1
local function take()
  at = at + 1
  return ARGV[at - 1]
end
local later = math.floor(now_ms()) + take()
local result = {0}
while at <= #ARGV do
  local member, looked_up, commands = take(), tonumber(take()), tonumber(take())
  local score = redis.call('ZSCORE', KEYS[1], member)
  local mine = score and tonumber(score) == looked_up
  if mine then redis.call('ZREM', KEYS[1], member) end  -- the first write, which needs no memory to spare
  local failure
  for _ = 1, commands do
    local words = {}
    for i = 1, tonumber(take()) do words[i] = take() end
    if mine and not failure then
      local reply = redis.pcall(unpack(words))
      failure = type(reply) == 'table' and reply.err
    end
  end
  if mine and (failure or commands == 0) then
    redis.call('ZADD', KEYS[1], later, member)
  elseif mine then
    redis.call('HDEL', KEYS[2], member)
    result[1] = result[1] + 1
  end
  if failure then
    result[#result + 1] = member
    result[#result + 1] = failure
  end
end
return result
