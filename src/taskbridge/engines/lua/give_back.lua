-- Give messages back, as the next ones of their lists. KEYS: held. ARGV: whether they may have been started, as 1 or 0,
-- then tags.
local tags = {}
for i = 2, #ARGV do tags[i - 1] = ARGV[i] end
give_back(KEYS[1], tags, ARGV[1] == '1')
