-- Return a group's position. KEYS: stream. ARGV: group.
return place(KEYS[1], ARGV[1])
