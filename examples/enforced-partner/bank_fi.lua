-- Mail from bank.fi is accepted only over TLS and with a client certificate that verified.
--
-- Load it in ecelerity.conf:
--   scriptlet "scriptlet" { script "bank_fi" { source = "bank_fi" } }
--
-- The listener needs TLS_Certificate, TLS_Key, "STARTTLS" among its SMTP_Extensions, and TLS_Client_CA with the authority
-- that issues the bank's client certificates.

require("msys.core")

local enforced = { ["bank.fi"] = true }

local mod = {}

function mod:validate_mailfrom(str, ac, vctx)
  local domain = vctx:get(msys.core.VCTX_MESS, "mailfrom_domain")
  if not enforced[string.lower(domain or "")] then
    return msys.core.VALIDATE_CONT
  end
  if vctx:get(msys.core.VCTX_CONN, "tls") ~= "on" then
    vctx:set_code(550, "5.7.10 mail from " .. domain .. " is accepted over TLS only")
    return msys.core.VALIDATE_DONE
  end
  if vctx:get(msys.core.VCTX_CONN, "tls_client_verified") ~= "yes" then
    local cause = vctx:get(msys.core.VCTX_CONN, "tls_client_verify_error") or "no_client_certificate"
    vctx:set_code(550, "5.7.1 mail from " .. domain .. " needs a verified client certificate (" .. cause .. ")")
    return msys.core.VALIDATE_DONE
  end
  return msys.core.VALIDATE_CONT
end

msys.registerModule("bank_fi", mod)
