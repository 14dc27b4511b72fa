-- Write an entry for a writer that sends again whatever has no answer. KEYS: end, stream, writer.
-- ARGV: number, run id, record count, data; the number sent before it on this connection (if that was refused, so is this); and whether
-- something that had settled is gone.
local had = tonumber(redis.call('GET', KEYS[3]) or 0)
if had >= tonumber(ARGV[1]) then return 0 end
if had < tonumber(ARGV[5]) then return redis.error_reply('ERR an earlier batch has not arrived') end
extend(KEYS[1], KEYS[2], ARGV[2], 3, 4, ARGV[6] == '1')
redis.call('SET', KEYS[3], ARGV[1], 'EX', 2592000)
return 1
