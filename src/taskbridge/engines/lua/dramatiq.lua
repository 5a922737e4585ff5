-- How Dramatiq's queues hold messages: ids in lists of which the first is the next one, and their bodies in a hash beside
-- (dramatiq/brokers/redis/dispatch.lua). A list of another priority than `normal` ends with it, and its ids begin with it.
-- `.recovered` is a set of the ids of messages that may have been started. Any of these keys may hold something else.
local function queue_of(list, id)
  local level = id:match('^(%l+):')
  if level and list:sub(-#level - 1) == ':' .. level then return list:sub(1, -#level - 2) end
  return list
end

local function is_id(item)
  return item:find('^%l*:?%x+%-%x+%-%x+%-%x+%-%x+$')
end

local function pop(list)
  return own('LPOP', list)
end

local function look(list, id)
  local queue = queue_of(list, id)
  local body = try('HGET', queue .. '.msgs', id)
  if body then return body, own('SISMEMBER', queue .. '.recovered', id) end
  if not is_id(id) then return id, 0 end
  return nil  -- a second copy of an id, whose message is done with
end

local function forget(list, id, dead)
  local queue = queue_of(list, id)
  local body = dead and try('HGET', queue .. '.msgs', id)
  if body then
    local letters = queue:gsub('%.DQ$', '') .. '.XQ'
    try('ZADD', letters, math.floor(now_ms()), id)
    try('HSET', letters .. '.msgs', id, body)
  end
  try('HDEL', queue .. '.msgs', id)
  own('SREM', queue .. '.recovered', id)
end

local function put_back(list, id, suspect)
  local queue = queue_of(list, id)
  if is_id(id) and try('HEXISTS', queue .. '.msgs', id) == 0 then return 0 end
  local reply = redis.pcall('LPUSH', list, id)
  if suspect and type(reply) ~= 'table' then own('SADD', queue .. '.recovered', id) end
  return reply
end
