-- Lua's own functions within the CPU limit: those of C take as long as what they are given is large, and nothing interrupts
-- them. So the clock is looked at behind what was large. Searches with patterns are in pattern.lua.
-- Given: what runtime.lua gives.
local rt = ...
local checked, BIG = rt.checked, rt.BIG
local type, select = type, select

for _, name in ipairs({"reverse", "lower", "upper"}) do
  local f = string[name]
  string[name] = function(subject, ...)
    if type(subject) == "string" and #subject > BIG then return checked(f(subject, ...)) end
    return f(subject, ...)
  end
end
for _, owner in ipairs({{string, "rep"}, {string, "format"}, {table, "concat"}}) do
  local f = owner[1][owner[2]]
  owner[1][owner[2]] = function(...)
    local made = f(...)
    if #made > BIG then return checked(made) end
    return made
  end
end
local sort, insert, remove = table.sort, table.insert, table.remove
local function less(a, b) return a < b end
function table.sort(list, before)
  if type(list) == "table" and #list > BIG then before = before or less end  -- which the limit stops
  return sort(list, before)
end
function table.insert(list, ...)
  if select("#", ...) == 2 and type(list) == "table" and #list > BIG then return checked(insert(list, ...)) end
  return insert(list, ...)
end
function table.remove(list, ...)
  if select("#", ...) == 1 and type(list) == "table" and #list > BIG then return checked(remove(list, ...)) end
  return remove(list, ...)
end
