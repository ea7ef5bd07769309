//! Files in upstream's form.

use super::*;
use crate::memory_manager::state::MemoryTable;

/// Written by upstream's own code, v1.37.2.
const NONE: &str = r#"{"policyName":"None","machineState":{},"checksum":4236770233,"data":"{\"policyName\":\"None\",\"machineState\":{}}","dataChecksum":3093843326}"#;
const STATIC: &str = r#"{"policyName":"Static","machineState":{"0":{"numberOfAssignments":2,"memoryMap":{"hugepages-1Gi":{"total":2147483648,"systemReserved":0,"allocatable":2147483648,"reserved":0,"free":2147483648},"memory":{"total":17179869184,"systemReserved":536870912,"allocatable":14495514624,"reserved":1073741824,"free":5}},"cells":[0,1]},"1":{"numberOfAssignments":2,"memoryMap":{"memory":{"total":17179869184,"systemReserved":0,"allocatable":17179869184,"reserved":0,"free":7}},"cells":[0,1]},"10":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":1,"systemReserved":2,"allocatable":3,"reserved":4,"free":5}},"cells":[10]}},"entries":{"u-1":{"c":[{"numaAffinity":[0,1],"type":"memory","size":1073741824},{"numaAffinity":[0],"type":"hugepages-1Gi","size":1073741824}]},"u-2":{"d":[{"numaAffinity":[0],"type":"memory","size":0}]}},"checksum":1509028561,"data":"{\"policyName\":\"Static\",\"machineState\":{\"0\":{\"numberOfAssignments\":2,\"memoryMap\":{\"hugepages-1Gi\":{\"total\":2147483648,\"systemReserved\":0,\"allocatable\":2147483648,\"reserved\":0,\"free\":2147483648},\"memory\":{\"total\":17179869184,\"systemReserved\":536870912,\"allocatable\":14495514624,\"reserved\":1073741824,\"free\":5}},\"cells\":[0,1]},\"1\":{\"numberOfAssignments\":2,\"memoryMap\":{\"memory\":{\"total\":17179869184,\"systemReserved\":0,\"allocatable\":17179869184,\"reserved\":0,\"free\":7}},\"cells\":[0,1]},\"10\":{\"numberOfAssignments\":0,\"memoryMap\":{\"memory\":{\"total\":1,\"systemReserved\":2,\"allocatable\":3,\"reserved\":4,\"free\":5}},\"cells\":[10]}},\"entries\":{\"u-1\":{\"c\":[{\"numaAffinity\":[0,1],\"type\":\"memory\",\"size\":1073741824},{\"numaAffinity\":[0],\"type\":\"hugepages-1Gi\",\"size\":1073741824}]},\"u-2\":{\"d\":[{\"numaAffinity\":[0],\"type\":\"memory\",\"size\":0}]}}}","dataChecksum":2980014475}"#;
const OLDER: [&str; 3] = [
    r#"{"policyName":"Static","machineState":{"0":{"numberOfAssignments":2,"memoryMap":{"hugepages-1Gi":{"total":2147483648,"systemReserved":0,"allocatable":2147483648,"reserved":0,"free":2147483648},"memory":{"total":17179869184,"systemReserved":536870912,"allocatable":14495514624,"reserved":1073741824,"free":5}},"cells":[0,1]},"1":{"numberOfAssignments":2,"memoryMap":{"memory":{"total":17179869184,"systemReserved":0,"allocatable":17179869184,"reserved":0,"free":7}},"cells":[0,1]},"10":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":1,"systemReserved":2,"allocatable":3,"reserved":4,"free":5}},"cells":[10]}},"entries":{"u-1":{"c":[{"numaAffinity":[0,1],"type":"memory","size":1073741824},{"numaAffinity":[0],"type":"hugepages-1Gi","size":1073741824}]},"u-2":{"d":[{"numaAffinity":[0],"type":"memory","size":0}]}},"checksum":1509028561}"#,
    r#"{"policyName":"Static","machineState":{"0":{"numberOfAssignments":2,"memoryMap":{"hugepages-1Gi":{"total":2147483648,"systemReserved":0,"allocatable":2147483648,"reserved":0,"free":2147483648},"memory":{"total":17179869184,"systemReserved":536870912,"allocatable":14495514624,"reserved":1073741824,"free":5}},"cells":[0,1]},"1":{"numberOfAssignments":2,"memoryMap":{"memory":{"total":17179869184,"systemReserved":0,"allocatable":17179869184,"reserved":0,"free":7}},"cells":[0,1]},"10":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":1,"systemReserved":2,"allocatable":3,"reserved":4,"free":5}},"cells":[10]}},"entries":{"u-1":{"c":[{"numaAffinity":[0,1],"type":"memory","size":1073741824},{"numaAffinity":[0],"type":"hugepages-1Gi","size":1073741824}]},"u-2":{"d":[{"numaAffinity":[0],"type":"memory","size":0}]}},"checksum":2166323928}"#,
    r#"{"policyName":"Static","machineState":{"0":{"numberOfAssignments":2,"memoryMap":{"hugepages-1Gi":{"total":2147483648,"systemReserved":0,"allocatable":2147483648,"reserved":0,"free":2147483648},"memory":{"total":17179869184,"systemReserved":536870912,"allocatable":14495514624,"reserved":1073741824,"free":5}},"cells":[0,1]},"1":{"numberOfAssignments":2,"memoryMap":{"memory":{"total":17179869184,"systemReserved":0,"allocatable":17179869184,"reserved":0,"free":7}},"cells":[0,1]},"10":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":1,"systemReserved":2,"allocatable":3,"reserved":4,"free":5}},"cells":[10]}},"entries":{"u-1":{"c":[{"numaAffinity":[0,1],"type":"memory","size":1073741824},{"numaAffinity":[0],"type":"hugepages-1Gi","size":1073741824}]},"u-2":{"d":[{"numaAffinity":[0],"type":"memory","size":0}]}},"podEntries":{"u-9":{"memoryBlocks":[{"numaAffinity":[0],"type":"memory","size":5}]}},"checksum":3505775533}"#,
];

fn state() -> MemoryState {
    let table = |[total, system_reserved, allocatable, reserved, free]: [u64; 5]| MemoryTable {
        total,
        system_reserved,
        allocatable,
        reserved,
        free,
    };
    let node =
        |number_of_assignments, tables: &[(&str, [u64; 5])], cells: &[usize]| NumaNodeState {
            number_of_assignments,
            memory_map: tables
                .iter()
                .map(|(name, values)| ((*name).to_owned(), table(*values)))
                .collect(),
            cells: cells.to_vec(),
        };
    let block = |nodes: &[usize], resource: &str, size| Block {
        numa_affinity: nodes.to_vec(),
        resource: resource.to_owned(),
        size,
    };
    let memory = [1 << 34, 1 << 29, 14_495_514_624, 1 << 30, 5];
    let huge = [1 << 31, 0, 1 << 31, 0, 1 << 31];
    let of_first = vec![
        block(&[0, 1], "memory", 1 << 30),
        block(&[0], "hugepages-1Gi", 1 << 30),
    ];
    let of_second = vec![block(&[0], "memory", 0)];
    MemoryState {
        machine: [
            (
                0,
                node(2, &[("memory", memory), ("hugepages-1Gi", huge)], &[0, 1]),
            ),
            (
                1,
                node(2, &[("memory", [1 << 34, 0, 1 << 34, 0, 7])], &[0, 1]),
            ),
            (10, node(0, &[("memory", [1, 2, 3, 4, 5])], &[10])),
        ]
        .into(),
        assignments: [
            ("u-1".to_owned(), [("c".to_owned(), of_first)].into()),
            ("u-2".to_owned(), [("d".to_owned(), of_second)].into()),
        ]
        .into(),
    }
}

#[test]
fn files_are_written_as_upstream_writes_them() {
    assert_eq!(encode("None", &MemoryState::default()), NONE);
    assert_eq!(encode("Static", &state()), STATIC);
}

#[test]
fn files_of_every_version_are_read() {
    let none = decode(NONE.as_bytes(), "None").unwrap();
    assert_eq!(none, MemoryState::default());
    for text in OLDER.into_iter().chain([STATIC]) {
        assert_eq!(
            decode(text.as_bytes(), "Static").unwrap(),
            state(),
            "{text}"
        );
    }
}

#[test]
fn what_is_not_whole_or_of_another_policy_is_refused() {
    let check = |text: &str, expect: &str| {
        let told = decode(text.as_bytes(), "Static").unwrap_err().to_string();
        assert!(told.contains(expect), "{text}: {told}");
    };
    check(
        NONE,
        "[memorymanager] configured policy \"Static\" differs from state checkpoint policy \"None\"",
    );
    check("{", "no checkpoint of a memory manager");
    check(
        &STATIC.replace("1073741824,\\\"free", "1073741825,\\\"free"),
        "could not load v3 checkpoint: checkpoint is corrupted",
    );
    for older in OLDER {
        check(
            &older.replace("\"size\":1073741824", "\"size\":1"),
            "checkpoint is corrupted",
        );
    }
}
