-- KEYS: heartbeats. ARGV: namespace, lease in ms, whether to look at strange workers too, ms after which those are
-- forgotten, ms after which Dramatiq's own dead messages are, queues ... Returns how many messages went back.
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- Returns the list to which a message goes back.
local function home(queue, id)
  local level = string.match(id, '^(%l+):')
  if level == 'critical' or level == 'high' or level == 'low' then
    return queue .. ':' .. level
  end
  return queue
end
local namespace = ARGV[1]

local function give_back(worker, queue)
  local acks = namespace .. ':__acks__.' .. worker .. '.' .. queue
  local key = namespace .. ':' .. queue
  local count = 0
  for _, id in ipairs(redis.call('smembers', acks)) do
    if redis.call('hexists', key .. '.msgs', id) > 0 then
      redis.call('lpush', home(key, id), id)
      redis.call('sadd', key .. '.recovered', id)
      count = count + 1
    end
  end
  redis.call('del', acks)
  return count
end

local returned = 0
for _, worker in ipairs(redis.call('zrangebyscore', KEYS[1], '-inf', now - ARGV[2])) do
  local own_queues = namespace .. ':__queues__.' .. worker
  local queues = redis.call('smembers', own_queues)
  for _, queue in ipairs(queues) do
    returned = returned + give_back(worker, queue)
  end
  if #queues > 0 then
    redis.call('del', own_queues)
    redis.call('zrem', KEYS[1], worker)
  elseif ARGV[3] == '1' then
    for i = 6, #ARGV do
      returned = returned + give_back(worker, ARGV[i])
    end
  end
end
redis.call('zremrangebyscore', KEYS[1], '-inf', now - ARGV[4])

for i = 6, #ARGV do
  local dead = namespace .. ':' .. ARGV[i] .. '.XQ'
  local ids = redis.call('zrangebyscore', dead, '-inf', now - ARGV[5], 'limit', 0, 1000)
  if #ids > 0 then
    redis.call('zrem', dead, unpack(ids))
    redis.call('hdel', dead .. '.msgs', unpack(ids))
  end
end
return returned
