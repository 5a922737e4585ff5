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

local function own(command, key, ...)  -- as try, for a key that is removed then: what workers noted there is lost
  local reply = try(command, key, ...)
  if reply ~= nil then return reply end
  redis.call('DEL', key)
  return redis.call(command, key, ...)
end

local function kept(command, key, ...)  -- as try, for a key of messages: what else it held is beside it then
  local reply = try(command, key, ...)
  if reply ~= nil then return reply end
  redis.call('RENAME', key, key .. '.odd')
  return redis.call(command, key, ...)
end
