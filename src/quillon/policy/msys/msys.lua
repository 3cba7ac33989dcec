-- The tables that scripts know: msys and what hangs on it, the objects of callouts, require.
-- Given: the Python functions, and what runtime.lua gives.
local py, rt = ...
local bound, handle, raise, opaque = rt.bound, rt.handle, rt.raise, rt.opaque

msys = {core = {}}
json, xml, thread = {}, {}, {}
local core = msys.core
for name, value in pairs(py.constants) do core[name] = value end
thread.MUTEX_NORMAL, thread.MUTEX_RECURSIVE, thread.MUTEX_ERRORCHECK = 0, 1, 2

-- every Python function `a.b.c` stands at a.b.c
local roots = {msys = msys, json = json, xml = xml, thread = thread}
local tables = {msys = msys, ["msys.core"] = core, json = json, xml = xml, thread = thread}
local function at(path)
  local found = tables[path]
  if found then return found end
  local parent, name = path:match("^(.*)%.([%w_]+)$")
  found = {}
  at(parent)[name] = found
  tables[path] = found
  return found
end
for name in pairs(py.functions) do
  local path, last = name:match("^([%w_.]+)%.([%w_]+)$")
  if path and roots[path:match("^%w+")] then at(path)[last] = bound(name) end
end
msys.validation = msys.validate
if msys.counter then msys.counter.STRICT, msys.counter.RELAXED = 0, 1 end

-- what the manual has and this server has not: an error that says so
local libraries = {}  -- those of Lua and curl, as far as they are here
local function left_out(name, reason)
  return function() raise(name .. " is not in this version: " .. reason) end
end
for name, reason in pairs(py.left_out) do
  local path, last = name:match("^([%w_.]+)%.([%w_]+)$")
  if not path then
    libraries[name] = left_out(name, reason)
  elseif roots[path:match("^%w+")] then
    at(path)[last] = left_out(name, reason)
  else
    libraries[path] = libraries[path] or {}
    libraries[path][last] = left_out(name, reason)
  end
end

-- objects
local new = rt.new
local methods = {}
for _, kind in ipairs({"vctx", "ac", "msg", "part", "timer", "mutex", "http", "file", "dkim", "sig", "xmldoc", "xmlnode", "null"}) do
  new[kind], methods[kind] = rt.class(kind)
end
-- one object stands for what are two in C, and so has the fields of both: `ctx` is the vctx
core.accept_construct_get_message_construct = function(ac) return {ctx = new.vctx(handle(ac))} end
rt.fields.ac.ctx = function(self) return new.vctx(handle(self)) end
-- what reads and writes contexts is called most: plain values cross without the general way, and nothing else does
local good, plain = rt.good, {string = true, number = true, boolean = true, ["nil"] = true}
local function check(value)
  if not plain[type(value)] then raise("a context holds texts, no " .. type(value)) end
end
local function reader(name)
  local get = py.functions[name]
  return function(self, kind, key)
    if type(key) ~= "string" then check(key) end
    if type(kind) ~= "number" then check(kind) end
    return good(get(handle(self), kind, key))
  end
end
local function writer(name)
  local set = py.functions[name]
  return function(self, kind, key, value)
    if type(key) ~= "string" then check(key) end
    if type(kind) ~= "number" then check(kind) end
    if type(value) ~= "string" then check(value) end
    return good(set(handle(self), kind, key, value))
  end
end
methods.vctx.get, methods.vctx.set = reader("vctx:get"), writer("vctx:set")
for _, name in ipairs({"get", "delete", "exists", "exists_and_get"}) do
  methods.msg["context_" .. name] = reader("msg:context_" .. name)
end
methods.msg.context_set = writer("msg:context_set")

-- where a script speaks is noted, for those who try it out
for _, spoken in ipairs({{methods.vctx, "set_code"}, {methods.vctx, "disconnect"}, {methods.msg, "code"}, {methods.msg, "discard"}}) do
  local f = spoken[1][spoken[2]]
  spoken[1][spoken[2]] = function(...)
    py.spoke(rt.place())
    return f(...)
  end
end

-- locks: taken at once, or waited for
local wait_for_lock, trylock = msys.waitlock, msys.trylock
msys.waitlock, msys.trylock = nil, nil
function msys.lock(name) if not trylock(name) then wait_for_lock(name) end end
local wait_for_mutex = methods.mutex.waitlock
methods.mutex.waitlock = nil
function methods.mutex.lock(self) if not self:trylock() then wait_for_mutex(self) end end

-- JSON: tables that print as JSON
local parse, text_of, null = json.parse, json.text, new.null(py.null)
json.parse, json.text, json.null = nil, nil, null
new.null = function() return null end
local as_json = {__tostring = function(self) return text_of(self) end}
as_json.__concat = function(a, b) return tostring(a) .. tostring(b) end
local function json_object(value)
  if type(value) == "table" and opaque[value] == nil then
    for _, inner in pairs(value) do json_object(inner) end
    return setmetatable(value, as_json)
  end
  return value
end
local function copied(value)
  if type(value) ~= "table" or opaque[value] ~= nil then return value end
  local out = {}
  for k, v in pairs(value) do out[k] = copied(v) end
  return out
end
function json.new() return setmetatable({}, as_json) end
function json.decode(text)
  local value, code, fault = parse(text)
  if code then return nil, code, fault end
  return json_object(value)
end
function json.encode(value)
  if type(value) == "table" then return json_object(copied(value)) end
  return text_of(value)
end

-- an ec_string: a buffer with a length
local texts = setmetatable({}, {__mode = "k"})
local sample = newproxy(true)
do
  local meta = getmetatable(sample)
  meta.__metatable = false
  local function set(self, text) texts[self] = tostring(text) end
  local function get(self) return texts[self] end
  local own = {set = set, get = get, append = function(self, text) texts[self] = texts[self] .. tostring(text) end}
  own.write = own.append
  meta.__index = function(self, key) return own[key] end
  meta.__len = function(self) return #texts[self] end
  meta.__tostring = get
  meta.__concat = function(a, b) return tostring(a) .. tostring(b) end
  meta.__eq = function(a, b) return texts[a] == texts[b] end
end
local newproxy = newproxy
function core.string_new(text)
  local made = newproxy(sample)
  texts[made] = text or ""
  return made
end
local envelope = bound("msg:envelope")
function methods.msg.get_envelope2(self, flags, localpart, domain)
  local l, d = envelope(handle(self), flags)
  localpart:set(l)
  if domain then domain:set(d) end
  return true
end

function msys.registerModule(name, callouts)
  if type(callouts) ~= "table" then raise("registerModule: the second argument is a table of callouts") end
  local names = {}
  for key, value in pairs(callouts) do
    if type(key) == "string" and type(value) == "function" then names[#names + 1] = key end
  end
  rt.good(py.register(tostring(name), rt.keep(callouts), table.concat(names, " ")))
end
function msys.registerAuth(scheme, callouts)
  if type(callouts) ~= "table" or type(callouts.authenticate) ~= "function" then
    raise("registerAuth: the second argument is a table with a function authenticate")
  end
  rt.good(py.register_auth(tostring(scheme), rt.keep(callouts)))
end
function msys.registerControl(prefix, closure)
  if type(closure) ~= "function" then raise("registerControl: the second argument is a function") end
  rt.good(py.register_control(tostring(prefix), rt.keep(closure)))
end
function msys.asyncOk() return rt.current.may_wait end
function msys.type(value)
  if opaque[value] ~= nil then return tostring(value) end
  if texts[value] then return "ec_string" end
  return type(value)
end
function msys.cast(object) return object end
function msys.getClassMetaTable(kind)
  local found = ({["msys.core:_ec_message"] = methods.msg, ["msys.core:_ec_message_part"] = methods.part,
    ["msys.core:_validate_context"] = methods.vctx, ["msys.core:_accept_construct"] = methods.ac})[kind]
  if not found then raise("getClassMetaTable: there is no class " .. tostring(kind)) end
  return found
end
-- one thread does it all: a pool runs its closure at once, or when the phase is over
function msys.runInPool(pool, closure, mode)
  if mode == nil or mode == false then return pcall(closure) end
  local after = mode
  rt.good(py.later(rt.keep(function()
    local result = {pcall(closure)}
    if type(after) == "function" then after(unpack(result)) end
    if not result[1] then error(result[2], 0) end
  end)))
end
for _, name in ipairs({"after", "at", "every"}) do
  local make = msys.timer[name]
  msys.timer[name] = function(seconds, closure, label)
    if type(closure) ~= "function" then raise("a timer takes seconds and a function") end
    local number = rt.keep(closure)
    local timer = make(seconds, number, label)
    rawset(timer, 1, closure)
    rawset(timer, 2, number)
    return timer
  end
end
-- a function is kept for the server only while its timer runs
local stop_timer, start_timer = methods.timer.stop, methods.timer.start
function methods.timer.stop(self)
  stop_timer(self)
  rt.drop(rawget(self, 2))
end
function methods.timer.start(self)
  self:stop()
  local number = rt.keep(rawget(self, 1))
  rawset(self, 2, number)
  start_timer(self, number)
end
msys.runInInst = nil

-- rows of a query come at once and are handed out one by one
local rows = bound("db.rows")
msys.db.query = function(cache, sql, parameters, options)
  local found, fault = rows(cache, sql, parameters, options)
  if found == nil then return nil, fault end
  local n = 0
  return function() n = n + 1 return found[n] end
end

-- nodes come as a table that a generic for can run over as well
local each = {__call = function(list)
  local at = (list.at or 0) + 1
  list.at = list[at] and at
  return list[at]
end}
for _, owner in ipairs({{methods.xmldoc, "xpath"}, {methods.xmlnode, "children"}}) do
  local find = owner[1][owner[2]]
  owner[1][owner[2]] = function(...) return setmetatable(find(...), each) end
end

local cidr_ready, cidr_load, cidr_find = msys.cidr.ready, msys.cidr.lookup, msys.cidr.find
msys.cidr.ready, msys.cidr.lookup, msys.cidr.find = nil, nil, nil
function msys.cidr.query(name, ip)
  if not cidr_ready(name) then cidr_load(name) end
  return cidr_find(name, ip)
end

msys.tls_params = {set = function(parameters, name, value) parameters[name] = value end}
msys.http = {client = {new = bound("http.new")}}
msys.dumper = {}
local function dump(value, indent, seen)
  if type(value) ~= "table" or opaque[value] ~= nil then
    return type(value) == "string" and string.format("%q", value) or tostring(value)
  end
  if seen[value] then return "(again)" end
  seen[value] = true
  local out = {}
  for k, v in pairs(value) do out[#out + 1] = indent .. "  [" .. dump(k, "", seen) .. "] = " .. dump(v, indent .. "  ", seen) end
  return "{\n" .. table.concat(out, ",\n") .. "\n" .. indent .. "}"
end
function msys.dumper.Dumper(value) return dump(value, "", {}) end

-- the operators that the dialect adds; a metamethod goes first, as for the operators of Lua itself
_BIT = {}
local function whole(value)
  local number = tonumber(value)
  if number == nil then raise("attempt to perform arithmetic on a " .. type(value) .. " value") end
  return number
end
local function operator(event, f)
  return function(a, b)
    if type(a) == "table" or type(b) == "table" then
      local meta = type(a) == "table" and getmetatable(a) or type(b) == "table" and getmetatable(b)
      local own = type(meta) == "table" and rawget(meta, event)
      if own then return own(a, b) end
    end
    return f(whole(a), whole(b))
  end
end
-- Integers of 64 bits, as far as a number of Lua holds them: a half of 32 bits each, the upper one with the sign.
local floor, ceil = math.floor, math.ceil
local HALF = 2^32
local function integer(value) return value < 0 and ceil(value) or floor(value) end
local function bits(f)
  return function(a, b)
    a, b = integer(a), integer(b)
    if a >= 0 and b >= 0 and a < 2^31 and b < 2^31 then return f(a, b) end
    return f(floor(a / HALF), floor(b / HALF)) * HALF + f(a % HALF, b % HALF) % HALF
  end
end
_BIT.band, _BIT.bor, _BIT.bxor =
  operator("__and", bits(bit.band)), operator("__or", bits(bit.bor)), operator("__xor", bits(bit.bxor))
local function shifted(a, by)
  if by >= 64 or by <= -64 then return 0 end
  if by < 0 then return floor(a / 2^-by) end
  local moved = a * 2^by % 2^64
  return moved < 2^63 and moved or moved - 2^64
end
_BIT.shl = operator("__shl", function(a, by) return shifted(integer(a), integer(by)) end)
_BIT.shr = operator("__shr", function(a, by) return shifted(integer(a), -integer(by)) end)
_BIT.idiv = operator("__intdiv", function(a, b)
  if b == 0 then raise("attempt to divide by zero") end
  return integer(a / b)
end)
local bnot = operator("__not", function(a) return -integer(a) - 1 end)
function _BIT.bnot(a) return bnot(a, 0) end

-- scripts --------------------------------------------------------------------------------------------------------
-- Each script has globals of its own, with what all have copied into them; what it requires runs among them.
local setfenv, loadstring, getinfo, byte = setfenv, loadstring, debug.getinfo, string.byte
local shared = {}
for _, name in ipairs({"_VERSION", "assert", "bit", "coroutine", "error", "gcinfo", "getmetatable", "ipairs", "json", "math",
  "msys", "next", "pairs", "pcall", "print", "rawequal", "rawget", "rawset", "select", "setmetatable", "string", "table",
  "thread", "tonumber", "tostring", "type", "unpack", "xml", "xpcall", "_BIT", "_TLS", "_OSTLS"}) do
  shared[name] = _G[name]
end
for name, found in pairs(libraries) do shared[name] = found end
-- time is the server's, which a replay has recorded
local time_of, date_of, now = os.time, os.date, core.get_now_ts
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

local builtin = {
  string = string, table = table, math = math, coroutine = coroutine, json = json, xml = xml, thread = thread,
  os = shared.os, io = shared.io, debug = shared.debug, curl = shared.curl, bit = bit, strict = true,
  ["msys.http.client"] = msys.http.client, ["opendkim.dkim"] = core,
  ["msys.extended.message"] = methods.msg, ["msys.extended.message_routing"] = methods.msg,
  ["msys.extended.ac"] = methods.ac, ["msys.extended.vctx"] = methods.vctx, ["msys.boot"] = true,
}
for path, found in pairs(tables) do builtin[path] = found end
for _, name in ipairs({"timer", "dumper", "threadpool", "os", "datasource", "tls_params", "idn", "validate", "base64", "qp"}) do
  builtin["msys." .. name] = builtin["msys." .. name] or msys[name] or {}
end

local LONGEST = 65536  -- octets that loadstring takes: reading them is not interrupted
local function compiled(text, label, env)
  local translated, chunk, fault = py.translate(text, label)
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
    local found = loaded[name]
    if found == nil then found = builtin[name] end
    if found == nil then found = stanzas[name] end
    if found ~= nil then return found end
    if loading[name] then raise("require: " .. tostring(name) .. " requires itself") end
    local text, path = py.source(name)
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
local function load_script(name)
  if stanzas[name] == nil then stanzas[name] = globals().require(name) end
end

-- callouts -------------------------------------------------------------------------------------------------------
-- Each takes the module's table of this session, its function, the session, and what the phase or question has; `c` is
-- the opaque call where there is a message. The session holds the objects that live as long as it does.
local list = bound("vctx:recipient_list")
local function with_message(t, f, s, c) return f(t, new.msg(c), s.ac, s.vctx) end
local function with_list(t, f, s) return f(t, list(s.handle), s.vctx) end
local function with_text(t, f, s, text) return f(t, text, s.ac, s.vctx) end
local shapes = {
  validate_connect = function(t, f, s) return f(t, s.ac, s.vctx) end,
  validate_ehlo = with_text,
  validate_mailfrom = with_text,
  validate_rcptto = function(t, f, s, c, text) return f(t, new.msg(c), text, s.ac, s.vctx) end,
  validate_rcptto_list = with_list,
  validate_rcptto_list_final = with_list,
  validate_data = with_message,
  validate_data_spool = with_message,
  validate_data_spool_each_rcpt = with_message,
  core_final_validation = with_message,
  validate_set_binding = function(t, f, s, c) return f(t, new.msg(c)) end,
  validate_dealloc = function(t, f) return f(t) or core.VALIDATE_CONT end,
  core_validate_auth_hook = function(t, f, s, user, name, status)
    return f(t, s.vctx, {user = user, name = name}, status) or core.VALIDATE_CONT
  end,
  inbound_smtp_tls_post_accept = function(t, f, s)
    return f(t, s.ac, s.vctx, nil, nil, core.get_now_ts()) or core.VALIDATE_CONT
  end,
}
local USE_TLS = {no = 0, ifavailable = 1, required = 2}
local function parameters(use_tls, tls_verify, certfile, keyfile, ca, cipherlist)
  return {use_tls = USE_TLS[use_tls], tls_verify = tls_verify, certfile = certfile, keyfile = keyfile, ca = ca,
          cipherlist = cipherlist}
end
local function certificate(subject, issuer, sha256, spki_sha256, san, cause, ...)
  return {subject = subject, issuer = issuer, sha256 = sha256, spki_sha256 = spki_sha256, san = san, cause = cause}, ...
end
local questions = {
  get_inbound_tls_parameters = function(t, f, s, c, ...)
    local p = parameters(...)
    f(t, s.ac, s.vctx, p)
    return p.use_tls, p.tls_verify, p.certfile, p.keyfile, p.ca, p.cipherlist
  end,
  get_outbound_tls_parameters = function(t, f, s, c, ...)
    local p = parameters(...)
    f(t, new.msg(c), p)
    return p.use_tls, p.tls_verify, p.certfile, p.keyfile, p.ca, p.cipherlist
  end,
  inbound_smtp_tls_verify_callback = function(t, f, s, c, ok, ...)
    local cert = certificate(...)
    return f(t, s.ac, s.vctx, ok and 1 or 0, cert.subject, cert.issuer, cert)
  end,
  outbound_smtp_tls_verify_callback = function(t, f, s, c, ok, ...)
    local cert, host, ip, domain = certificate(...)
    return f(t, {host = host, ip = ip, domain = domain}, nil, ok and 1 or 0, cert.subject, cert.issuer, cert)
  end,
  pre_esmtp_auth = function(t, f, s, c, mechanism, user)
    return f(t, s.ac, {mechanism = mechanism, user = user}, s.vctx)
  end,
  pre_ec_can_relay_to = function(t, f, s, c, domain) return f(t, domain, s.ac, s.vctx) end,
  config_get_domain_relay = function(t, f, s, c, domain) return f(t, domain, s.ac, s.vctx) end,
  core_config_get_message_routing_domain = function(t, f, s, c, scope)
    local buffer = core.string_new("")
    f(t, scope, new.msg(c), buffer)
    return #buffer > 0 and tostring(buffer) or nil
  end,
  binding_group_choose_binding = function(t, f, s, c, group) return f(t, new.msg(c), group) end,
  get_received_header_text = function(t, f, s, c, text)
    local buffer = core.string_new(text)
    f(t, s.ac, s.vctx, buffer)
    return tostring(buffer)
  end,
  ec_message_set_next_attempt = function(t, f, s, c, next, tries) return f(t, new.msg(c), next, tries) end,
  get_msg_expiration_params = function(t, f, s, c, message_expiration, max_retries)
    local p = {message_expiration = message_expiration, max_retries = max_retries}
    f(t, new.msg(c), p)
    return p.message_expiration, p.max_retries
  end,
  outbound_smtp_auth_config = function(t, f, s, c) f(t, new.msg(c), s.ac, s.vctx) end,
  generate_bounces = function(t, f, s, c, reply) return f(t, new.msg(c), reply) end,
  generate_rfc3464_message_preamble = function(t, f, s, c, reply, text)
    local buffer = core.string_new(text)
    f(t, new.msg(c), reply, buffer)
    return tostring(buffer)
  end,
  ac_auth_perform_auth = function(t, f, s, c, user, password)
    local response = core.string_new("")
    return f(t, user, password, s.ac, response), tostring(response)
  end,
  ac_auth_log_auth_failure = function(t, f, s, c, user, response) return f(t, user, s.ac, response) end,
}

local enter = rt.enter
-- What a module keeps of a session, its `self`, is made with its first callout.
local function bind(name, f, module, may_wait)
  local shape, meta = shapes[name] or questions[name], {__index = module}
  return function(s, ...)
    local self = s[module]
    if not self then
      if name == "validate_dealloc" then return true, core.VALIDATE_CONT end
      self = setmetatable({}, meta)
      s[module] = self
    end
    return enter(may_wait, s, shape, self, f, s, ...)
  end
end
return {
  bind = bind,
  session = function(current) return {handle = current, ac = new.ac(current), vctx = new.vctx(current)} end,
  run = function(may_wait, f, ...) return enter(may_wait, nil, f, ...) end,
  load = load_script,
  new = new,
  authenticate = function(number, ...) local t = rt.kept(number) return t.authenticate(t, rt.good(...)) end,
  command = function(number, ...) return rt.kept(number)(rt.good(...)) end,
}
