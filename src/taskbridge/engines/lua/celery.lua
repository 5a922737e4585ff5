-- How Celery's queues hold messages: whole, in lists of which the last is the next one (kombu/transport/redis.py).
local MARK = '{"redelivered":true,'  -- a member of its JSON that kombu ignores says that a message may have been started
local forget  -- nothing is kept beside the lists

local function pop(list)
  return own('RPOP', list)
end

local function look(_, item)
  if item:sub(1, #MARK) == MARK then return '{' .. item:sub(#MARK + 1), 1 end
  return item, 0
end

local function put_back(list, item, suspect)
  if suspect and item:find('^{%s*"') and item:sub(1, #MARK) ~= MARK then item = MARK .. item:sub(2) end
  return redis.pcall('RPUSH', list, item)
end
