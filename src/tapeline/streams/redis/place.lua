-- Where a group is. KEYS stream; ARGV group.
return place(KEYS[1], ARGV[1])
