//! ImageLocality: nodes that have a pod's images already are better, the larger the images and the more widespread they are.
//!
//! An image on few nodes counts little, so that those nodes do not draw all its pods. Upstream: plugins/imagelocality, v1.36.
//!
//! DIFFERS: an image's size is the one the cluster last reported, on whatever node; upstream takes the first one reported.

use std::collections::{BTreeMap, hash_map::DefaultHasher};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use framework::{
    CycleState, Fragments, Handle, MAX_NODE_SCORE, NodeInfo, NodeSet, Plugin, PluginError, PodInfo,
    PreScorePlugin, ScorePlugin, Sign, Snapshot, Status,
};

use crate::names;

const MB: i64 = 1024 * 1024;
/// A sum of image sizes below this scores nothing (upstream: minThreshold).
const MIN_THRESHOLD: i64 = 23 * MB;
/// A sum above this, for each container, scores no more (upstream: maxContainerThreshold).
const MAX_CONTAINER_THRESHOLD: i64 = 1000 * MB;

const STATE: &str = "PreScoreImageLocality";

struct ImageLocality;

/// Makes the plugin.
///
/// # Errors
/// Never.
pub fn new(
    _args: Option<&serde_json::Value>,
    _handle: Arc<dyn Handle>,
) -> Result<Arc<dyn Plugin>, PluginError> {
    Ok(Arc::new(ImageLocality))
}

/// What each image of the pod that is somewhere adds on a node that has it.
#[derive(Clone, Default)]
struct PreScoreState {
    images: BTreeMap<String, i64>,
    max_threshold: i64,
}

/// A name without a tag means `latest`.
fn normalized_image_name(name: &str) -> String {
    let tag = name.rfind(':');
    if tag.is_none_or(|tag| name.rfind('/').is_some_and(|slash| tag < slash)) {
        format!("{name}:latest")
    } else {
        name.to_owned()
    }
}

/// Init containers, containers, image volumes; one entry each, as often as it is named.
fn images(pod: &PodInfo) -> impl Iterator<Item = String> + '_ {
    let spec = pod.spec();
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let of_containers = containers.map(|container| container.image.as_deref().unwrap_or_default());
    let volumes = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.image.as_ref());
    of_containers
        .chain(volumes.map(|image| image.reference.as_deref().unwrap_or_default()))
        .map(normalized_image_name)
}

impl PreScoreState {
    fn new(pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let mut state = PreScoreState::default();
        let total = snapshot.num_nodes().max(1) as f64;
        for name in images(pod) {
            if let Some(image) = snapshot.columns().image(&name) {
                let spread = image.nodes.len() as f64 / total;
                let sum = state.images.entry(name).or_default();
                *sum = sum.saturating_add((image.size as f64 * spread) as i64);
            }
        }
        let spec = pod.spec();
        let containers = spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len);
        state.max_threshold = MAX_CONTAINER_THRESHOLD * containers.max(1) as i64;
        state
    }

    /// A node says of its images what it likes.
    fn sum(&self) -> i64 {
        self.images.values().copied().fold(0, i64::saturating_add)
    }

    fn priority(&self, sum: i64) -> i64 {
        let sum = sum.clamp(MIN_THRESHOLD, self.max_threshold);
        MAX_NODE_SCORE * (sum - MIN_THRESHOLD) / (self.max_threshold - MIN_THRESHOLD)
    }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        names::IMAGE_LOCALITY
    }
    fn sign(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Sign> {
        let volumes = pod
            .spec()
            .volumes
            .iter()
            .flatten()
            .any(|volume| volume.image.is_some());
        let fragments = if volumes {
            Fragments::IMAGES | Fragments::VOLUMES
        } else {
            Fragments::IMAGES
        };
        let state = PreScoreState::new(pod, snapshot);
        // What no node has adds nothing, however many nodes there are; what adds less than the threshold neither.
        let counts = state.sum() > MIN_THRESHOLD;
        let inputs = counts.then(|| {
            let mut hasher = DefaultHasher::new();
            state.images.hash(&mut hasher);
            hasher.finish().max(1)
        });
        Some(Sign {
            inputs: inputs.unwrap_or(0),
            ..Sign::node(fragments)
        })
    }
    fn as_pre_score(&self) -> Option<&dyn PreScorePlugin> {
        Some(self)
    }
    fn as_score(&self) -> Option<&dyn ScorePlugin> {
        Some(self)
    }
}

impl PreScorePlugin for ImageLocality {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        _nodes: &NodeSet,
    ) -> Status {
        let own = PreScoreState::new(pod, snapshot);
        if own.sum() <= MIN_THRESHOLD {
            return Status::skip();
        }
        state.write(STATE, own);
        Status::success()
    }
}

impl ScorePlugin for ImageLocality {
    fn score(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        node: &NodeInfo,
    ) -> Result<i64, Status> {
        let own: &PreScoreState = state.read(STATE).ok_or_else(|| {
            Status::error("reading \"PreScoreImageLocality\" from cycleState: not found")
        })?;
        Ok(own.priority(
            own.images
                .iter()
                .filter(|(name, _)| node.images().contains_key(*name))
                .fold(0, |sum, (_, score)| sum.saturating_add(*score)),
        ))
    }

    fn score_all(
        &self,
        state: &CycleState,
        _pod: &Arc<PodInfo>,
        snapshot: &Snapshot,
        nodes: &NodeSet,
        scores: &mut [i64],
    ) -> bool {
        let Some(own) = state.read::<PreScoreState>(STATE) else {
            return false;
        };
        for node in nodes.iter() {
            scores[node as usize] = 0;
        }
        for (name, score) in &own.images {
            let mut have = nodes.clone();
            match snapshot.columns().image(name) {
                Some(image) => have.intersect_with(&image.nodes),
                None => continue,
            }
            for node in have.iter() {
                let sum = &mut scores[node as usize];
                *sum = sum.saturating_add(*score);
            }
        }
        for node in nodes.iter() {
            scores[node as usize] = own.priority(scores[node as usize]);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use framework::testing::{assert_forms_agree, make_node, make_pod, snapshot};
    use k8s_openapi::api::core::v1::Container;

    use super::*;

    #[test]
    fn names() {
        for (name, expect) in [
            ("root", "root:latest"),
            ("root:tag", "root:tag"),
            ("gcr.io:5000/root", "gcr.io:5000/root:latest"),
            ("gcr.io/root:tag", "gcr.io/root:tag"),
            ("root@sha256:abc", "root@sha256:abc"),
        ] {
            assert_eq!(normalized_image_name(name), expect);
        }
    }

    #[test]
    fn what_a_node_says_of_its_images_is_bounded() {
        let images = ["huge", "huger", "huge", "huge", "hugest"];
        let containers = images.map(|image| Container {
            image: Some(image.into()),
            ..Default::default()
        });
        let pod = make_pod("p")
            .with(|pod| pod.spec.get_or_insert_default().containers = containers.to_vec())
            .info();
        let node = make_node("a")
            .image("huge:latest", i64::MAX)
            .image("huger:latest", i64::MAX)
            .image("hugest:latest", i64::MAX);
        let snapshot = snapshot([node.build(), make_node("b").build()], []);
        assert_forms_agree(&ImageLocality, &pod, &snapshot);
        let mut state = CycleState::new();
        let nodes = snapshot.columns().live();
        let status = ImageLocality.pre_score(&mut state, &pod, &snapshot, nodes);
        assert!(status.is_success());
        let score = |name: &str| {
            let node = snapshot.get(name).unwrap();
            ImageLocality.score(&state, &pod, node).unwrap()
        };
        assert_eq!((score("a"), score("b")), (100, 0));
    }

    #[test]
    fn scores() {
        let pod = |images: &[&str]| {
            let containers = images
                .iter()
                .map(|image| Container {
                    image: Some((*image).into()),
                    ..Default::default()
                })
                .collect();
            make_pod("p")
                .with(|pod| pod.spec.get_or_insert_default().containers = containers)
                .info()
        };
        let nodes = [
            make_node("a")
                .image("gcr.io/40:latest", 40 * MB)
                .image("gcr.io/300:latest", 300 * MB),
            make_node("b").image("gcr.io/250:latest", 250 * MB),
            make_node("c")
                .image("gcr.io/10:latest", 10 * MB)
                .image("gcr.io/4000:latest", 4000 * MB),
        ];
        let snapshot = snapshot(nodes.map(|node| node.build()), []);
        let third = |mb: i64, containers: i64| {
            let max = MAX_CONTAINER_THRESHOLD * containers;
            let sum = ((mb * MB) as f64 * (1.0 / 3.0)) as i64;
            100 * (sum.clamp(MIN_THRESHOLD, max) - MIN_THRESHOLD) / (max - MIN_THRESHOLD)
        };
        for (images, expect) in [
            (
                vec!["gcr.io/40", "gcr.io/250"],
                Some([third(40, 2), third(250, 2), 0]),
            ),
            (
                vec!["gcr.io/10", "gcr.io/4000"],
                Some([0, 0, third(4010, 2)]),
            ),
            (vec!["gcr.io/10"], None),
            (vec!["nowhere"], None),
        ] {
            let pod = pod(&images);
            assert_forms_agree(&ImageLocality, &pod, &snapshot);
            let mut state = CycleState::new();
            let status =
                ImageLocality.pre_score(&mut state, &pod, &snapshot, snapshot.columns().live());
            assert_eq!(status.is_success(), expect.is_some(), "{images:?}");
            for (name, expect) in ["a", "b", "c"].iter().zip(expect.into_iter().flatten()) {
                assert_eq!(
                    ImageLocality
                        .score(&state, &pod, snapshot.get(name).unwrap())
                        .unwrap(),
                    expect,
                    "{images:?} on {name}"
                );
            }
        }
    }
}
