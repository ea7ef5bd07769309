use super::*;
use crate::state::{Moment, Snapshot};
use csi::volume_capability::{AccessType, BlockVolume, MountVolume};
use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use tonic::Code;

fn config() -> Config {
    Config {
        driver_name: "hostpath.csi.k8s.io".to_owned(),
        node_id: "node-1".to_owned(),
        ephemeral: false,
        max_volumes_per_node: 0,
        capacity: BTreeMap::new(),
        enable_attach: false,
        check_volume_lifecycle: false,
        max_volume_size: 1 << 40,
        enable_topology: true,
        enable_volume_expansion: true,
        disable_controller_expansion: false,
        disable_node_expansion: false,
        enable_controller_modify_volume: false,
        accepted_mutable_parameters: Vec::new(),
        enable_list_snapshots: true,
        max_volume_size_node: 1 << 40,
        attach_limit: 0,
    }
}

fn mount() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: None,
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn block() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: None,
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

fn request(name: &str, required_bytes: i64, limit_bytes: i64) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange {
            required_bytes,
            limit_bytes,
        }),
        volume_capabilities: vec![mount()],
        ..Default::default()
    }
}

/// The new volume, or why there is none.
fn new(config: &Config, state: &State, request: &csi::CreateVolumeRequest) -> Result<Volume, Code> {
    match create_volume(config, state, request, "id") {
        Ok(Creation::New(volume)) => Ok(volume),
        Ok(Creation::Existing(_)) => panic!("it exists already"),
        Err(status) => Err(status.code()),
    }
}

fn with_volume(name: &str, size: i64) -> State {
    let mut volume = new(&config(), &State::default(), &request(name, size, 0)).unwrap();
    volume.phase = Phase::Ready;
    let mut state = State::default();
    state.volumes.insert("id".to_owned(), volume);
    state
}

#[test]
fn the_size_is_what_is_asked_for_or_allowed() {
    let state = State::default();
    for ((required, limit), expected) in [
        ((5, 0), Ok(5)),
        ((5, 9), Ok(5)),
        ((0, 9), Ok(9)),
        ((0, 0), Ok(DEFAULT_BYTES)),
        ((0, 2 << 30), Ok(DEFAULT_BYTES)),
        ((9, 5), Err(Code::InvalidArgument)),
        ((-1, 0), Err(Code::InvalidArgument)),
        ((1 << 41, 0), Err(Code::OutOfRange)),
    ] {
        let found = new(&config(), &state, &request("a", required, limit));
        assert_eq!(
            found.map(|volume| volume.size_bytes),
            expected,
            "{required} {limit}"
        );
    }
}

#[test]
fn capabilities_are_of_one_kind() {
    for (capabilities, expected) in [
        (vec![mount(), mount()], Ok(Access::Mount)),
        (vec![block()], Ok(Access::Block)),
        (vec![mount(), block()], Err(Code::InvalidArgument)),
        (
            vec![csi::VolumeCapability::default()],
            Err(Code::InvalidArgument),
        ),
        (vec![], Err(Code::InvalidArgument)),
    ] {
        assert_eq!(
            access(&capabilities).map_err(|status| status.code()),
            expected
        );
    }
}

#[test]
fn the_same_name_is_the_same_volume_or_refused() {
    let state = with_volume("a", 10);
    let created = |request: &csi::CreateVolumeRequest| {
        create_volume(&config(), &state, request, "new").map_err(|status| status.code())
    };
    let existing = Ok(Creation::Existing(state.volumes["id"].clone()));
    assert_eq!(created(&request("a", 10, 0)), existing);
    assert_eq!(created(&request("a", 8, 12)), existing);
    assert_eq!(created(&request("a", 11, 0)), Err(Code::AlreadyExists));
    assert_eq!(created(&request("a", 0, 9)), Err(Code::AlreadyExists));
    let mut other = request("a", 10, 0);
    other.volume_capabilities = vec![block()];
    assert_eq!(created(&other), Err(Code::AlreadyExists));
    let mut other = request("a", 10, 0);
    other.parameters.insert("x".to_owned(), "y".to_owned());
    assert_eq!(created(&other), Err(Code::AlreadyExists));
    let mut under_way = state.clone();
    under_way.volumes.get_mut("id").unwrap().phase = Phase::Creating;
    let again = create_volume(&config(), &under_way, &request("a", 10, 0), "new");
    let Creation::New(again) = again.unwrap() else {
        panic!("what was not ended is begun anew");
    };
    assert_eq!(again.id, "id");
    under_way.volumes.get_mut("id").unwrap().phase = Phase::Deleting;
    let again = create_volume(&config(), &under_way, &request("a", 10, 0), "new");
    assert_eq!(again.unwrap_err().code(), Code::Aborted);
}

#[test]
fn a_source_is_there_of_the_same_kind_and_not_larger() {
    let mut state = with_volume("a", 10);
    let snapshot = Snapshot {
        id: "s".to_owned(),
        name: "s".to_owned(),
        volume_id: "id".to_owned(),
        created: Moment {
            seconds: 0,
            nanos: 0,
        },
        size_bytes: 10,
        access: Access::Mount,
        phase: Phase::Ready,
        group: None,
    };
    state.snapshots.insert("s".to_owned(), snapshot);
    let from_volume = |id: &str| {
        Some(Type::Volume(VolumeSource {
            volume_id: id.to_owned(),
        }))
    };
    let from_snapshot = |id: &str| {
        Some(Type::Snapshot(SnapshotSource {
            snapshot_id: id.to_owned(),
        }))
    };
    for (source, capability, size, expected) in [
        (from_volume("id"), mount(), 10, Ok(10)),
        (from_volume("id"), mount(), 0, Ok(10)),
        (from_snapshot("s"), mount(), 12, Ok(12)),
        (from_volume("id"), mount(), 9, Err(Code::InvalidArgument)),
        (from_volume("id"), block(), 10, Err(Code::InvalidArgument)),
        (from_volume("none"), mount(), 10, Err(Code::NotFound)),
        (from_snapshot("none"), mount(), 10, Err(Code::NotFound)),
        (from_snapshot(""), mount(), 10, Err(Code::InvalidArgument)),
        (None, mount(), 10, Err(Code::InvalidArgument)),
    ] {
        let mut request = request("b", size, 0);
        request.volume_capabilities = vec![capability];
        request.volume_content_source = Some(csi::VolumeContentSource {
            r#type: source.clone(),
        });
        let found = new(&config(), &state, &request).map(|volume| volume.size_bytes);
        assert_eq!(found, expected, "{source:?} {size}");
    }
}

#[test]
fn a_kind_gives_no_more_than_it_has() {
    let mut counted = config();
    counted.capacity = [("fast".to_owned(), 100), ("slow".to_owned(), 1000)].into();
    let mut state = with_volume("a", 90);
    state.volumes.get_mut("id").unwrap().kind = Some("fast".to_owned());
    let of = |kind: &str, size| {
        let mut request = request("b", size, 0);
        request.parameters = [(KIND.to_owned(), kind.to_owned())].into();
        request
    };
    let kind = |found: Result<Volume, Code>| found.map(|volume| volume.kind.unwrap());
    assert_eq!(
        kind(new(&counted, &state, &of("fast", 10))),
        Ok("fast".to_owned())
    );
    assert_eq!(
        kind(new(&counted, &state, &of("fast", 11))),
        Err(Code::ResourceExhausted)
    );
    assert_eq!(
        kind(new(&counted, &state, &of("none", 1))),
        Err(Code::ResourceExhausted)
    );
    assert_eq!(
        kind(new(&counted, &state, &request("b", 11, 0))),
        Ok("slow".to_owned())
    );
    assert_eq!(
        kind(new(&counted, &state, &request("b", 1001, 0))),
        Err(Code::ResourceExhausted)
    );
    assert_eq!(
        kind(new(&config(), &state, &of("fast", 1))),
        Err(Code::InvalidArgument)
    );

    let left = |kind: &str, node: &str| {
        let request = csi::GetCapacityRequest {
            parameters: [(KIND.to_owned(), kind.to_owned())].into(),
            accessible_topology: Some(csi::Topology {
                segments: [(TOPOLOGY_KEY.to_owned(), node.to_owned())].into(),
            }),
            ..Default::default()
        };
        capacity(&counted, &state, &request).available_capacity
    };
    assert_eq!([left("fast", "node-1"), left("slow", "node-1")], [10, 1000]);
    assert_eq!([left("none", "node-1"), left("fast", "node-2")], [0, 0]);
}

#[test]
fn a_volume_is_made_here_or_not_at_all() {
    let at = |nodes: &[&str]| {
        let mut request = request("a", 1, 0);
        let topology = |node: &&str| csi::Topology {
            segments: [(TOPOLOGY_KEY.to_owned(), (*node).to_owned())].into(),
        };
        request.accessibility_requirements = Some(csi::TopologyRequirement {
            requisite: nodes.iter().map(topology).collect(),
            preferred: Vec::new(),
        });
        new(&config(), &State::default(), &request).map(drop)
    };
    assert_eq!(at(&["node-2", "node-1"]), Ok(()));
    assert_eq!(at(&["node-2"]), Err(Code::ResourceExhausted));
    assert_eq!(at(&[]), Ok(()));
}

#[test]
fn parameters_change_where_they_may() {
    let mut open = config();
    open.enable_controller_modify_volume = true;
    let mut some = open.clone();
    some.accepted_mutable_parameters = vec!["iops".to_owned()];
    let (iops, other) = (
        ("iops".to_owned(), "1".to_owned()),
        ("other".to_owned(), "1".to_owned()),
    );
    let may = |config: &Config, (name, value): &(String, String)| {
        mutable_parameters(config, [(name, value)]).is_ok()
    };
    assert!(!may(&config(), &iops) && mutable_parameters(&config(), []).is_ok());
    assert!(may(&open, &iops) && may(&open, &other));
    assert!(may(&some, &iops) && !may(&some, &other));
}

#[test]
fn pages_follow_each_other_whatever_goes_between_them() {
    let mut all: BTreeMap<String, u8> = (1..=5u8).map(|i| (format!("v{i}"), i)).collect();
    let told = |all: &BTreeMap<String, u8>, token: &str, most| {
        page(all.iter().map(|(id, value)| (id, *value)), token, most)
    };
    let (first, token) = told(&all, "", 2).unwrap();
    assert_eq!(first, [1, 2]);
    all.remove("v2");
    all.remove("v3");
    let (second, token) = told(&all, &token, 2).unwrap();
    assert_eq!((second, token.as_str()), (vec![4, 5], ""));
    assert_eq!(told(&all, "", 0).unwrap().0, [1, 4, 5]);
    assert_eq!(told(&all, "strange", 0).unwrap_err().code(), Code::Aborted);
    assert_eq!(
        told(&all, "", -1).unwrap_err().code(),
        Code::InvalidArgument
    );
}

#[test]
fn an_inline_volume_is_a_name_and_no_path() {
    for (id, is_fine) in [
        ("csi-1f", true),
        ("", false),
        ("..", false),
        ("a/b", false),
        (&"x".repeat(129), false),
    ] {
        let request = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            ..Default::default()
        };
        let made = create_ephemeral(&config(), &State::default(), &request);
        assert_eq!(made.is_ok(), is_fine, "{id:?}");
    }
}

#[test]
fn bytes_are_written_as_kubernetes_does() {
    for (text, expected) in [
        ("100", Some(100)),
        ("1Gi", Some(1 << 30)),
        ("1.5Ki", Some(1536)),
        ("2T", Some(2_000_000_000_000)),
        ("", None),
        ("Gi", None),
        ("1x", None),
        ("99Ei", None),
    ] {
        assert_eq!(quantity(text).ok(), expected, "{text:?}");
    }
}
