#!/bin/sh
# Runs scripts that come over the second serial line, one a line in base64; answers each with its output and a line with its exit code.
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo "=vm= ready" >&3
while IFS= read -r line <&3; do
    printf %s "$line" | base64 -d >/run/vm-script
    sh /run/vm-script </dev/null >&3 2>&1
    printf '\n=vm= %s\n' $? >&3
done
