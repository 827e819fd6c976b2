#!/usr/bin/env bash
# Schemathesis against a study server: every route of its OpenAPI document, with and without the token.
#   benchmarks/service/openapi_fuzz.sh PYTHON_WITH_SCHEMATHESIS [EXAMPLES]
# Fails when an answer is a 5xx, is not of its schema, or accepts what the schema refuses.
set -euo pipefail
cd "$(dirname "$0")/../.."
schemathesis="$(dirname "$1")/schemathesis"
examples="${2:-50}"
folder="$(mktemp -d)"
token="fuzz-token-0123456789abcdef"
printf 'def score(recipe):\n    return {"a": recipe.params["weight[a]"]}\n' >"$folder/fuzz_scorer.py"
cat >"$folder/study.yaml" <<YAML
study: fuzzed
merge: {method: ties, models: [a, b], space: {weight: [0, 1]}}
backend: {type: function, call: "fuzz_scorer:score"}
objectives: [a]
search: {sampler: random, evaluations: 6}
YAML
(cd "$folder" && "$OLDPWD/.venv/bin/mergefront" run study.yaml --evaluations 6 >/dev/null 2>&1)
(cd "$folder" && "$OLDPWD/.venv/bin/mergefront" resume fuzzed --evaluations 6 >/dev/null 2>&1) || true
(cd "$folder" && MERGEFRONT_STUDIES_TOKEN="$token" exec "$OLDPWD/.venv/bin/mergefront" serve --studies --port 8291 2>server.log) &
server=$!
trap 'kill $server; rm -rf "$folder"' EXIT
for _ in $(seq 100); do curl -fs http://127.0.0.1:8291/health >/dev/null && break; sleep 0.2; done
for header in "Bearer $token" "Bearer wrong"; do
    "$schemathesis" run http://127.0.0.1:8291/openapi.json -H "Authorization: $header" --max-examples "$examples" \
        --checks not_a_server_error,response_schema_conformance,status_code_conformance,content_type_conformance \
        --phases examples,coverage,fuzzing --seed 1
done
if grep -q Traceback "$folder/server.log"; then cat "$folder/server.log"; exit 1; fi
