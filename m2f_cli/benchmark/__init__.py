"""Timings of a workload in a process of its own, alone or in turns with a peer.

A `Case` describes the work of `m2f bench`, and a `Workload` does it once. Workloads of m2f are lines of the group
"workloads" in plugins.py, made from (case, segmenter). A peer is a line of the group "peers": a function of (case,
segmenter, folder of the converted weights) that returns a workload. The scripts in benchmarks/ describe their own sides
as `process.Work`, which `interleaved.race` times. `interleaved.bench` times a case and returns the tree that is
written, one JSON object a file (schema_version 1):

    model             {"name", "source", "weights": "random" | "as loaded", "parameters": {part: count, "total"}}
    what, device (its name), precision (of our network), picture and network_input ([height, width]; null: several
    sizes), sizes ([(height, width) of the image, of the network's input] of each), batch, threads, compile, engine,
    rounds, warm_up, protocol (a sentence), peer ({"name", "compile", "precision", "batch"}; null without one)
    machine           cpu, gpu, cores, torch, allocator, load average before and after
    sides             name → {"seconds": [of each round], "median", "low", "high" (quartiles), "images_per_second",
                      "cpu_seconds", "other_cores", "joules_per_image" | null, "stages": {stage: seconds} | null,
                      "memory": {"resident_growth_mib", "resident_peak_mib", "device_peak_mib",
                      "device_reserved_mib"}; null: unknown}
    ratio             {"time" | "resident_growth" | "resident_peak" | "device_peak": {"value", "low", "high",
                      "interval": what low and high are}} peer / ours; null: no peer
    difference        name of an output → difference of the two sides; null without a peer
    flops             {part: FLOPs of one run, "total", "not_counted"}; null: `flops_missing` says why
    matmul_peak       FLOP/s of a large matrix product on this machine in this precision; null: not a PyTorch precision
    share_of_peak     our FLOP/s / matmul_peak; null without flops
    quality           loss of quality by the number format, with `--quality`: {"name" of the figure, "a" in fp32, "b" in
                      `precision`, "difference", "low", "high", "pictures", "data"}
    images_per_second, memory_gib, train_memory_gib      only in results of the protocol of the reference tables
                      (`--preset all`), for `m2f presets table`
"""
