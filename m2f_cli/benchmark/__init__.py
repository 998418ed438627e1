"""Time pieces of work in processes of their own, alone or in turns with a peer's.

A `Case` says what `m2f bench` does. A `Workload` does it once. Ours are lines of the group "workloads" in plugins.py,
made from (case, segmenter). A peer is a line of the group "peers": a function of (case, segmenter, folder of the
converted weights) that makes its own. The scripts in benchmarks/ describe sides of their own as `process.Work`, which
`interleaved.race` times. `interleaved.bench` times a case and gives the tree that is written, one JSON object a file
(schema_version 1):

    model             {"name", "source", "weights": "random" | "as loaded", "parameters": {part: count, "total"}}
    what, device (its name), precision (of our network), image, network_input (null: of several sizes), sizes
    ([(height, width) of the image, of what the network sees] of each), batch, threads, compile, engine, rounds,
    warm_up, protocol (a sentence), peer ({"name", "compile", "precision", "batch"}; null without one)
    machine           where and beside what: cpu, gpu, cores, torch, allocator, load average before and after
    sides             name → {"seconds": [of each round], "median", "low", "high" (quartiles), "images_per_second",
                      "cpu_seconds", "other_cores", "joules_per_image" | null, "stages": {stage: seconds} | null,
                      "memory": {"resident_growth_mib", "resident_peak_mib", "device_peak_mib",
                      "device_reserved_mib"}; null: not told}
    ratio             {"time" | "resident_growth" | "resident_peak" | "device_peak": {"value", "low", "high",
                      "interval": what low and high are}} peer / ours; null: no peer
    difference        name of an output → how far the two sides are apart; null without a peer
    flops             {part: FLOPs of one run, "total", "not_counted"}; null: `flops_missing` says why
    matmul_peak       FLOP/s of a large matrix product on this machine in this precision; null: not one of PyTorch's;
                      share_of_peak: ours of it, null without flops
    quality           what the number format costs, where `--quality` asked: {"name" of the figure, "a" in fp32, "b" in
                      `precision`, "difference", "low", "high", "pictures", "data"}
    images_per_second, memory_gib, train_memory_gib      only in results that were measured by the protocol of the
                      reference tables (`--preset all`): `m2f presets table` reads them
"""
