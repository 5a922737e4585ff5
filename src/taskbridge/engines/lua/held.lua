-- What a worker holds: under its key, by tag, the list from which a message was taken, and the item that stood there.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function let_go(held, tag)
  local entry = redis.call('HGET', held, tag)
  if not entry then return end
  redis.call('HDEL', held, tag)  -- as a script's first write, which a full Redis allows; it then refuses no later one
  local at = entry:find('\n', 1, true)
  return entry:sub(1, at - 1), entry:sub(at + 1)
end

local function finish(held, tag, dead)
  if not forget then return redis.call('HDEL', held, tag) end
  local list, item = let_go(held, tag)
  if list then forget(list, item, now, dead) end
end

local function give_back(held, tags, suspect)
  local count = 0
  for i = #tags, 1, -1 do  -- the first ends up as the first
    local list, item = let_go(held, tags[i])
    if list then
      put_back(list, item, suspect)
      count = count + 1
    end
  end
  return count
end

local function tags_of(held)
  local tags = redis.call('HKEYS', held)
  table.sort(tags, function(one, other) return tonumber(one) < tonumber(other) end)
  return tags
end
