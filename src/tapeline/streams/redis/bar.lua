-- Return how far a writer has come, and bar it from going further: what it sent before it died may still wait in a socket.
-- KEYS: writer, its end.
local ended = redis.call('GET', KEYS[2])
if ended then return tonumber(ended) end
local had = redis.call('GET', KEYS[1]) or '0'
redis.call('SET', KEYS[2], had, 'EX', 2592000)
redis.call('SET', KEYS[1], '9007199254740992', 'EX', 2592000)
return tonumber(had)
