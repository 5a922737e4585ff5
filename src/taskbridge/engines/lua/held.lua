-- What a worker holds: under its key, by tag, the list from which a message was taken, and the item that stood there.
-- What becomes of one: 'end', 'dead' (Dramatiq keeps it among its own dead ones), 'back', or 'suspect', which is back, and
-- whoever takes it is told that it may have been started. What can't go back (an entry that names no list, or the key of
-- its list holds something else) is kept in a list of odd ones, beside the leases, until a worker has buried it; with
-- the time in ms before a line feed, so that it is the same dead letter whoever buries it.
local function set_aside(entry)
  own('RPUSH', KEYS[1] .. '.odd', string.format('%.0f', now_ms()) .. '\n' .. entry)
end

local function settle(held, tag, what)
  if what == 'end' and not forget then return own('HDEL', held, tag) end
  local entry = own('HGET', held, tag)
  if not entry then return 0 end
  redis.call('HDEL', held, tag)  -- as a script's first write, which a full Redis allows; it then refuses no later one
  local at = entry:find('\n', 1, true)
  if not at then
    set_aside(entry)
    return 0
  end
  local list, item = entry:sub(1, at - 1), entry:sub(at + 1)
  if what == 'end' or what == 'dead' then
    forget(list, item, what == 'dead')
    return 1
  end
  local reply = put_back(list, item, what == 'suspect')
  if type(reply) ~= 'table' then return 1 end
  set_aside(look(list, item) or item)
  if forget then forget(list, item, false) end
  return 0
end
