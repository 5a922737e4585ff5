-- Returns the reply of a command that reads, or nil if the key holds something of another type.
-- KEYS: the key. ARGV: the command, and its words after the key.
return try(ARGV[1], KEYS[1], unpack(ARGV, 2))
