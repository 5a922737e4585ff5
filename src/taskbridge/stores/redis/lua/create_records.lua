-- Makes records, each unless there is one of the same life or a later one.
-- KEYS: the records.
-- ARGV, seven for each: for how many ms it is kept (empty: for ever), its life (how often the message was replayed),
-- task, queue, state, when it was sent, when it is due (empty: now).
for i, record in ipairs(KEYS) do
  local a = 7 * (i - 1)
  local life = tonumber(ARGV[a + 2])
  local exists = redis.call('EXISTS', record) == 1
  local old = exists and redis.call('HMGET', record, 'life', 'version') or {}
  if not exists or tonumber(old[1] or 0) < life then
    if exists then redis.call('DEL', record) end
    redis.call('HSET', record, 'task', ARGV[a + 3], 'queue', ARGV[a + 4], 'state', ARGV[a + 5], 'enqueued_at', ARGV[a + 6])
    if ARGV[a + 7] ~= '' then redis.call('HSET', record, 'due_at', ARGV[a + 7]) end
    if life > 0 then redis.call('HSET', record, 'life', life, 'version', (old[2] or 0) + 1) end
    if ARGV[a + 1] ~= '' then redis.call('PEXPIRE', record, ARGV[a + 1]) end
  end
end
return 1
