//! Made-up machines, and what upstream's own code (v1.37.2) takes of them.

use super::*;
use crate::topology::{CpuInfo, Topology};

const PACKED: Strategy = Strategy {
    spread_over_cores: false,
    distribute: None,
    align_by_socket: false,
    align_by_uncore_cache: false,
};
const SPREAD: Strategy = Strategy {
    spread_over_cores: true,
    ..PACKED
};
const BY_CACHE: Strategy = Strategy {
    align_by_uncore_cache: true,
    ..PACKED
};

const fn distributed(group: usize, align_by_socket: bool) -> Strategy {
    Strategy {
        distribute: Some(group),
        align_by_socket,
        ..PACKED
    }
}

/// Sockets, nodes a socket, cores a node, threads a core; cores an uncore cache, or zero for one a socket; what is free; how many are
/// wanted, and how; what is taken.
type Case = (
    [usize; 4],
    usize,
    &'static str,
    usize,
    Strategy,
    &'static str,
);

#[rustfmt::skip]
const CASES: &[Case] = &[
    ([1, 1, 4, 2], 0, "0-7", 1, PACKED, "0"),
    ([1, 1, 4, 2], 0, "0-7", 2, PACKED, "0,4"),
    ([1, 1, 4, 2], 0, "1-7", 1, PACKED, "4"),
    ([1, 1, 4, 2], 0, "1-7", 3, PACKED, "1,4-5"),
    ([1, 1, 4, 2], 0, "0,2,6", 1, PACKED, "0"),
    ([1, 1, 4, 2], 0, "0-3", 5, PACKED, "error: not enough cpus available to satisfy request: requested=5, available=4"),
    ([2, 1, 6, 2], 0, "0-23", 12, PACKED, "0-5,12-17"),
    ([2, 1, 6, 2], 0, "0-23", 14, PACKED, "0-6,12-18"),
    ([2, 1, 6, 2], 0, "0-3,6-23", 4, PACKED, "0-1,12-13"),
    ([2, 1, 6, 2], 0, "1-23", 12, PACKED, "6-11,18-23"),
    ([2, 1, 6, 2], 0, "0-4,7-16,19-23", 6, PACKED, "0-2,12-14"),
    ([2, 1, 6, 2], 0, "0-23", 8, SPREAD, "0-5,12-13"),
    ([2, 1, 6, 2], 0, "1-5,9-20", 7, SPREAD, "1,9-11,18-20"),
    ([2, 4, 5, 2], 0, "0-79", 10, PACKED, "0-4,40-44"),
    ([2, 4, 5, 2], 0, "0-79", 40, PACKED, "0-19,40-59"),
    ([2, 4, 5, 2], 0, "3-79", 13, PACKED, "3,5-9,40,43,45-49"),
    ([1, 4, 4, 2], 0, "0-31", 8, distributed(1, false), "0-3,16-19"),
    ([1, 4, 4, 2], 0, "0-31", 12, distributed(1, false), "0-2,4-6,16-18,20-22"),
    ([1, 4, 4, 2], 0, "0-31", 13, distributed(1, false), "0-6,16-18,20-22"),
    ([1, 4, 4, 2], 0, "0-31", 13, distributed(2, false), "0-6,16-21"),
    ([1, 4, 4, 2], 0, "0-31", 14, distributed(2, false), "0-6,16-22"),
    ([1, 4, 4, 2], 0, "0-2,6-31", 18, distributed(2, false), "0-2,8-10,12-14,16-18,24-26,28-30"),
    ([1, 4, 4, 2], 0, "1,4-31", 26, distributed(1, false), "1,4-15,17,20-31"),
    ([2, 4, 5, 2], 0, "0-79", 16, distributed(2, false), "0-3,5-8,40-43,45-48"),
    ([2, 4, 5, 2], 0, "0-79", 24, distributed(2, true), "0-3,5-8,10-13,40-43,45-48,50-53"),
    ([2, 4, 5, 2], 0, "1-4,7-9,12-60,64-79", 24, distributed(1, true), "25-28,30-33,35-38,65-68,70-73,75-78"),
    ([2, 4, 5, 2], 0, "1-4,7-9,12-60,64-79", 24, distributed(1, false), "15-18,25-28,30-33,55-58,65-68,70-73"),
    ([2, 4, 5, 2], 0, "2-79", 50, distributed(2, false), "5-29,45-69"),
    ([2, 1, 8, 2], 4, "0-31", 8, BY_CACHE, "0-3,16-19"),
    ([2, 1, 8, 2], 4, "1-31", 8, BY_CACHE, "4-7,20-23"),
    ([2, 1, 8, 2], 4, "1-31", 3, BY_CACHE, "1,16-17"),
    ([2, 1, 8, 2], 4, "1-31", 12, BY_CACHE, "4-9,20-25"),
    ([2, 1, 8, 2], 4, "1-3,5,7-19,22-31", 6, BY_CACHE, "8-10,24-26"),
    ([2, 1, 8, 2], 2, "1-31", 5, BY_CACHE, "2-3,16,18-19"),
    ([2, 1, 8, 2], 4, "0-31", 20, BY_CACHE, "0-9,16-25"),
    ([2, 1, 8, 2], 4, "1-31", 8, PACKED, "1-4,17-20"),
];

fn machine(shape: [usize; 4], cores_per_cache: usize) -> CpuTopology {
    let regular = Topology::regular(shape, 0).cpus;
    if cores_per_cache == 0 {
        return regular;
    }
    let cpus = regular.details.cpus();
    let details = cpus.iter().map(|cpu| {
        let info = *regular.details.get(cpu).unwrap();
        let uncore_cache = info.core / cores_per_cache;
        (
            cpu,
            CpuInfo {
                uncore_cache,
                ..info
            },
        )
    });
    CpuTopology::of(details.collect())
}

fn taken(machine: &CpuTopology, free: &str, count: usize, strategy: Strategy) -> String {
    match take(machine, &free.parse().unwrap(), count, strategy) {
        Ok(cpus) => cpus.to_string(),
        Err(error) => format!("error: {error}"),
    }
}

#[test]
fn cpus_are_taken_as_upstream_takes_them() {
    for (shape, caches, free, count, strategy, expect) in CASES {
        let got = taken(&machine(*shape, *caches), free, *count, *strategy);
        assert_eq!(
            &got, expect,
            "{shape:?} {caches} {free} {count} {strategy:?}"
        );
    }
}

#[test]
fn what_is_taken_is_as_many_as_were_wanted_and_was_free() {
    // Every fourth, every third and every second CPU is somebody's: no strategy may go wrong or on for ever.
    for shape in [[1, 1, 4, 2], [2, 1, 3, 1], [2, 4, 2, 2], [1, 8, 4, 2]] {
        let machine = machine(shape, 1);
        for gap in 2..5 {
            let all = machine.details.cpus();
            let free: CpuSet = all.iter().filter(|cpu| cpu % gap != 0).collect();
            for strategy in [
                PACKED,
                SPREAD,
                BY_CACHE,
                distributed(1, false),
                distributed(2, true),
            ] {
                for count in 0..=free.len() {
                    let cpus = take(&machine, &free, count, strategy).unwrap();
                    assert_eq!(cpus.len(), count, "{shape:?} {gap} {strategy:?}");
                    assert!(cpus.is_subset(&free));
                }
                let more = take(&machine, &free, free.len() + 2, strategy);
                assert!(matches!(more, Err(AssignmentError::NotEnough { .. })));
            }
        }
    }
}

#[test]
fn a_machine_without_cpus_gives_none() {
    let nothing = CpuTopology::default();
    for strategy in [PACKED, BY_CACHE, distributed(1, false)] {
        assert_eq!(taken(&nothing, "", 0, strategy), "");
        assert!(taken(&nothing, "", 1, strategy).starts_with("error"));
    }
}
