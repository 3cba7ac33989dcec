#!/bin/sh
# Quillon with its own configuration and spool in $RUN.
# hold: the destination's queue is suspended, so that messages stay in the spool.
set -eu
. "$(dirname "$0")/../env.sh"
quillon=${QUILLON:-$(dirname "$0")/../../.venv/bin/quillon}
tls_in= tls_out= suspend=
if [ "$TLS" = out ]; then tls_out="TLS = required Max_Deliveries_Per_Connection = 1"; fi
if [ "$TLS" = 1 ]; then
    tls_in="TLS_Certificate = \"$crt\" TLS_Key = \"$key\" SMTP_Extensions = ( \"ENHANCEDSTATUSCODES\" \"STARTTLS\" )"
    if [ "$CLIENTCERT" = 1 ]; then tls_in="$tls_in TLS_Client_CA = \"$ca\" TLS_Verify_Mode = require"
    else tls_in="$tls_in TLS_Verify_Mode = none"; fi
    tls_out="TLS = required"
fi
evidence=
if [ "${EVIDENCE:-}" = 1 ]; then evidence="evidence { }"; fi
if [ "$MODE" = hold ]; then suspend="Suspend_Delivery = true"; fi
workers=${WORKERS:-2}
cat >"$RUN/ecelerity.conf" <<X
TLS_Engine = ${ENGINE:-openssl}
Hostname = mx.bench.example
Workers = $workers
PidFile = quillon.pid
SpoolBase = spool
ec_logger "main" { mainlog = mainlog.ec rejectlog = rejectlog.ec paniclog = paniclog.ec }
ESMTP_Listener {
  Relay_Hosts = ( 127.0.0.0/8 )
  Listen "$IN" { $tls_in }
}
$tls_out
$suspend
$evidence
Gateway = "$OUT"
X
exec "$quillon" serve -c "$RUN/ecelerity.conf"
