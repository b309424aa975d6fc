#!/bin/bash
# A short session under a policy, on this machine's kernel. `make demo` calls it.
# Usage: demo.sh COMMAND...    how to call actplane with the rights it needs, e.g. demo.sh sudo .venv/bin/actplane
set -euo pipefail

actplane=("$@")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
git init -q .

cat >actplane.yaml <<'POLICY'
version: 1
policy: |
  source COMMAND = exec "**"

  rule no-push:
    kill exec "git" "push" if COMMAND
    because "pushing is the reviewer's job"
    instead "open a draft and stop"
POLICY

cat >task.sh <<'TASK'
echo '$ git push'
git push
echo "  (exit status $?)"
echo '$ python3 -c ...: the same from a program'
python3 -c 'import subprocess; print("  (return code %d)" % subprocess.run(["git", "push"]).returncode)'
echo '$ git status'
git status --short --branch
exit 3
TASK

title() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

title "The policy, actplane.yaml"
cat actplane.yaml

title "What this machine's kernel allows: actplane doctor"
"${actplane[@]}" doctor || true

title "actplane run --events events.jsonl -- bash task.sh"
status=0
"${actplane[@]}" run --events events.jsonl -- bash task.sh || status=$?
echo "(exit status $status: the task's own is 3)"

title "events.jsonl"
cat events.jsonl
[ "$status" = 3 ] && [ "$(grep -c '"killed"' events.jsonl)" = 2 ]
