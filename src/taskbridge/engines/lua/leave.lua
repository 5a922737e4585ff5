-- End a worker's lease, unless it holds something: another thread may have taken it meanwhile.
-- KEYS: leases, held. ARGV: worker.
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('ZREM', KEYS[1], ARGV[1]) end
