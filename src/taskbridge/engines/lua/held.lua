-- What a worker holds: under its key, by tag, the list from which a message was taken, and the item that stood there.
-- What becomes of one: 'end', 'dead' (Dramatiq keeps it among its own dead ones), 'back', or 'suspect', which is back, and
-- whoever takes it is told that it may have been started.
local function settle(held, tag, what)
  if what == 'end' and not forget then return redis.call('HDEL', held, tag) end
  local entry = redis.call('HGET', held, tag)
  if not entry then return 0 end
  redis.call('HDEL', held, tag)  -- as a script's first write, which a full Redis allows; it then refuses no later one
  local at = entry:find('\n', 1, true)
  local list, item = entry:sub(1, at - 1), entry:sub(at + 1)
  if what == 'end' or what == 'dead' then
    forget(list, item, what == 'dead')
  else
    put_back(list, item, what == 'suspect')
  end
  return 1
end
