use std::collections::BTreeMap;

use csi_spec::csi::v1 as csi;
use csi_spec::csi::v1::volume_capability::{AccessType, BlockVolume, MountVolume};
use csi_spec::csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use tonic::Code;

use super::*;
use crate::state::State;

fn config() -> Config {
    Config {
        driver_name: "hostpath.csi.k8s.io".to_owned(),
        node_id: "node-1".to_owned(),
        ephemeral: false,
        max_volumes_per_node: 0,
        capacity: BTreeMap::new(),
        enable_attach: false,
        check_volume_lifecycle: true,
        max_volume_size: 1 << 40,
        enable_topology: true,
        enable_volume_expansion: true,
        disable_controller_expansion: false,
        disable_node_expansion: false,
        enable_controller_modify_volume: true,
        accepted_mutable_parameters: Vec::new(),
        enable_list_snapshots: true,
        max_volume_size_node: 1 << 40,
        attach_limit: 0,
    }
}

fn open(folder: &Path) -> Driver {
    Driver::open(config(), folder).unwrap()
}

fn capability(access: Access) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: None,
        access_type: Some(match access {
            Access::Mount => AccessType::Mount(MountVolume::default()),
            Access::Block => AccessType::Block(BlockVolume {}),
        }),
    }
}

fn create(driver: &Driver, name: &str, access: Access, source: Option<Type>) -> Answer<String> {
    let request = csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange {
            required_bytes: 1 << 20,
            limit_bytes: 0,
        }),
        volume_capabilities: vec![capability(access)],
        volume_content_source: source.map(|source| csi::VolumeContentSource {
            r#type: Some(source),
        }),
        ..Default::default()
    };
    let made = driver.create_volume(&request)?;
    Ok(made.volume.unwrap().volume_id)
}

fn delete(driver: &Driver, id: &str) -> Answer<()> {
    let request = csi::DeleteVolumeRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    };
    driver.delete_volume(&request).map(drop)
}

fn snapshot(driver: &Driver, name: &str, volume: &str) -> Answer<String> {
    let request = csi::CreateSnapshotRequest {
        name: name.to_owned(),
        source_volume_id: volume.to_owned(),
        ..Default::default()
    };
    let taken = driver.create_snapshot(&request)?;
    Ok(taken.snapshot.unwrap().snapshot_id)
}

fn code<T: std::fmt::Debug>(answer: Answer<T>) -> Code {
    answer.unwrap_err().0.code()
}

#[test]
fn a_clone_and_a_snapshot_hold_what_the_volume_held() {
    let dir = tempfile::tempdir().unwrap();
    let driver = open(dir.path());
    let first = create(&driver, "a", Access::Mount, None).unwrap();
    assert_eq!(create(&driver, "a", Access::Mount, None).unwrap(), first);
    let file = |id: &str| driver.disk.volume(id).join("file");
    fs::write(file(&first), "before").unwrap();
    let taken = snapshot(&driver, "s", &first).unwrap();
    assert_eq!(snapshot(&driver, "s", &first).unwrap(), taken);
    fs::write(file(&first), "after").unwrap();
    let of_volume = Type::Volume(VolumeSource {
        volume_id: first.clone(),
    });
    let of_snapshot = Type::Snapshot(SnapshotSource {
        snapshot_id: taken.clone(),
    });
    let clone = create(&driver, "clone", Access::Mount, Some(of_volume)).unwrap();
    let restored = create(&driver, "restored", Access::Mount, Some(of_snapshot)).unwrap();
    assert_eq!(fs::read_to_string(file(&clone)).unwrap(), "after");
    assert_eq!(fs::read_to_string(file(&restored)).unwrap(), "before");
    assert_eq!(code(snapshot(&driver, "s", &clone)), Code::AlreadyExists);
    assert_eq!(code(snapshot(&driver, "t", "none")), Code::NotFound);

    // All of it is there for the next process.
    drop(driver);
    let driver = open(dir.path());
    for id in [&first, &clone, &restored] {
        delete(&driver, id).unwrap();
        delete(&driver, id).unwrap();
    }
    let request = csi::DeleteSnapshotRequest {
        snapshot_id: taken,
        ..Default::default()
    };
    driver.delete_snapshot(&request).unwrap();
    for part in ["volumes", "snapshots"] {
        assert_eq!(fs::read_dir(dir.path().join(part)).unwrap().count(), 0);
    }
}

#[test]
fn what_was_begun_and_not_finished_is_gone_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let driver = open(dir.path());
    let kept = create(&driver, "kept", Access::Mount, None).unwrap();
    let half = create(&driver, "half", Access::Mount, None).unwrap();
    let going = create(&driver, "going", Access::Block, None).unwrap();
    fs::write(driver.disk.volume(&half).join("file"), "half").unwrap();
    let taken = snapshot(&driver, "s", &kept).unwrap();
    let group = csi::CreateVolumeGroupSnapshotRequest {
        name: "g".to_owned(),
        source_volume_ids: vec![kept.clone()],
        ..Default::default()
    };
    let group = driver.create_volume_group_snapshot(&group).unwrap();
    let group = group.group_snapshot.unwrap();
    // As a kill in the midst leaves it.
    driver
        .forget(|state: &mut State| {
            state.volumes.get_mut(&half).unwrap().phase = Phase::Creating;
            state.volumes.get_mut(&going).unwrap().phase = Phase::Deleting;
            state.snapshots.get_mut(&taken).unwrap().phase = Phase::Creating;
            state
                .groups
                .get_mut(&group.group_snapshot_id)
                .unwrap()
                .phase = Phase::Deleting;
        })
        .unwrap();
    drop(driver);
    let driver = open(dir.path());
    driver.state.read(|state| {
        assert!(state.volumes.keys().eq([&kept]));
        assert!(state.snapshots.is_empty() && state.groups.is_empty());
    });
    assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 1);
    assert_eq!(
        fs::read_dir(dir.path().join("snapshots")).unwrap().count(),
        0
    );
    // Their names are free again.
    create(&driver, "half", Access::Block, None).unwrap();
}

#[test]
fn a_volume_that_cannot_be_filled_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let driver = open(dir.path());
    let first = create(&driver, "a", Access::Mount, None).unwrap();
    fs::remove_dir(driver.disk.volume(&first)).unwrap();
    let source = || {
        Some(Type::Volume(VolumeSource {
            volume_id: first.clone(),
        }))
    };
    assert_eq!(
        code(create(&driver, "b", Access::Mount, source())),
        Code::Internal
    );
    assert_eq!(driver.state.read(|state| state.volumes.len()), 1);
    let health = csi::ControllerGetVolumeHealthRequest {
        volume_id: first.clone(),
        ..Default::default()
    };
    let health = driver.controller_get_volume_health(&health).unwrap();
    assert_eq!(
        health.volume_health.unwrap().health_statuses[0].reason,
        "DataMissing"
    );
}

#[test]
fn somebody_who_works_on_it_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let driver = open(dir.path());
    let first = create(&driver, "a", Access::Mount, None).unwrap();
    let copying = driver.shared(&first).unwrap();
    assert_eq!(code(delete(&driver, &first)), Code::Aborted);
    drop(copying);
    delete(&driver, &first).unwrap();
}

#[test]
fn snapshots_of_a_group_come_and_go_together() {
    let dir = tempfile::tempdir().unwrap();
    let driver = open(dir.path());
    let volumes = ["a", "b"].map(|name| create(&driver, name, Access::Mount, None).unwrap());
    let request = |volumes: &[String]| csi::CreateVolumeGroupSnapshotRequest {
        name: "g".to_owned(),
        source_volume_ids: volumes.to_vec(),
        ..Default::default()
    };
    let made = driver
        .create_volume_group_snapshot(&request(&volumes))
        .unwrap();
    let group = made.group_snapshot.unwrap();
    assert!(group.ready_to_use && group.snapshots.len() == 2);
    let again = driver
        .create_volume_group_snapshot(&request(&volumes))
        .unwrap();
    assert_eq!(again.group_snapshot.as_ref(), Some(&group));
    let other = driver.create_volume_group_snapshot(&request(&volumes[..1]));
    assert_eq!(code(other), Code::AlreadyExists);
    let alone = csi::DeleteSnapshotRequest {
        snapshot_id: group.snapshots[0].snapshot_id.clone(),
        ..Default::default()
    };
    assert_eq!(code(driver.delete_snapshot(&alone)), Code::InvalidArgument);
    let mut delete = csi::DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: group.group_snapshot_id,
        snapshot_ids: vec!["other".to_owned()],
        ..Default::default()
    };
    let refused = driver.delete_volume_group_snapshot(&delete);
    assert_eq!(code(refused), Code::InvalidArgument);
    delete.snapshot_ids.clear();
    driver.delete_volume_group_snapshot(&delete).unwrap();
    driver.delete_volume_group_snapshot(&delete).unwrap();
    assert_eq!(
        fs::read_dir(dir.path().join("snapshots")).unwrap().count(),
        0
    );
}

fn stage(driver: &Driver, id: &str, access: Access) -> Answer<()> {
    let request = csi::NodeStageVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: "/staging".to_owned(),
        volume_capability: Some(capability(access)),
        ..Default::default()
    };
    driver.node_stage_volume(&request).map(drop)
}

fn unstage(driver: &Driver, id: &str) -> Answer<()> {
    let request = csi::NodeUnstageVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: "/staging".to_owned(),
    };
    driver.node_unstage_volume(&request).map(drop)
}

fn publish_request(id: &str, target: &Path, access: Access) -> csi::NodePublishVolumeRequest {
    csi::NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: "/staging".to_owned(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability(access)),
        ..Default::default()
    }
}

fn unpublish(driver: &Driver, id: &str, target: &Path) -> Answer<()> {
    let request = csi::NodeUnpublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: target.display().to_string(),
    };
    driver.node_unpublish_volume(&request).map(drop)
}

/// Mounts are made in a namespace of the thread's own.
fn with_mounts(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: needs root");
        return;
    }
    let run = move || {
        use nix::mount::MsFlags;
        let none: Option<&str> = None;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS)
            .unwrap();
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, flags, none).unwrap();
        test();
    };
    std::thread::spawn(run).join().unwrap();
}

#[test]
fn a_volume_is_published_where_it_is_staged_and_taken_back() {
    with_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let driver = open(&dir.path().join("driver"));
        let id = create(&driver, "a", Access::Mount, None).unwrap();
        fs::write(driver.disk.volume(&id).join("file"), "text").unwrap();
        let target = dir.path().join("pods/target");
        let request = publish_request(&id, &target, Access::Mount);
        assert_eq!(
            code(driver.node_publish_volume(&request)),
            Code::FailedPrecondition
        );
        stage(&driver, &id, Access::Mount).unwrap();
        assert_eq!(
            code(stage(&driver, &id, Access::Block)),
            Code::InvalidArgument
        );
        for _ in 0..2 {
            driver.node_publish_volume(&request).unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "text");
        }
        let mut read_only = request.clone();
        read_only.readonly = true;
        assert_eq!(
            code(driver.node_publish_volume(&read_only)),
            Code::AlreadyExists
        );
        read_only.target_path.push_str("-2");
        driver.node_publish_volume(&read_only).unwrap();
        let second = dir.path().join("pods/target-2");
        let written = fs::write(second.join("file"), "x").unwrap_err();
        assert_eq!(written.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(code(unstage(&driver, &id)), Code::FailedPrecondition);
        assert_eq!(code(delete(&driver, &id)), Code::FailedPrecondition);
        for target in [&target, &target, &second] {
            unpublish(&driver, &id, target).unwrap();
            assert!(!target.exists());
        }
        unstage(&driver, &id).unwrap();
        delete(&driver, &id).unwrap();
        unpublish(&driver, &id, &target).unwrap();
    });
}

#[test]
fn a_publish_that_was_cut_short_is_finished_by_the_next() {
    with_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let driver = open(&dir.path().join("driver"));
        let id = create(&driver, "a", Access::Mount, None).unwrap();
        stage(&driver, &id, Access::Mount).unwrap();
        let target = dir.path().join("target");
        let request = publish_request(&id, &target, Access::Mount);
        driver.node_publish_volume(&request).unwrap();
        // The node started anew: it is entered, and nothing is mounted.
        mount::unmount(&target).unwrap();
        let health = csi::NodeGetVolumeHealthRequest {
            volume_id: id.clone(),
            ..Default::default()
        };
        let told = driver.node_get_volume_health(&health).unwrap();
        assert_eq!(
            told.volume_health.unwrap().health_statuses[0].reason,
            "NotMounted"
        );
        driver.node_publish_volume(&request).unwrap();
        assert!(mount::is_mount_point(&target).unwrap());
        let told = driver.node_get_volume_health(&health).unwrap();
        assert!(told.volume_health.unwrap().health_statuses.is_empty());
        // Mounted by somebody who is not entered: it is mounted anew.
        driver
            .forget(|state| state.volumes.get_mut(&id).unwrap().published.clear())
            .unwrap();
        let mut read_only = request;
        read_only.readonly = true;
        driver.node_publish_volume(&read_only).unwrap();
        assert!(fs::write(target.join("file"), "x").is_err());
        unpublish(&driver, &id, &target).unwrap();
        assert!(!target.exists());
    });
}

#[test]
fn an_inline_volume_lives_as_long_as_its_publish() {
    with_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let driver = open(&dir.path().join("driver"));
        let target = dir.path().join("target");
        let mut request = publish_request("csi-1", &target, Access::Mount);
        request.volume_context = [(plan::EPHEMERAL.to_owned(), "true".to_owned())].into();
        driver.node_publish_volume(&request).unwrap();
        driver.node_publish_volume(&request).unwrap();
        fs::write(target.join("file"), "x").unwrap();
        let all = csi::ListVolumesRequest::default();
        assert!(driver.list_volumes(&all).unwrap().entries.is_empty());
        unpublish(&driver, "csi-1", &target).unwrap();
        unpublish(&driver, "csi-1", &target).unwrap();
        assert!(!target.exists() && !driver.disk.volume("csi-1").exists());
        assert!(driver.state.read(|state| state.volumes.is_empty()));
    });
}

#[test]
fn a_block_volume_is_a_device_that_grows() {
    if !Path::new("/dev/loop-control").exists() {
        eprintln!("not run: needs loop devices");
        return;
    }
    with_mounts(|| {
        let dir = tempfile::tempdir().unwrap();
        let driver = open(&dir.path().join("driver"));
        let id = create(&driver, "a", Access::Block, None).unwrap();
        stage(&driver, &id, Access::Block).unwrap();
        let target = dir.path().join("target");
        let request = publish_request(&id, &target, Access::Block);
        driver.node_publish_volume(&request).unwrap();
        let size = || {
            use std::io::Seek;
            fs::File::open(&target)
                .unwrap()
                .seek(io::SeekFrom::End(0))
                .unwrap()
        };
        assert_eq!(size(), 1 << 20);
        let range = csi::CapacityRange {
            required_bytes: 2 << 20,
            limit_bytes: 0,
        };
        let grow = csi::ControllerExpandVolumeRequest {
            volume_id: id.clone(),
            capacity_range: Some(range),
            ..Default::default()
        };
        let grown = driver.controller_expand_volume(&grow).unwrap();
        assert_eq!(grown.capacity_bytes, 2 << 20);
        assert_eq!(size(), 2 << 20);
        unpublish(&driver, &id, &target).unwrap();
        unstage(&driver, &id).unwrap();
        let file = driver.disk.volume(&id);
        assert!(loop_device::devices_of(&file).unwrap().is_empty());
        delete(&driver, &id).unwrap();
        assert!(!file.exists());
    });
}
