#!/usr/bin/env bash
# What only a GPU can tell, in less than ten minutes: bash benchmarks/gpu.sh [FOLDER]
# Devices (save and load between them, predict, a run that is the CPU's), throughput with and without torch.compile and bfloat16,
# and one memory task to its goal. Writes FOLDER (default: gpu), one file for each part; a part that fails stops no other.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=$PWD OMP_NUM_THREADS=4

part() {
    echo "== $1"
    timeout "$2" "${@:3}" >"$out/$1.txt" 2>&1
    echo "exit code $?" | tee -a "$out/$1.txt"
    tail -n 3 "$out/$1.txt"
}

"$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' | tee "$out/machine.txt"
part devices 120 "$python" -m pytest -q -p no:cacheprovider tests/test_devices.py
big=(--device cuda --threads 4 --envs HalfCheetah-v5 --n-envs 16 --steps 8192 --n-steps 128 --batch-size 512 --n-epochs 4 --repeats 2)
part plain 100 "$python" benchmarks/throughput.py "${big[@]}" --network d_model=256 --algos aac ppo aac-memory ppo_lstm
part compiled 100 "$python" benchmarks/throughput.py "${big[@]}" --network d_model=256 --compile --bf16 --algos aac aac-memory
part memory 120 "$python" -m rl_zoo3.train --algo aac --env popgym-RepeatPreviousMedium-v0 --gym-packages popgym --device cuda \
    -n 150000 --eval-freq 50000 --eval-episodes 20 --n-eval-envs 10 --log-folder "$out/logs"
