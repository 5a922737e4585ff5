if #KEYS > 0 and KEYS[#KEYS]:sub(-9) == '}::absent' then table.remove(KEYS) end  -- see `Client._with_absent`

local function now_ms()  -- with the microseconds as its fraction
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000
end

local function try(command, key, ...)  -- as redis.call, but nil if the key holds something of another type
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if reply.err:find('WRONGTYPE', 1, true) then return nil end
  return redis.call(command, key, ...)
end

local function own(command, key, ...)  -- as try, for a key of ours: what else it held is beside it then, for a month
  local reply = try(command, key, ...)
  if reply ~= nil then return reply end
  redis.call('RENAME', key, key .. ':odd')
  redis.call('PEXPIRE', key .. ':odd', 2592000000)
  return redis.call(command, key, ...)
end

local function park(due, messages, at, member, text)  -- the same member again replaces the first
  own('ZADD', due, at, member)
  own('HSET', messages, member, text)
end
