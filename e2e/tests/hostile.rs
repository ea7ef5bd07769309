//! Promise: nothing that a stranger, another node, a service account or a pod does gets further than it may, and the node
//! stays sound meanwhile. SECURITY.md says what may be done and names these tests.
//!
//! A minute or two in `cargo e2e test`; `cargo e2e test hostile` runs the long forms too (`GANTRY_E2E_LONG`).

#[path = "hostile/attacker.rs"]
mod attacker;
#[path = "hostile/benchmark.rs"]
mod benchmark;
#[path = "hostile/certificates.rs"]
mod certificates;
#[path = "hostile/images.rs"]
mod images;
#[path = "hostile/kubelet_server.rs"]
mod kubelet_server;
#[path = "hostile/load.rs"]
mod load;
#[path = "hostile/nodes.rs"]
mod nodes;
#[path = "hostile/pods.rs"]
mod pods;
#[path = "hostile/sound.rs"]
mod sound;
#[path = "hostile/streams.rs"]
mod streams;
