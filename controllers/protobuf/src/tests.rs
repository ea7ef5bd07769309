//! By hand here; against upstream's own codec, kind by kind, in `cargo e2e test protobuf`.

use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use serde_json::{Value, json};

use super::*;
use crate::wire::{put_bytes, put_tag, put_varint};

fn pod_message() -> &'static Message {
    message("", "v1", "Pod").unwrap()
}

fn there_and_back<T: serde::Serialize + serde::de::DeserializeOwned>(
    (group, version, kind): (&str, &str, &str),
    value: Value,
) -> Value {
    let message = message(group, version, kind).unwrap();
    let object: T = serde_json::from_value(value).unwrap();
    let bytes = to_vec(message, (version, kind), &object).unwrap();
    let unknown = envelope::open(&bytes).unwrap();
    assert_eq!((unknown.api_version, unknown.kind), (version, kind));
    let again: T = from_slice(message, unknown.raw, true).unwrap();
    serde_json::to_value(&again).unwrap()
}

#[test]
fn objects_come_back_as_they_were() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "p", "namespace": "n", "labels": {"a": "b", "c": ""}, "creationTimestamp": "2026-01-02T03:04:05Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}],
            "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}, "time": "2026-01-02T03:04:05Z"}],
        },
        "spec": {
            "volumes": [{"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}], "defaultMode": 420}},
                        {"name": "e", "emptyDir": {"sizeLimit": "1Gi"}}],
            "containers": [{
                "name": "c", "image": "i", "resources": {"limits": {"cpu": "100m", "memory": "1Gi"}},
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 3},
                "readinessProbe": {"tcpSocket": {"port": 80}},
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}}],
            }],
            "ephemeralContainers": [{"name": "d", "image": "x", "targetContainerName": "c"}],
            "priority": -5, "enableServiceLinks": false,
        },
        "status": {"phase": "Running", "startTime": "2026-01-02T03:04:05Z",
                   "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "0001-01-01T00:00:00Z"}]},
    });
    assert_eq!(there_and_back::<Pod>(("", "v1", "Pod"), pod.clone()), pod);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAEC", "e": ""}});
    assert_eq!(
        there_and_back::<Secret>(("", "v1", "Secret"), secret.clone()),
        secret
    );
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
        "spec": {"holderIdentity": "h", "renewTime": "2026-01-02T03:04:05.678901Z", "leaseDurationSeconds": 40},
    });
    type Lease = k8s_openapi::api::coordination::v1::Lease;
    let found = there_and_back::<Lease>(("coordination.k8s.io", "v1", "Lease"), lease.clone());
    assert_eq!(found, lease);
}

#[test]
fn what_json_leaves_out_is_left_out() {
    // spec (2) { nodeName (10) "", hostNetwork (11) false, containers (2) {name (1) "c"}, replicas unknown (99) 7 }
    let mut container = Vec::new();
    put_bytes(&mut container, 1, b"c");
    put_bytes(&mut container, 2, b"");
    let mut spec = Vec::new();
    put_bytes(&mut spec, 2, &container);
    put_bytes(&mut spec, 10, b"");
    put_tag(&mut spec, 11, 0);
    put_varint(&mut spec, 0);
    put_tag(&mut spec, 99, 0);
    put_varint(&mut spec, 7);
    // metadata (1) { creationTimestamp (8) of nothing, managedFields (17) }
    let mut metadata = Vec::new();
    put_bytes(&mut metadata, 8, b"");
    put_bytes(&mut metadata, 17, b"");
    let mut raw = Vec::new();
    put_bytes(&mut raw, 1, &metadata);
    put_bytes(&mut raw, 2, &spec);
    let pod: Pod = from_slice(pod_message(), &raw, false).unwrap();
    let spec = pod.spec.unwrap();
    assert_eq!((spec.node_name, spec.host_network), (None, None));
    assert_eq!(
        (spec.containers[0].name.as_str(), &spec.containers[0].image),
        ("c", &None)
    );
    assert_eq!(pod.metadata.creation_timestamp, None);
    assert_eq!(pod.metadata.managed_fields, None);
    let pod: Pod = from_slice(pod_message(), &raw, true).unwrap();
    assert_eq!(pod.metadata.managed_fields.map(|m| m.len()), Some(1));
}

#[test]
fn broken_bytes_are_errors() {
    let of = |raw: &[u8]| from_slice::<Pod>(pod_message(), raw, true).unwrap_err();
    assert_eq!(of(&[0x0a, 5, 1]), Error::End);
    assert_eq!(of(&[0]), Error::Tag(0));
    assert_eq!(of(&[0xff; 11]), Error::Varint);
    assert_eq!(
        of(&[0x0b]).to_string(),
        "core.v1.Pod.metadata: unexpected wire type 3"
    );
    // metadata { name of bytes that are no text }
    assert_eq!(of(&[0x0a, 3, 0x0a, 1, 0xff]), Error::Utf8("name"));
    assert_eq!(envelope::open(b"{}"), Err(Error::Magic));

    // spec.containers, spec.volumes, spec.containers
    let mut spec = Vec::new();
    for number in [2, 1, 2] {
        put_bytes(&mut spec, number, b"");
    }
    let mut raw = Vec::new();
    put_bytes(&mut raw, 2, &spec);
    assert_eq!(
        of(&raw).to_string(),
        "core.v1.PodSpec.containers: items are scattered"
    );
    // Nested without end.
    let mut deep = vec![];
    for _ in 0..10_000 {
        let mut outer = Vec::new();
        put_bytes(&mut outer, 2, &deep);
        deep = outer;
    }
    let _ = from_slice::<Pod>(pod_message(), &deep, true);
}

#[test]
fn what_has_no_field_is_told() {
    let message = pod_message();
    let wrong = json!({"spec": {"nodName": "x"}});
    let told = to_vec(message, ("v1", "Pod"), &wrong).unwrap_err();
    assert_eq!(told.to_string(), "core.v1.PodSpec has no field \"nodName\"");
    let wrong = json!({"spec": {"nodeName": 7}});
    let told = to_vec(message, ("v1", "Pod"), &wrong).unwrap_err();
    assert_eq!(told.to_string(), "nodeName: a number is not what it holds");
}

#[test]
fn frames_of_a_watch() {
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
    let message = message("", "v1", "Node").unwrap();
    let object = to_vec(message, ("v1", "Node"), &node).unwrap();
    let mut raw = Vec::new();
    put_bytes(&mut raw, 1, &object);
    let mut event = Vec::new();
    put_bytes(&mut event, 1, b"ADDED");
    put_bytes(&mut event, 2, &raw);
    let mut frame = u32::try_from(event.len()).unwrap().to_be_bytes().to_vec();
    frame.extend_from_slice(&event);
    assert_eq!(envelope::frame_length(&frame[..3]), None);
    assert_eq!(envelope::frame_length(&frame), Some(frame.len()));
    let read = envelope::event(&frame).unwrap();
    assert_eq!(read.kind, "ADDED");
    let unknown = envelope::open(read.object).unwrap();
    let again: Node = from_slice(message, unknown.raw, true).unwrap();
    assert_eq!(again.metadata.name.as_deref(), Some("n"));
}

#[test]
fn a_view_steps_over_what_it_has_not() {
    static VIEW: std::sync::LazyLock<View> = std::sync::LazyLock::new(|| {
        View::without(&[
            ("core.v1.Container", &["env", "image"]),
            ("meta.v1.ObjectMeta", &["annotations"]),
        ])
    });
    let value = json!({
        "metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {"c": "d"}, "managedFields": [{"manager": "m"}]},
        "spec": {"containers": [
            {"name": "c", "image": "i", "env": [{"name": "A"}, {"name": "B"}], "ports": [{"containerPort": 80}]},
            {"name": "d", "image": "i"}, {"name": "e"},
        ]},
    });
    let pod: Pod = serde_json::from_value(value).unwrap();
    let bytes = to_message(pod_message(), &pod).unwrap();
    let read: Pod = from_slice_as(pod_message(), &bytes, &VIEW).unwrap();
    assert_eq!(read.metadata.annotations, None);
    assert_eq!(read.metadata.managed_fields, None);
    assert_eq!(read.metadata.labels, pod.metadata.labels);
    let containers = read.spec.unwrap().containers;
    assert_eq!(containers.capacity(), 3, "no more room than it takes");
    let names: Vec<_> = containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["c", "d", "e"]);
    assert_eq!((&containers[0].image, &containers[0].env), (&None, &None));
    let ports = containers[0].ports.as_ref().unwrap();
    assert_eq!(ports[0].container_port, 80);
}

#[test]
#[should_panic(expected = "core.v1.Container has no field colour")]
fn a_view_of_nothing_is_refused() {
    View::without(&[("core.v1.Container", &["colour"])]);
}

/// `json.Marshal` of Go 1.26.
#[test]
fn json_is_escaped_as_go_does() {
    let text = "a && b > c < d \u{2028}\u{2029} \u{2027} \u{e9}";
    let json = serde_json::to_vec(text).unwrap();
    let escaped = crate::escape(&json);
    let expected = "\"a \\u0026\\u0026 b \\u003e c \\u003c d \\u2028\\u2029 \u{2027} \u{e9}\"";
    assert_eq!(String::from_utf8(escaped.clone()).unwrap(), expected);
    assert_eq!(serde_json::from_slice::<String>(&escaped).unwrap(), text);
}
