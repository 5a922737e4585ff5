-- Gives a mark another owner, if it still has the one given; returns 1 then, else 0.
-- KEYS: the mark. ARGV: its owner, the new one, for how many seconds the mark is kept.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
