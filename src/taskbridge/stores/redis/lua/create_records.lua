-- Makes records, each unless there is one of the same life or a later one.
-- KEYS: the records. ARGV, three for each: for how many ms it is kept (empty: for ever), its life (how often the message
-- was replayed), the record.
for i, key in ipairs(KEYS) do
  local kept_ms, life, record = unpack(ARGV, 3 * i - 2, 3 * i)
  local exists = redis.call('EXISTS', key) == 1
  local old = exists and redis.call('HMGET', key, 'life', 'version') or {}
  if not exists or tonumber(old[1] or 0) < tonumber(life) then
    if exists then redis.call('DEL', key) end
    redis.call('HSET', key, 'record', record)
    if life ~= '0' then redis.call('HSET', key, 'life', life, 'version', (old[2] or 0) + 1) end
    if kept_ms ~= '' then redis.call('PEXPIRE', key, kept_ms) end
  end
end
return 1
