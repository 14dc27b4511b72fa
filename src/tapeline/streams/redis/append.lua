-- KEYS end, stream; ARGV the run id of the server, then records and data of each entry.
extend(KEYS[1], KEYS[2], ARGV[1], 2, #ARGV)
return 1
