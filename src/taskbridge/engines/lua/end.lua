-- End what is done with. KEYS: held. ARGV: whether it is dead, as 1 or 0, then tags.
for i = 2, #ARGV do finish(KEYS[1], ARGV[i], ARGV[1] == '1') end
