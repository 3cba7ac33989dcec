-- Scripts: each has globals of its own, with what all have copied into them; what it requires runs among them.
-- Given: the Python functions, what runtime.lua gives, and what msys.lua gives. Gives what loads the script of a stanza.
local py, rt, tables = ...
local raise, good, libraries, builtin = rt.raise, rt.good, tables.libraries, tables.builtin
local setfenv, loadstring, getinfo, byte, floor = setfenv, loadstring, debug.getinfo, string.byte, math.floor
local shared = {}
for _, name in ipairs({"_VERSION", "assert", "bit", "coroutine", "error", "gcinfo", "getmetatable", "ipairs", "json", "math",
  "msys", "next", "pairs", "pcall", "print", "rawequal", "rawget", "rawset", "select", "setmetatable", "string", "table",
  "thread", "tonumber", "tostring", "type", "unpack", "xml", "xpcall", "_BIT", "_TLS", "_OSTLS"}) do
  shared[name] = _G[name]
end
for name, found in pairs(libraries) do shared[name] = found end
-- time is the server's, which a replay has recorded
local time_of, date_of, now = os.time, os.date, msys.core.get_now_ts
shared.os.clock, shared.os.difftime = os.clock, os.difftime
function shared.os.time(parts)
  if parts == nil then return floor(now()) end
  return time_of(parts)
end
function shared.os.date(format, time)
  if format ~= nil and #format > 1000 then raise("os.date takes a format of 1000 octets at most") end
  return date_of(format or "%c", time or now())
end
shared.debug.traceback = debug.traceback
local memory = gcinfo
function shared.collectgarbage(what) return what == "count" and memory() or 0 end

local LONGEST = 65536  -- octets that loadstring takes: reading them is not interrupted
local function compiled(text, label, env)
  local translated, chunk, fault = good(py.translate(text, label))
  if translated then chunk, fault = loadstring(translated, "@" .. label) else fault = chunk end
  if not translated or chunk == nil then return nil, fault end
  return setfenv(chunk, env)
end
-- a table of a name with dots in it, made where there is none
local function place_in(env, name)
  for part in name:gmatch("[^.]+") do
    if rawget(env, part) == nil then rawset(env, part, {}) end
    env = rawget(env, part)
    if type(env) ~= "table" then raise("module: " .. name .. " is something else already") end
  end
  return env
end
local stanzas = {}  -- results of the scripts of stanzas, which are loaded once
local function globals()
  local env, loaded, loading = {}, {}, {}
  for name, value in pairs(shared) do env[name] = value end
  env._G = env
  function env.require(name)
    if type(name) ~= "string" then raise("require takes a name") end
    local found = loaded[name]
    if found == nil then found = builtin[name] end
    if found == nil then found = stanzas[name] end
    if found ~= nil then return found end
    if loading[name] then raise("require: " .. tostring(name) .. " requires itself") end
    local text, path = good(py.source(name))
    if text == nil then raise("require: " .. path) end
    local chunk, fault = compiled(text, path, env)
    if chunk == nil then error(fault, 0) end
    loading[name] = true
    local good, result = pcall(chunk, name)
    loading[name] = nil
    if not good then error(result, 0) end
    if loaded[name] == nil then loaded[name] = result == nil and true or result end
    return loaded[name]
  end
  function env.loadstring(text, label)
    if type(text) ~= "string" or #text > LONGEST or byte(text) == 27 then
      return nil, "loadstring takes the text of a script, 64 KiB at most"
    end
    return compiled(text, type(label) == "string" and label or "loadstring", env)
  end
  function env.module(name, ...)
    local caller = getinfo(2, "S")
    if type(name) ~= "string" or not caller or caller.what == "C" or caller.short_src == "msys" then
      raise("module is called at the head of a script, with its name")
    end
    local found = type(loaded[name]) == "table" and loaded[name] or place_in(env, name)
    loaded[name] = found
    found._M, found._NAME, found._PACKAGE = found, name, name:match("^(.*%.)[^.]*$") or ""
    setfenv(2, found)
    for i = 1, select("#", ...) do select(i, ...)(found) end
  end
  env.package = {
    loaded = loaded,
    seeall = function(module) return setmetatable(module, {__index = env}) end,
  }
  return env
end
return function(name)
  if stanzas[name] == nil then stanzas[name] = globals().require(name) end
end
