#!/usr/bin/env bash
# Makes one virtual environment per peer under benchmarks/peers/.envs/ (ignored by git).
#   usage: benchmarks/peers/setup.sh [cleanrl|sb3|rllib|torchrl|pufferlib|envpool|samplefactory|trl-ppo|trl-grpo|all] ...
# PYTHON names the interpreter (3.11: CleanRL imports distutils, which 3.12 removed). What is there is kept.
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
envs="$here/.envs"
python="${PYTHON:-python3.11}"
peers=(cleanrl sb3 rllib torchrl pufferlib envpool samplefactory trl-ppo trl-grpo)

make_env() {
    local peer="$1" env="$envs/$1"
    local requirements="$here/requirements-$peer.txt"
    if [ ! -f "$requirements" ]; then
        echo "setup.sh: unknown peer '$peer'; known: ${peers[*]} all" >&2
        exit 2
    fi
    if [ -f "$env/.done" ] && cmp -s "$env/.done" "$requirements"; then
        echo "$peer: environment is there"
    else
        "$python" -m venv "$env"
        "$env/bin/pip" install --quiet --requirement "$requirements"
        case "$peer" in
            cleanrl | envpool)
                "$env/bin/pip" install --quiet --no-deps --ignore-requires-python cleanrl==1.2.0 ;;
            pufferlib) "$here/build_pufferlib.sh" "$env" ;;
        esac
        cp "$requirements" "$env/.done"
        echo "$peer: environment made"
    fi
    # Always patched afresh, so that a change of the patch cannot be forgotten.
    case "$peer" in
        cleanrl) "$env/bin/python" "$here/patch_cleanrl.py" "$env/src" \
            ppo.py ppo_continuous_action.py ppo_atari.py ;;
        envpool) "$env/bin/python" "$here/patch_cleanrl.py" "$env/src" ppo_atari_envpool.py ;;
    esac
}

[ $# -gt 0 ] || set -- all
for peer in "$@"; do
    if [ "$peer" = all ]; then
        for each in "${peers[@]}"; do make_env "$each"; done
    else
        make_env "$peer"
    fi
done
