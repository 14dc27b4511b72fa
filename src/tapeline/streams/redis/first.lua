-- Return the id of the first entry after the given one. KEYS: stream. ARGV: id.
local found = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', 1)[1]
return found and found[1] or false
