-- KEYS: end, stream. ARGV: the server's run id, then the record count and data of each entry.
extend(KEYS[1], KEYS[2], ARGV[1], 2, #ARGV)
return 1
