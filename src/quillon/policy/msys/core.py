"""`msys.core` and the objects of callouts, as Lua source over a few Python functions.

A script never holds a Python object that it could look into: `vctx`, `ac` and `msg` are Lua tables around an opaque
handle, and the runtime refuses every attribute access on Python objects.
"""

from __future__ import annotations

PRELUDE = r"""
local py, cpu_limit = ...
local sethook, getinfo, clock = debug.sethook, debug.getinfo, os.clock

-- A callout that takes too long is stopped: every so many instructions the CPU time is looked at. Once it is over,
-- every single instruction fails, so that no pcall gets around it. Compiled traces would not be looked at: jit.off.
jit.off()
local words = "stopped after more than " .. cpu_limit .. " ms of CPU"
local state = {over = false, deadline = math.huge}
-- fails with the place in the script, not in the functions here that it went through
local function fail()
  for level = 2, 50 do
    local info = getinfo(level, "Sl")
    if not info then break end
    if info.currentline > 0 and info.short_src ~= "msys" then
      error(info.short_src .. ":" .. info.currentline .. ": " .. words, 0)
    end
  end
  error(words, 0)
end
local function over()
  if state.over then fail() end
end
local function look()
  if clock() > state.deadline then
    state.over = true
    sethook(over, "", 1)
    fail()
  end
end
local function arm()
  state.over = false
  if cpu_limit > 0 then
    state.deadline = clock() + cpu_limit / 1000
    sethook(look, "", 10000)
  end
end
local function disarm(...)
  local late = clock() > state.deadline
  state.deadline = math.huge
  sethook()
  if late then error(words, 0) end  -- in a library function, which nothing interrupts
  return ...
end
local function checked(...)
  if clock() > state.deadline then fail() end
  return ...
end
for _, name in ipairs({"find", "match", "gsub", "rep"}) do
  local plain = string[name]
  string[name] = function(...) return checked(plain(...)) end
end
-- the handler of the library's own xpcall runs where no limit is looked at
local pcall = pcall
local function handled(handler, ok, ...)
  if ok then return true, ... end
  return false, handler(...)
end
function xpcall(f, handler, ...) return handled(handler, pcall(f, ...)) end
getmetatable(py.now).__metatable = false  -- shared by all Python objects: no script may see or change it
local opaque = setmetatable({}, {__mode = "k"})

local function hidden(methods, fields)
  local meta = {__index = function(self, key)
    local field = fields and fields[key]
    if field then return field(opaque[self]) end
    return methods[key]
  end, __metatable = false}
  return function(handle)
    local proxy = setmetatable({}, meta)
    opaque[proxy] = handle
    return proxy
  end
end

local core = {
  VALIDATE_CONT = 0, VALIDATE_DONE = 1, VALIDATE_AGAIN = 2,
  VCTX_CONN = 1, VCTX_MESS = 2, ECMESS_CTX_CONN = 1, ECMESS_CTX_MESS = 2,
  P_ESMTP = "esmtp",
}
function core.get_now_ts() return py.now() end

local vctx = {}
function vctx.get(self, kind, key) return py.context_get(opaque[self], kind, key) end
function vctx.set(self, kind, key, value) py.context_set(opaque[self], kind, key, value) end
function vctx.set_code(self, code, text) py.set_code(opaque[self], code, text, false) end
function vctx.disconnect(self, code, text) py.set_code(opaque[self], code, text, true) end

local ac_fields = {
  remote_addr = function(h) return py.session(h, "remote") end,
  conn_id = function(h) return py.session(h, "connection_id") end,
  protocol = function(h) return py.session(h, "protocol") end,
}

local msg = {}
function msg.context_get(self, kind, key) return py.context_get(opaque[self], kind, key) or "" end
function msg.context_set(self, kind, key, value) py.context_set(opaque[self], kind, key, value) end
function msg.context_delete(self, kind, key) return py.context_delete(opaque[self], kind, key) end
function msg.context_exists(self, kind, key)
  if py.context_get(opaque[self], kind, key) == nil then return 0 end
  return 1
end
function msg.context_exists_and_get(self, kind, key)
  local value = py.context_get(opaque[self], kind, key)
  if value == nil then return 0, nil end
  return 1, value
end
function msg.header(self, name)
  return py.headers(opaque[self], name)
end
function msg.mailfrom(self) return py.message(opaque[self], "sender") end
function msg.rcptto(self) return py.message(opaque[self], "recipient") end
function msg.get_message_size(self) return py.message(opaque[self], "size") end
function msg.binding(self, name) return py.binding(opaque[self], "binding", name) end
function msg.binding_group(self, name) return py.binding(opaque[self], "binding_group", name) end
function msg.routing_domain(self, name) return py.binding(opaque[self], "routing_domain", name) end
local msg_fields = {
  id = function(h) return py.message(h, "message_id") end,
  batch_id = function(h) return py.message(h, "batch_id") end,
  conn_id = function(h) return py.message(h, "connection_id") end,
}

msys = {core = core}
function msys.registerModule(name, callouts)
  if type(callouts) ~= "table" then error("registerModule: the second argument is a table of callouts", 2) end
  py.register(name, callouts)
end

function print(...)
  local words = {}
  for i = 1, select("#", ...) do words[i] = tostring((select(i, ...))) end
  py.print(table.concat(words, " "))
end

local loaded = {
  ["msys.core"] = core, ["msys"] = msys, ["msys.extended.message"] = msg, ["msys.extended.ac"] = {},
  ["msys.extended.vctx"] = vctx, ["msys.extended.message_routing"] = msg,
  string = string, table = table, math = math, coroutine = coroutine,
}
local loading = {}
function require(name)
  local found = loaded[name]
  if found ~= nil then return found end
  if loading[name] then error("require: " .. name .. " requires itself", 2) end
  local text, path = py.source(name)
  if text == nil then error("require: " .. path, 2) end
  local chunk, fault = py.loadstring(text, "@" .. path)
  if chunk == nil then error(fault, 0) end
  loading[name] = true
  local result = chunk(name)
  loading[name] = nil
  loaded[name] = result == nil and true or result
  return loaded[name]
end

local new_vctx, new_ac, new_msg = hidden(vctx), hidden({}, ac_fields), hidden(msg, msg_fields)

local function parameters(use_tls, tls_verify, certfile, keyfile, ca, cipherlist)
  return {use_tls = use_tls, tls_verify = tls_verify, certfile = certfile, keyfile = keyfile, ca = ca,
          cipherlist = cipherlist}
end
local function certificate(subject, issuer, sha256, spki_sha256, san, cause, ...)
  return {subject = subject, issuer = issuer, sha256 = sha256, spki_sha256 = spki_sha256, san = san, cause = cause}, ...
end

-- each takes a registered table, the name of its callout and the opaque call, and gives the callout's result
local calls = {
  validate_connect = function(t, c) return t.validate_connect(t, new_ac(c), new_vctx(c)) end,
  validate_ehlo = function(t, c, s) return t.validate_ehlo(t, s, new_ac(c), new_vctx(c)) end,
  validate_mailfrom = function(t, c, s) return t.validate_mailfrom(t, s, new_ac(c), new_vctx(c)) end,
  validate_rcptto = function(t, c, s) return t.validate_rcptto(t, new_msg(c), s, new_ac(c), new_vctx(c)) end,
  validate_data = function(t, c) return t.validate_data(t, new_msg(c), new_ac(c), new_vctx(c)) end,
  validate_data_spool = function(t, c) return t.validate_data_spool(t, new_msg(c), new_ac(c), new_vctx(c)) end,
  validate_set_binding = function(t, c) return t.validate_set_binding(t, new_msg(c)) end,
  inbound_smtp_tls_post_accept = function(t, c)
    return t.inbound_smtp_tls_post_accept(t, new_ac(c), new_vctx(c)) or core.VALIDATE_CONT
  end,
  get_inbound_tls_parameters = function(t, c, ...)
    local p = parameters(...)
    t.get_inbound_tls_parameters(t, new_ac(c), new_vctx(c), p)
    return p.use_tls, p.tls_verify, p.certfile, p.keyfile, p.ca, p.cipherlist
  end,
  get_outbound_tls_parameters = function(t, c, ...)
    local p = parameters(...)
    t.get_outbound_tls_parameters(t, new_msg(c), p)
    return p.use_tls, p.tls_verify, p.certfile, p.keyfile, p.ca, p.cipherlist
  end,
  inbound_smtp_tls_verify_callback = function(t, c, ok, ...)
    local cert = certificate(...)
    return t.inbound_smtp_tls_verify_callback(t, new_ac(c), new_vctx(c), ok, cert.subject, cert.issuer, cert)
  end,
  outbound_smtp_tls_verify_callback = function(t, c, ok, ...)
    local cert, host, ip, domain = certificate(...)
    local to = {host = host, ip = ip, domain = domain}
    return t.outbound_smtp_tls_verify_callback(t, to, ok, cert.subject, cert.issuer, cert)
  end,
}
local limited = {}
for name, call in pairs(calls) do
  limited[name] = function(...)
    arm()
    return disarm(call(...))
  end
end
return limited, arm, disarm, state
"""
