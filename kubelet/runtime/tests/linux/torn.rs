//! Records that were torn: nothing runs twice, nothing is left.

use std::path::Path;

use runtime::*;

use super::harness::{Node, is_root, script};

fn truncate(path: &Path, part: usize, of: usize) {
    let bytes = std::fs::read(path).unwrap();
    // The last part is all but one byte.
    let length = (bytes.len() * part / of).min(bytes.len() - 1);
    std::fs::write(path, &bytes[..length]).unwrap();
}

fn processes(mark: &str) -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
        .filter(|line| line.contains(mark) && line.starts_with("sleep"))
        .count()
}

/// Both copies of what is named are torn, or the record alone.
#[tokio::test(flavor = "multi_thread")]
async fn torn_records_cost_no_running_container_and_leave_nothing() {
    if !is_root() {
        return;
    }
    for (number, (torn, both)) in [
        ("container", false),
        ("sandbox", false),
        ("container", true),
        ("sandbox", true),
    ]
    .into_iter()
    .enumerate()
    {
        for part in 0..4 {
            let mut node = Node::new().await;
            let directory = node.directory.clone();
            let sandbox = node.sandbox("torn").await;
            let mark = format!("7{number}{part}{}", std::process::id());
            let mut config = script("");
            config.command = vec!["sleep".into(), mark.clone()];
            let id = node.start(&sandbox, &config).await;
            assert_eq!(processes(&mark), 1);
            node.owned = false;
            drop(node);
            let (folder, name) = match torn {
                "container" => (format!("containers/{id}"), "container.json"),
                _ => (format!("sandboxes/{sandbox}"), "sandbox.json"),
            };
            truncate(&directory.join("root").join(&folder).join(name), part, 3);
            if both {
                truncate(
                    &directory.join("state").join(&folder).join("record.json"),
                    part,
                    3,
                );
            }
            let shim = directory
                .join("state/sandboxes")
                .join(&sandbox)
                .join("shim.pid");
            let shim = std::fs::read_to_string(shim).unwrap();

            let mut node = Node::open(&directory).await;
            node.owned = true;
            let what = format!("{torn} both {both} part {part}");
            let container = node.runtime.container_status(&id).await;
            let sandboxes = node.runtime.list_pod_sandboxes().await.unwrap();
            if !both {
                assert_eq!(container.unwrap().state, ContainerState::Running, "{what}");
                assert_eq!((sandboxes.len(), processes(&mark)), (1, 1), "{what}");
                assert_eq!(node.exec(&id, "echo here").await, (0, "here\n".into()));
                // The record is whole again.
                let path = directory.join("root").join(&folder).join(name);
                serde_json::from_slice::<serde_json::Value>(&std::fs::read(path).unwrap()).unwrap();
                continue;
            }
            assert!(
                matches!(container, Err(RuntimeError::ContainerNotFound { .. })),
                "{what}"
            );
            assert_eq!(processes(&mark), 0, "{what}");
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            for path in ["root/containers", "state/containers"] {
                let path = directory.join(path).join(&id);
                assert!(!path.exists(), "{what}: {}", path.display());
                assert!(!table.contains(path.to_str().unwrap()), "{what}: mounts");
            }
            if torn == "container" {
                assert_eq!(sandboxes[0].state, SandboxState::Ready, "{what}");
                // In the same sandbox it can be started anew.
                assert_eq!(node.run(&sandbox, &script("exit 4")).await.0, 4, "{what}");
            } else {
                assert!(sandboxes.is_empty(), "{what}");
                assert!(
                    !Path::new("/proc").join(&shim).join("exe").exists(),
                    "{what}: shim"
                );
                for path in ["root/sandboxes", "state/sandboxes"] {
                    let path = directory.join(path).join(&sandbox);
                    assert!(!path.exists(), "{what}: {}", path.display());
                    assert!(!table.contains(path.to_str().unwrap()), "{what}: mounts");
                }
                // The pod can run again.
                let again = node.sandbox("torn").await;
                assert_eq!(node.run(&again, &script("exit 5")).await.0, 5, "{what}");
            }
        }
    }
}
