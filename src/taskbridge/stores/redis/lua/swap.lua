-- Replaces a text if its first line still is what was decided about; returns whether it was, as 1 or 0.
-- KEYS: the text, and its channel, and for a cancellation the cancelled lives and when each is forgotten.
-- ARGV: that line, and what is written, as in write.lua; without a life where nothing is cancelled.
if not fits(KEYS[1], ARGV[1]) then return 0 end
write(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
return 1
