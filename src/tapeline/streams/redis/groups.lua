-- Functions that read and set a group's position, even for a group that nobody configured.
local function place(key, group)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, facts in ipairs(groups) do
    for i = 1, #facts, 2 do
      if facts[i] == 'name' and facts[i + 1] ~= group then break end
      if facts[i] == 'last-delivered-id' then return string.match(facts[i + 1], '%d+') end
    end
  end
  return '0'
end
local function move(key, group, id)
  local done = redis.pcall('XGROUP', 'SETID', key, group, id)
  if done.err then redis.call('XGROUP', 'CREATE', key, group, id, 'MKSTREAM') end
end
