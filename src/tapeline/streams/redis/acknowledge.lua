-- KEYS: the group's totals, the streams.
-- ARGV: group; the name of the total to add to and its value so far (both empty: none); what to add; and an id for each stream.
if ARGV[2] ~= '' then
  if (redis.call('HGET', KEYS[1], ARGV[2]) or '') ~= ARGV[3] then return 0 end
  redis.call('HINCRBY', KEYS[1], ARGV[2], ARGV[4])
end
for i = 2, #KEYS do move(KEYS[i], ARGV[1], ARGV[i + 3]) end
return 1
