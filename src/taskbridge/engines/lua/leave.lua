-- Give back what a worker holds, and end its lease; what is kept goes back when the lease is over.
-- KEYS: leases, held. ARGV: worker, then the tags that are kept.
local kept, tags = {}, {}
for i = 2, #ARGV do kept[ARGV[i]] = true end
for _, tag in ipairs(tags_of(KEYS[2])) do
  if not kept[tag] then tags[#tags + 1] = tag end
end
give_back(KEYS[2], tags, true)
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('ZREM', KEYS[1], ARGV[1]) end
