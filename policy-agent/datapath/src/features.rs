//! What the kernel has of what the programs need.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

/// What the programs need and the kernel does not have, or does not let this process use, for people.
pub fn missing_features() -> Vec<&'static str> {
    let programs = [(ProgramType::SchedClassifier, "BPF programs on interfaces (cls_bpf)")];
    let maps = [
        (MapType::LruHash, "BPF maps of type LRU hash"),
        (MapType::LpmTrie, "BPF maps of type LPM trie"),
        (MapType::RingBuf, "BPF ring buffers"),
        (MapType::ProgramArray, "BPF program arrays"),
    ];
    let programs = programs.into_iter().filter(|(kind, _)| !is_program_supported(*kind).unwrap_or(false));
    let maps = maps.into_iter().filter(|(kind, _)| !is_map_supported(*kind).unwrap_or(false));
    programs.map(|(_, name)| name).chain(maps.map(|(_, name)| name)).collect()
}
