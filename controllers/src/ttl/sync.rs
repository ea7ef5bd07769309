//! The decision: how long, for how many nodes. Pure.

use k8s_openapi::api::core::v1::Node;

/// The annotation; its value is seconds.
pub const OBJECT_TTL_ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// One step: from and up to how many nodes it holds, and the seconds. Steps overlap, so that a few nodes more or less change nothing.
struct Boundary {
    size_min: usize,
    size_max: usize,
    ttl_seconds: u32,
}

const fn boundary(size_min: usize, size_max: usize, ttl_seconds: u32) -> Boundary {
    Boundary {
        size_min,
        size_max,
        ttl_seconds,
    }
}

const BOUNDARIES: &[Boundary] = &[
    boundary(0, 100, 0),
    boundary(90, 500, 15),
    boundary(450, 1000, 30),
    boundary(900, 2000, 60),
    boundary(1800, usize::MAX, 300),
];

/// Where the cluster is among the steps; 0 for an empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step(usize);

impl Step {
    /// The step of a cluster of `nodes` that was at this one.
    #[must_use]
    pub fn next(self, nodes: usize) -> Self {
        let mut index = self.0.min(BOUNDARIES.len() - 1);
        while nodes > BOUNDARIES[index].size_max {
            index += 1;
        }
        while nodes < BOUNDARIES[index].size_min {
            index -= 1;
        }
        Self(index)
    }

    /// The seconds of this step.
    pub fn ttl_seconds(self) -> u32 {
        BOUNDARIES[self.0].ttl_seconds
    }
}

/// Whether the node says something else than `ttl_seconds`.
pub fn needs_update(node: &Node, ttl_seconds: u32) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    let current = annotations.and_then(|a| a.get(OBJECT_TTL_ANNOTATION));
    current.and_then(|text| text.parse().ok()) != Some(ttl_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steps_have_hysteresis() {
        let mut step = Step::default();
        for (nodes, ttl) in [
            (0, 0),
            (100, 0),
            (101, 15),
            (90, 15),
            (89, 0),
            (501, 30),
            (450, 30),
            (449, 15),
            (100_000, 300),
            (1799, 60),
            (3, 0),
        ] {
            step = step.next(nodes);
            assert_eq!(step.ttl_seconds(), ttl, "{nodes} nodes");
        }
    }

    #[test]
    fn annotations() {
        for (annotations, update) in [
            (json!({}), true),
            (json!({OBJECT_TTL_ANNOTATION: "15"}), false),
            (json!({OBJECT_TTL_ANNOTATION: "0"}), true),
            (json!({OBJECT_TTL_ANNOTATION: "soon"}), true),
        ] {
            let node =
                serde_json::from_value(json!({"metadata": {"annotations": annotations}})).unwrap();
            assert_eq!(needs_update(&node, 15), update, "{annotations}");
        }
    }
}
