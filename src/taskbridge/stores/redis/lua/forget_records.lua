-- Removes records that nobody has changed since they were made: those have no version.
-- KEYS: the records.
for _, record in ipairs(KEYS) do
  if not redis.call('HGET', record, 'version') then redis.call('UNLINK', record) end
end
return 1
