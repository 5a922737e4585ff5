-- How Dramatiq's queues hold messages: ids in lists of which the first is the next one, and their bodies in a hash beside
-- (dramatiq/brokers/redis/dispatch.lua). A list of another priority than `normal` ends with it, and its ids begin with it.
-- `.recovered` is a set of the ids of messages that may have been started.
local function queue_of(list, id)
  local level = id:match('^(%l+):')
  if level and list:sub(-#level - 1) == ':' .. level then return list:sub(1, -#level - 2) end
  return list
end

local function is_id(item)
  return item:find('^%l*:?%x+%-%x+%-%x+%-%x+%-%x+$')
end

local function pop(list)
  return redis.call('LPOP', list)
end

local function look(list, id)
  local queue = queue_of(list, id)
  local body = redis.call('HGET', queue .. '.msgs', id)
  if body then return body, redis.call('SISMEMBER', queue .. '.recovered', id) end
  if not is_id(id) then return id, 0 end
  return nil  -- a second copy of an id, whose message is done with
end

local function forget(list, id, dead)
  local queue = queue_of(list, id)
  local body = dead and redis.call('HGET', queue .. '.msgs', id)
  if body then
    local letters = queue:gsub('%.DQ$', '') .. '.XQ'
    redis.call('ZADD', letters, math.floor(now_ms()), id)
    redis.call('HSET', letters .. '.msgs', id, body)
  end
  redis.call('HDEL', queue .. '.msgs', id)
  redis.call('SREM', queue .. '.recovered', id)
end

local function put_back(list, id, suspect)
  local queue = queue_of(list, id)
  if is_id(id) and redis.call('HEXISTS', queue .. '.msgs', id) == 0 then return end
  redis.call('LPUSH', list, id)
  if suspect then redis.call('SADD', queue .. '.recovered', id) end
end
