#!/bin/sh
# cluster.sh [ITEM...] - measures the targets of roles on many hosts at their full size and prints for each figure a line
#     item  figure | target: ... | pass or FAIL
# Items: 1 the demo   2 splits   3 a context larger than a node   4 what offloading costs   5 kills   6 drain   7 etcd and partitions
#        8 simulation   9 documentation. Without one, all. Called by ./run accept cluster, which has built.
# Ends with 1 when a line failed.
# Logs of each item go to build/accept/.
set -u
area=cluster
. "$(dirname "$0")/shared/lines.sh"

item_1() {
    needle_model
    log=$logs/cluster-1.log
    if "$python" tools/cluster_demo.py build/hadal "$model" --prompt 16000 >"$log" 2>&1; then result=pass; else result=FAIL; fi
    line 1 "./run cluster-demo, prompts of 16,000 tokens: $(tail -n 1 "$log")" "every stream as in one process" "$result"
    sed -n '/^stream /,/^$/s/^/     /p' "$log"
}

item_2() {
    needle_model
    tests 2 "logits of the golden models, by heads, by positions and by both" -R '^worker_golden_nodes_test$'
    python_item tests/accept/roles.py build/hadal "$model" splits
}

item_3() {
    needle_model
    python_item tests/accept/roles.py build/hadal "$model" larger
}

# The shape of Llama-3.2-1B; its weights are drawn, for speed is all that is asked of it.
item_4() {
    shape=$root/build/models/llama-1b
    [ -d "$shape" ] || {
        rm -rf "$shape.part"
        "$python" bench/peers/models.py hf "$shape.part" >"$logs/cluster-4.log" 2>&1 && mv "$shape.part" "$shape" || {
            line 4 "bench/peers/models.py: see $logs/cluster-4.log" "a model of that shape" FAIL
            return
        }
    }
    python_item tests/accept/roles.py build/hadal "$shape" offload --node-memory 3G --far-memory 6G
}

item_5() {
    tests 5 "workers and attention nodes killed, hung and started again under streams (few times, small prompts)" \
        -R '^cluster_(takeover|offload|roles)_test$'
    python_item tests/accept/kills.py build/hadal
}

item_6() {
    needle_model
    tests 6 "attention nodes drained, undrained, ended and killed meanwhile, replicas made again" \
        -R '^(cluster_drain|attention_page_mover|attention_handover|attention_block_copy)_test$'
    python_item tests/accept/drain.py build/hadal "$model"
}

item_7() {
    tests 7 "etcd stalled, killed and started again; a watch behind a compaction" -R '^(cluster_takeover|proto_etcd|proto_membership)_test$'
    export HADAL_ETCD_STOP_S=60
    tests 7 "etcd gone for 60 s, its leader changed, every lease run out at once, partitions between every pair of roles, slow cables" \
        -R '^cluster_network_test$'
}

item_8() {
    log=$logs/cluster-8.log
    "$root/build/tests/simulation_test" --seeds 10000 >"$log" 2>&1
    # "10000 seeds in 91.0 s, ..."
    if [ $? -eq 0 ] && awk 'NR == 1 { exit !($4 <= 180) }' "$log"; then result=pass; else result=FAIL; fi
    line 8 "$(sed -n '1s/:.*//p' "$log")" "10,000 seeds in 180 s, none failing" "$result"
    tests 8 "the same as tests, and each planted bug found" -L '^simulation$'
}

item_9() { tests 9 "the commands of docs/operations.md, on five hosts" -R '^cluster_operations_test$'; }

[ $# -gt 0 ] || set -- 1 2 3 4 5 6 7 8 9
for item in "$@"; do
    case $item in
    [1-9]) "item_$item" ;;
    *) printf 'accept cluster: there is no item %s; there are 1 to 9\n' "$item" >&2; exit 2 ;;
    esac
done
[ "$failures" -eq 0 ] || { printf '%s failed\n' "$failures" >&2; exit 1; }
