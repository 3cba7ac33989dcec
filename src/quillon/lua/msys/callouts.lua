-- Calling what scripts have registered.
-- Given: what runtime.lua gives. Gives what binds a callout, makes a session, and calls schemes and commands.
local rt = ...
local bound, new, enter, core = rt.bound, rt.new, rt.enter, msys.core

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
  core_pre_msg_each_rcpt = with_message,
  core_post_msg_each_rcpt = with_message,
  core_post_final_validation = with_message,
  validate_set_binding = function(t, f, s, c) return f(t, new.msg(c)) end,
  validate_dealloc = function(t, f) return f(t) or core.VALIDATE_CONT end,
  core_validate_auth_hook = function(t, f, s, user, name, status)
    return f(t, s.vctx, {user = user, name = name}, status) or core.VALIDATE_CONT
  end,
  inbound_smtp_tls_post_accept = function(t, f, s)
    return f(t, s.ac, s.vctx, nil, nil, core.get_now_ts()) or core.VALIDATE_CONT
  end,
}
-- what was said of an attempt; the domain record of the manual is a table
local function logged(t, f, s, c, domain, binding, now, note)
  f(t, new.msg(c), {domain = domain, binding = binding}, now, note, #note)
end
local USE_TLS = {no = 0, ifavailable = 1, required = 2}
local function parameters(use_tls, tls_verify, certfile, keyfile, ca, cipherlist)
  return {use_tls = USE_TLS[use_tls], tls_verify = tls_verify, certfile = certfile, keyfile = keyfile, ca = ca,
          cipherlist = cipherlist}
end
-- `names` has each entry of the subjectAltName by itself; in the text `san` a comma within one has a backslash in front.
local function certificate(subject, issuer, sha256, spki_sha256, lines, anchor, cause, ...)
  local names, shown = {}, {}
  for name in lines:gmatch("[^\n]+") do
    names[#names + 1], shown[#shown + 1] = name, (name:gsub("[\\,]", "\\%0"))
  end
  return {subject = subject, issuer = issuer, sha256 = sha256, spki_sha256 = spki_sha256, names = names,
          san = table.concat(shown, ","), anchor_sha256 = anchor, cause = cause}, ...
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
  core_log_delivery_v1 = logged,
  core_log_transient_failure_v1 = logged,
  core_log_permanent_failure_v1 = logged,
  core_smtp_tls_reporting = function(t, f, s, c, text) f(t, json.decode(text)) end,
  core_pre_mailq_message_requeue = function(t, f, s, c, now) f(t, new.msg(c), now) end,
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
  authenticate = function(number, ...) local t = rt.kept(number) return t.authenticate(t, rt.good(...)) end,
  command = function(number, ...) return rt.kept(number)(rt.good(...)) end,
}
