//! The manager over a real file system, in a mount namespace of its own. As root only: mounts need it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Secret,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use super::*;
use crate::source::{
    CertificateStateError, PodCertificate, PodCertificateKey, ServiceAccountToken, SourceError,
    TokenRequest,
};
use crate::{empty_dir, mountinfo};

#[derive(Default)]
struct Objects {
    config_maps: Mutex<BTreeMap<String, Value>>,
    secrets: Mutex<BTreeMap<String, Value>>,
    claims: Mutex<BTreeMap<String, Value>>,
    volumes: Mutex<BTreeMap<String, Value>>,
    tokens: AtomicUsize,
    bundles: Mutex<BTreeMap<String, String>>,
    certificates:
        Mutex<BTreeMap<usize, Result<(&'static str, &'static str), CertificateStateError>>>,
}

#[async_trait]
impl ObjectSource for Objects {
    async fn config_map(&self, _: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        Ok(self
            .config_maps
            .lock()
            .unwrap()
            .get(name)
            .map(|d| Arc::new(serde_json::from_value(json!({ "data": d })).unwrap())))
    }
    async fn secret(&self, _: &str, name: &str) -> Result<Option<Arc<Secret>>, SourceError> {
        Ok(self
            .secrets
            .lock()
            .unwrap()
            .get(name)
            .map(|d| Arc::new(serde_json::from_value(json!({ "data": d })).unwrap())))
    }
    async fn service_account_token(
        &self,
        request: &TokenRequest,
    ) -> Result<ServiceAccountToken, SourceError> {
        assert_eq!(
            (request.service_account.as_str(), request.pod_uid.as_str()),
            ("default", "uid")
        );
        let n = self.tokens.fetch_add(1, Ordering::Relaxed);
        let expires_at = Timestamp::now() + jiff::SignedDuration::from_hours(1);
        Ok(ServiceAccountToken {
            token: format!("token-{n}"),
            expires_at,
            expiration_seconds: Some(3600),
        })
    }
    async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError> {
        assert_eq!(namespace, "default");
        let found = self.claims.lock().unwrap().get(name).cloned();
        Ok(found.map(|claim| Arc::new(serde_json::from_value(claim).unwrap())))
    }
    async fn persistent_volume(
        &self,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolume>>, SourceError> {
        let found = self.volumes.lock().unwrap().get(name).cloned();
        Ok(found.map(|volume| Arc::new(serde_json::from_value(volume).unwrap())))
    }
    async fn patch_claim_status(
        &self,
        _: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), SourceError> {
        let mut claims = self.claims.lock().unwrap();
        for (field, value) in patch["status"].as_object().unwrap() {
            claims.get_mut(name).unwrap()["status"][field] = value.clone();
        }
        Ok(())
    }
    async fn until_node(&self, _: &(dyn for<'a> Fn(&'a Node) -> bool + Send + Sync)) {}
    async fn csi_driver(&self, _: &str) -> Result<Option<Arc<CSIDriver>>, SourceError> {
        Ok(None)
    }
    async fn volume_attachment(
        &self,
        _: &str,
    ) -> Result<Option<Arc<VolumeAttachment>>, SourceError> {
        Ok(None)
    }
    fn node(&self) -> Option<Arc<Node>> {
        None
    }

    async fn cluster_trust_bundle(
        &self,
        name: &str,
    ) -> Result<Option<Arc<ClusterTrustBundle>>, SourceError> {
        let bundles = self.bundles.lock().unwrap();
        let object = |text: &String| {
            let object = json!({"metadata": {"name": name}, "spec": {"trustBundle": text}});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        Ok(bundles.get(name).map(object))
    }
    async fn cluster_trust_bundles(
        &self,
        _: &str,
    ) -> Result<Vec<Arc<ClusterTrustBundle>>, SourceError> {
        Ok(vec![])
    }
    async fn pod_certificate(&self, of: &PodCertificateKey) -> Result<PodCertificate, SourceError> {
        assert_eq!((of.pod_uid.as_str(), of.volume.as_str()), ("uid", "p"));
        match self.certificates.lock().unwrap().get(&of.source_index) {
            Some(Ok((key, chain))) => Ok(PodCertificate {
                key: key.as_bytes().into(),
                chain: chain.as_bytes().into(),
            }),
            Some(Err(error)) => Err(error.clone().into()),
            None => Err(CertificateStateError::NotIssued.into()),
        }
    }
    fn node_allocatable(&self) -> Result<BTreeMap<String, Quantity>, SourceError> {
        Ok(BTreeMap::from([(
            "memory".to_owned(),
            Quantity("1Gi".to_owned()),
        )]))
    }
}

struct World {
    root: tempfile::TempDir,
    objects: Arc<Objects>,
    manager: VolumeManager,
}

impl World {
    fn restart(&mut self) {
        self.manager = VolumeManager::new(self.root.path().to_owned(), self.objects.clone());
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join("pods/uid").join(path)
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.behind(path)).unwrap().mode() & 0o7777
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.behind(path)).unwrap()
    }

    /// Where a link leads. In a directory with the sticky bit the kernel (`fs.protected_symlinks`) follows a link for its owner alone,
    /// and that of a token is the pod's user.
    fn behind(&self, path: &str) -> PathBuf {
        let path = self.path(path);
        match fs::read_link(&path) {
            Ok(target) => path.parent().unwrap().join(target),
            Err(_) => path,
        }
    }
}

/// Runs in a thread with its own mount namespace; the blocking threads inherit it.
fn in_mount_namespace(test: impl AsyncFnOnce(World) + Send + 'static) {
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "needs root, to mount in a namespace of its own");
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        let root = tempfile::tempdir().unwrap();
        let objects = Arc::new(Objects::default());
        let manager = VolumeManager::new(root.path().to_owned(), objects.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test(World {
            root,
            objects,
            manager,
        }));
    });
    thread.join().unwrap();
}

fn pod(volumes: Value, spec: Value) -> Pod {
    let mounts: Vec<_> =
        volumes.as_array().unwrap().iter().map(|v| json!({"name": v["name"], "mountPath": format!("/{}", v["name"].as_str().unwrap())})).collect();
    let mut pod = json!({
        "metadata": {"name": "pod", "namespace": "ns", "uid": "uid", "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "volumeMounts": mounts}], "volumes": volumes},
    });
    pod["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    serde_json::from_value(pod).unwrap()
}

const EMPTY: &str = "volumes/kubernetes.io~empty-dir";

#[test]
fn empty_dirs_keep_their_content_over_restarts_and_go_without_a_trace() {
    in_mount_namespace(async |mut world| {
        let pod = pod(
            json!([{"name": "disk", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]),
            json!({}),
        );
        let volumes = world.manager.mount_pod(&pod).await.unwrap();
        let disk = volumes.get("disk").unwrap();
        assert_eq!(
            (disk.host_path().unwrap(), disk.read_only),
            (world.path(&format!("{EMPTY}/disk")).as_path(), false)
        );
        assert_eq!(
            (
                world.mode(&format!("{EMPTY}/disk")),
                world.mode(&format!("{EMPTY}/mem"))
            ),
            (0o777, 0o1777)
        );
        let mounts = mountinfo::list().unwrap();
        let options = &mountinfo::at(&mounts, &world.path(&format!("{EMPTY}/mem")))
            .unwrap()
            .super_options;
        assert!(options.contains("size=1024k"), "{options}");

        fs::write(world.path(&format!("{EMPTY}/disk/f")), "kept").unwrap();
        fs::write(world.path(&format!("{EMPTY}/mem/f")), "kept").unwrap();
        // A container that changes the mode of its volume keeps that, too.
        fs::set_permissions(
            world.path(&format!("{EMPTY}/disk")),
            fs::Permissions::from_mode(0o700),
        )
        .unwrap();
        world.restart();
        assert_eq!(world.manager.mount_pod(&pod).await.unwrap(), volumes);
        assert_eq!(
            (
                world.read(&format!("{EMPTY}/disk/f")),
                world.read(&format!("{EMPTY}/mem/f"))
            ),
            ("kept".into(), "kept".into())
        );
        assert_eq!(world.mode(&format!("{EMPTY}/disk")), 0o700);
        assert!(world.manager.usage("uid").await.unwrap()["disk"].inodes >= 2);

        world.restart();
        assert!(world.manager.has_volumes("uid").await.unwrap());
        world.manager.unmount_pod("uid").await.unwrap();
        assert!(!world.manager.has_volumes("uid").await.unwrap());
        assert!(!world.path("volumes").exists() && !world.path("plugins").exists());
        world.manager.unmount_pod("uid").await.unwrap();
        assert_eq!(world.manager.orphans(|_| false).await.unwrap(), ["uid"]);
        assert!(!world.path("").exists());
    });
}

#[test]
fn a_pod_that_came_meanwhile_is_no_orphan() {
    in_mount_namespace(async |mut world| {
        let mut pod = pod(json!([{"name": "disk", "emptyDir": {}}]), json!({}));
        for uid in ["early", "late"] {
            pod.metadata.uid = Some(uid.to_owned());
            world.manager.mount_pod(&pod).await.unwrap();
        }
        world.restart();
        let (manager, asked) = (&world.manager, std::cell::Cell::new(0));
        let removed = manager
            .orphans(|_| asked.replace(asked.get() + 1) > 0)
            .await
            .unwrap();
        assert_eq!((removed.len(), asked.get()), (1, 2));
    });
}

#[test]
fn a_tmpfs_lost_to_a_reboot_is_mounted_again() {
    in_mount_namespace(async |mut world| {
        let pod = pod(
            json!([{"name": "mem", "emptyDir": {"medium": "Memory"}}]),
            json!({"securityContext": {"fsGroup": 77}}),
        );
        world.manager.mount_pod(&pod).await.unwrap();
        let dir = world.path(&format!("{EMPTY}/mem"));
        nix::mount::umount(&dir).unwrap();
        world.restart();
        world.manager.mount_pod(&pod).await.unwrap();
        assert_eq!(
            (
                world.mode(&format!("{EMPTY}/mem")),
                fs::metadata(&dir).unwrap().gid()
            ),
            (0o3777, 77)
        );
    });
}

#[test]
fn config_maps_and_secrets_follow_their_objects() {
    in_mount_namespace(async |world| {
        let pod = pod(
            json!([
                {"name": "cm", "configMap": {"name": "x", "defaultMode": 0o400}},
                {"name": "s", "secret": {"secretName": "y", "items": [{"key": "k", "path": "deep/file", "mode": 0o440}]}},
                {"name": "opt", "configMap": {"name": "none", "optional": true}},
                {"name": "fine", "emptyDir": {}},
            ]),
            json!({}),
        );
        let error = world.manager.mount_pod(&pod).await.unwrap_err();
        let texts: Vec<_> = error.failures().iter().map(|f| f.to_string()).collect();
        assert_eq!(
            texts,
            [
                "MountVolume.SetUp failed for volume \"cm\" : configmap \"x\" not found",
                "MountVolume.SetUp failed for volume \"s\" : secret \"y\" not found",
            ]
        );
        assert!(
            world.path(&format!("{EMPTY}/fine")).is_dir(),
            "others are not held up"
        );

        world
            .objects
            .config_maps
            .lock()
            .unwrap()
            .insert("x".into(), json!({"a": "1"}));
        world
            .objects
            .secrets
            .lock()
            .unwrap()
            .insert("y".into(), json!({"k": "c2VjcmV0", "other": ""}));
        let volumes = world.manager.mount_pod(&pod).await.unwrap();
        assert!(volumes.get("cm").unwrap().read_only);
        let (cm, secret) = (
            "volumes/kubernetes.io~configmap/cm",
            "volumes/kubernetes.io~secret/s",
        );
        assert_eq!(
            (
                world.read(&format!("{cm}/a")),
                world.mode(&format!("{cm}/a"))
            ),
            ("1".into(), 0o400)
        );
        assert_eq!(
            (
                world.read(&format!("{secret}/deep/file")),
                world.mode(&format!("{secret}/deep/file"))
            ),
            ("secret".into(), 0o440)
        );
        assert!(!world.path(&format!("{secret}/other")).exists());
        assert!(
            empty_dir::is_mounted(&world.path(secret), nix::sys::statfs::TMPFS_MAGIC),
            "a secret is never on disk"
        );
        assert_eq!(
            fs::read_dir(world.path("volumes/kubernetes.io~configmap/opt"))
                .unwrap()
                .count(),
            2,
            "..data and its version"
        );

        world
            .objects
            .config_maps
            .lock()
            .unwrap()
            .insert("x".into(), json!({"b": "2"}));
        world
            .objects
            .config_maps
            .lock()
            .unwrap()
            .insert("none".into(), json!({"now": "there"}));
        world.manager.refresh_pod(&pod).await.unwrap();
        assert!(!world.path(&format!("{cm}/a")).exists());
        assert_eq!(
            (
                world.read(&format!("{cm}/b")),
                world.read("volumes/kubernetes.io~configmap/opt/now")
            ),
            ("2".into(), "there".into())
        );

        world.objects.config_maps.lock().unwrap().remove("x");
        assert!(world.manager.refresh_pod(&pod).await.is_err());
        assert_eq!(world.read(&format!("{cm}/b")), "2", "the old content stays");
        world.manager.unmount_pod("uid").await.unwrap();
    });
}

#[test]
fn projected_sources_share_a_directory_and_tokens_are_private() {
    in_mount_namespace(async |world| {
        world
            .objects
            .config_maps
            .lock()
            .unwrap()
            .insert("ca".into(), json!({"ca.crt": "CA"}));
        let sources = json!([
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            {"configMap": {"name": "ca"}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}, {"path": "labels", "mode": 0o600, "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ]);
        let volumes =
            json!([{"name": "p", "projected": {"sources": sources, "defaultMode": 0o644}}]);
        let dir = "volumes/kubernetes.io~projected/p";
        let plain = pod(volumes.clone(), json!({}));
        world.manager.mount_pod(&plain).await.unwrap();
        assert_eq!(
            (
                world.read(&format!("{dir}/token")),
                world.mode(&format!("{dir}/token"))
            ),
            ("token-0".into(), 0o644)
        );
        assert_eq!(
            (
                world.read(&format!("{dir}/labels")),
                world.mode(&format!("{dir}/labels"))
            ),
            ("app=\"a\"".into(), 0o600)
        );
        assert_eq!(world.read(&format!("{dir}/namespace")), "ns");
        world.manager.refresh_pod(&plain).await.unwrap();
        assert_eq!(
            world.read(&format!("{dir}/token")),
            "token-0",
            "young tokens are kept"
        );
        assert!(world.manager.next_refresh("uid").unwrap() > Timestamp::now());
        world.manager.unmount_pod("uid").await.unwrap();
        assert!(world.manager.next_refresh("uid").is_none());

        for (context, mode, owner) in [
            (json!({"runAsUser": 1000}), 0o600, (1000, 0)),
            (json!({"fsGroup": 2000}), 0o640, (0, 2000)),
            (
                json!({"runAsUser": 1000, "fsGroup": 2000}),
                0o640,
                (1000, 2000),
            ),
        ] {
            let pod = pod(volumes.clone(), json!({ "securityContext": context }));
            world.manager.mount_pod(&pod).await.unwrap();
            let info = fs::metadata(world.behind(&format!("{dir}/token"))).unwrap();
            assert_eq!(
                (info.mode() & 0o7777, (info.uid(), info.gid())),
                (mode, owner),
                "{context}"
            );
            world.manager.unmount_pod("uid").await.unwrap();
        }
    });
}

#[test]
fn trust_anchors_and_certificates_come_renewed_and_private() {
    in_mount_namespace(async |world| {
        let sources = json!([
            {"clusterTrustBundle": {"path": "ca.pem", "name": "ca"}},
            {"podCertificate": {"signerName": "s.example/x", "keyType": "ECDSAP256", "credentialBundlePath": "both.pem"}},
            {"podCertificate": {"signerName": "s.example/y", "keyType": "ECDSAP256", "keyPath": "key.pem", "certificateChainPath": "chain.pem"}},
        ]);
        let volumes =
            json!([{"name": "p", "projected": {"sources": sources, "defaultMode": 0o644}}]);
        let dir = "volumes/kubernetes.io~projected/p";
        let owned = pod(volumes, json!({"securityContext": {"runAsUser": 1000}}));
        let failure = async || {
            let error = world.manager.mount_pod(&owned).await.unwrap_err();
            error.failures()[0].to_string()
        };
        let error = failure().await;
        assert!(
            error.contains("clustertrustbundle.certificates.k8s.io \"ca\" not found"),
            "{error}"
        );
        assert!(
            error.contains("credential bundle is not issued yet"),
            "{error}"
        );
        let pem = "-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n";
        world
            .objects
            .bundles
            .lock()
            .unwrap()
            .insert("ca".into(), format!("# noise\n{pem}"));
        let denied = CertificateStateError::Denied {
            reason: "R".into(),
            message: "m".into(),
        };
        world
            .objects
            .certificates
            .lock()
            .unwrap()
            .extend([(1, Ok(("KEY1", "CHAIN1"))), (2, Err(denied))]);
        let error = failure().await;
        assert!(
            error.contains(
                "PodCertificateRequest was permanently denied: reason=\"R\" message=\"m\""
            ),
            "{error}"
        );
        world
            .objects
            .certificates
            .lock()
            .unwrap()
            .insert(2, Ok(("KEY2", "CHAIN2")));
        world.manager.mount_pod(&owned).await.unwrap();
        let file = |name: &str| world.read(&format!("{dir}/{name}"));
        assert_eq!(file("ca.pem"), pem);
        assert_eq!(file("both.pem"), "KEY1CHAIN1");
        assert_eq!(
            (file("key.pem"), file("chain.pem")),
            ("KEY2".into(), "CHAIN2".into())
        );
        for name in ["ca.pem", "both.pem", "key.pem", "chain.pem"] {
            let info = fs::metadata(world.behind(&format!("{dir}/{name}"))).unwrap();
            assert_eq!((info.mode() & 0o7777, info.uid()), (0o600, 1000), "{name}");
        }
        world
            .objects
            .certificates
            .lock()
            .unwrap()
            .insert(2, Ok(("KEY3", "CHAIN3")));
        world.manager.refresh_pod(&owned).await.unwrap();
        assert_eq!(
            (file("key.pem"), file("chain.pem")),
            ("KEY3".into(), "CHAIN3".into())
        );
        world.manager.unmount_pod("uid").await.unwrap();
    });
}

#[test]
fn unused_volumes_are_left_alone_and_images_only_named() {
    in_mount_namespace(async |world| {
        let mut pod = pod(
            json!([{"name": "i", "image": {"reference": "reg/img:1", "pullPolicy": "Always"}}, {"name": "h", "hostPath": {"path": "/etc", "type": "Directory"}}, {"name": "unused", "nfs": {"server": "s", "path": "/"}}]),
            json!({}),
        );
        pod.spec.as_mut().unwrap().containers[0]
            .volume_mounts
            .as_mut()
            .unwrap()
            .truncate(2);
        for _ in 0..2 {
            let volumes = world.manager.mount_pod(&pod).await.unwrap();
            let expect = VolumeLocation::Image {
                reference: "reg/img:1".into(),
                pull_policy: Some("Always".into()),
            };
            assert_eq!(volumes.get("i").unwrap().location, expect);
            assert_eq!(
                volumes.get("h").unwrap().host_path(),
                Some(Path::new("/etc"))
            );
            assert!(volumes.get("unused").is_none());
        }
        assert!(!world.path("volumes").exists());
    });
}

#[test]
fn sub_paths_are_pinned_and_taken_away() {
    in_mount_namespace(async |mut world| {
        world
            .objects
            .config_maps
            .lock()
            .unwrap()
            .insert("x".into(), json!({"a": "1"}));
        let pod = pod(
            json!([{"name": "d", "emptyDir": {}}, {"name": "cm", "configMap": {"name": "x"}}]),
            json!({}),
        );
        let volumes = world.manager.mount_pod(&pod).await.unwrap();
        let dir = volumes.get("d").unwrap();
        let path = world
            .manager
            .sub_path("uid", dir, "c", 0, "sub/dir")
            .await
            .unwrap();
        assert_eq!(path, world.path("volume-subpaths/d/c/0"));
        fs::write(path.join("f"), "x").unwrap();
        assert_eq!(world.read(&format!("{EMPTY}/d/sub/dir/f")), "x");
        let file = world
            .manager
            .sub_path("uid", volumes.get("cm").unwrap(), "c", 1, "a")
            .await
            .unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "1");

        // The container restarts: the directory stays pinned, the file follows the new content.
        // The machine's own come and go.
        let root = world.root.path().to_owned();
        let mounted = || mountinfo::at_or_below(&mountinfo::list().unwrap(), &root).len();
        let before = mounted();
        world
            .objects
            .config_maps
            .lock()
            .unwrap()
            .insert("x".into(), json!({"a": "2"}));
        world.restart();
        let volumes = world.manager.mount_pod(&pod).await.unwrap();
        world
            .manager
            .sub_path("uid", volumes.get("d").unwrap(), "c", 0, "sub/dir")
            .await
            .unwrap();
        world
            .manager
            .sub_path("uid", volumes.get("cm").unwrap(), "c", 1, "a")
            .await
            .unwrap();
        assert_eq!(mounted(), before);
        assert_eq!(fs::read_to_string(&file).unwrap(), "2");

        std::os::unix::fs::symlink("/etc", world.path(&format!("{EMPTY}/d/evil"))).unwrap();
        let error = world
            .manager
            .sub_path("uid", volumes.get("d").unwrap(), "c", 2, "evil/passwd")
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to create subPath directory for volumeMount \"d\" of container \"c\""
        );

        world.restart();
        world.manager.remove_pod("uid").await.unwrap();
        assert!(!world.path("").exists());
        assert!(mountinfo::at_or_below(&mountinfo::list().unwrap(), world.root.path()).is_empty());
    });
}

#[test]
fn what_is_bound_into_a_volume_survives_its_removal() {
    in_mount_namespace(async |world| {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("precious"), "").unwrap();
        let pod = pod(json!([{"name": "d", "emptyDir": {}}]), json!({}));
        world.manager.mount_pod(&pod).await.unwrap();
        let inner = world.path(&format!("{EMPTY}/d/in"));
        fs::create_dir(&inner).unwrap();
        mount(
            Some(outside.path()),
            &inner,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
        world.manager.unmount_pod("uid").await.unwrap();
        assert!(outside.path().join("precious").exists());
        assert!(!world.path("volumes").exists());
    });
}

const CLAIMS: &[(&str, &str)] = &[
    ("files", "pv-files"),
    ("kept", "pv-kept"),
    ("disk", "pv-disk"),
];

/// Three bound claims: of a path of the node, of a local volume, and of a kind that is not built.
fn claims(world: &World) -> PathBuf {
    let data = world.root.path().join("data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("sub/f"), "kept").unwrap();
    let sources = [
        json!({"hostPath": {"path": data}}),
        json!({"local": {"path": data}}),
        json!({"iscsi": {"targetPortal": "x", "iqn": "y", "lun": 0}}),
    ];
    for ((claim, volume), mut spec) in CLAIMS.iter().zip(sources) {
        spec["claimRef"] = json!({"uid": claim});
        let behind = json!({"metadata": {"name": volume}, "spec": spec});
        world
            .objects
            .volumes
            .lock()
            .unwrap()
            .insert((*volume).to_owned(), behind);
        let bound = json!({
            "metadata": {"name": claim, "namespace": "default", "uid": claim},
            "spec": {"volumeName": volume}, "status": {"phase": "Bound"},
        });
        world
            .objects
            .claims
            .lock()
            .unwrap()
            .insert((*claim).to_owned(), bound);
    }
    data
}

fn claiming(claims: &[&str], spec: Value) -> Pod {
    let volumes: Vec<_> = claims
        .iter()
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
        .collect();
    let mut pod = pod(json!(volumes), spec);
    pod.metadata.namespace = Some("default".to_owned());
    pod
}

#[test]
fn claims_are_what_stands_behind_them_and_outlive_the_pod() {
    in_mount_namespace(async |mut world| {
        let data = claims(&world);
        let pod = claiming(
            &["files", "kept"],
            json!({"securityContext": {"fsGroup": 4321}}),
        );
        let volumes = world.manager.mount_pod(&pod).await.unwrap();
        assert_eq!(volumes.get("files").unwrap().host_path().unwrap(), data);
        // Upstream's place: by the name of the PersistentVolume.
        let kept = "volumes/kubernetes.io~local-volume/pv-kept";
        assert_eq!(
            volumes.get("kept").unwrap().host_path().unwrap(),
            world.path(kept)
        );
        assert_eq!(world.read(&format!("{kept}/sub/f")), "kept");
        assert_eq!(fs::metadata(data.join("sub/f")).unwrap().gid(), 4321);
        assert_eq!(
            world.manager.claim_directory("uid", "kept").unwrap(),
            world.path(kept)
        );
        assert_eq!(world.manager.claim_directory("uid", "files").unwrap(), data);
        // Not the pod's own use.
        assert!(world.manager.usage("uid").await.unwrap().is_empty());

        let counts = world.manager.counts();
        assert_eq!(counts["kubernetes.io/local-volume"], (1, 1));
        assert_eq!(counts["kubernetes.io/host-path"], (1, 1));

        // Found again after a restart, even while the claim goes; and taken away without its content.
        world.restart();
        let going = json!("2026-01-01T00:00:00Z");
        world
            .objects
            .claims
            .lock()
            .unwrap()
            .get_mut("kept")
            .unwrap()["metadata"]["deletionTimestamp"] = going;
        let refused = world.manager.mount_pod(&pod).await.unwrap_err().to_string();
        assert!(
            refused.contains("error processing PVC default/kept: PVC is being deleted"),
            "{refused}"
        );
        assert_eq!(
            world.read(&format!("{kept}/sub/f")),
            "kept",
            "a claim that cannot be read is not stale"
        );
        let mut running = pod.clone();
        running.status = Some(serde_json::from_value(json!({"phase": "Running"})).unwrap());
        assert_eq!(world.manager.mount_pod(&running).await.unwrap(), volumes);
        world.manager.unmount_pod("uid").await.unwrap();
        assert!(!world.path("volumes").exists());
        assert!(world.manager.counts().is_empty());
        assert_eq!(fs::read_to_string(data.join("sub/f")).unwrap(), "kept");
    });
}

#[test]
fn a_claim_that_is_read_only_is_so() {
    in_mount_namespace(async |world| {
        claims(&world);
        let mut pod = claiming(&["kept"], json!({}));
        let volume = &mut pod.spec.as_mut().unwrap().volumes.as_mut().unwrap()[0];
        volume.persistent_volume_claim.as_mut().unwrap().read_only = Some(true);
        let volumes = world.manager.mount_pod(&pod).await.unwrap();
        let kept = volumes.get("kept").unwrap();
        assert!(kept.read_only);
        let refused = fs::write(kept.host_path().unwrap().join("g"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
    });
}

#[test]
fn claims_that_cannot_be_say_why() {
    in_mount_namespace(async |world| {
        claims(&world);
        world.objects.volumes.lock().unwrap().remove("pv-files");
        for (claim, words) in [
            (
                "none",
                "error processing PVC default/none: failed to fetch PVC from API server",
            ),
            (
                "files",
                "failed to fetch PV pv-files from API server: persistentvolumes \"pv-files\" not found",
            ),
            (
                "disk",
                "volumes of kind iscsi are not supported by this kubelet",
            ),
        ] {
            let error = world
                .manager
                .mount_pod(&claiming(&[claim], json!({})))
                .await
                .unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        // The claim that was not there is taken once it is bound.
        let bound = world.objects.claims.lock().unwrap()["kept"].clone();
        world
            .objects
            .claims
            .lock()
            .unwrap()
            .insert("none".to_owned(), bound);
        assert!(
            world
                .manager
                .mount_pod(&claiming(&["none"], json!({})))
                .await
                .is_ok()
        );
    });
}

/// A device of some megabytes that goes with the test.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(file: &Path) -> Self {
        fs::File::create(file).unwrap().set_len(16 << 20).unwrap();
        let out = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        Self(PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .arg("-d")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_local_device_is_a_file_system_or_itself() {
    in_mount_namespace(async |mut world| {
        let device = LoopDevice::new(&world.root.path().join("disk"));
        claims(&world);
        let set = |volume: &str, key: &str, value: Value| {
            let mut volumes = world.objects.volumes.lock().unwrap();
            volumes.get_mut(volume).unwrap()["spec"][key] = value;
        };
        for (volume, mode) in [("pv-files", "Block"), ("pv-kept", "Filesystem")] {
            set(volume, "hostPath", Value::Null);
            set(volume, "local", json!({"path": device.0}));
            set(volume, "volumeMode", json!(mode));
        }
        let mut pod = claiming(&["kept", "files"], json!({}));
        // Of the two, one is given as it is.
        let container = &mut pod.spec.as_mut().unwrap().containers[0];
        container
            .volume_mounts
            .as_mut()
            .unwrap()
            .retain(|m| m.name == "kept");
        let devices = json!([{"name": "files", "devicePath": "/dev/x"}]);
        container.volume_devices = serde_json::from_value(devices).unwrap();

        let volumes = world.manager.mount_pod(&pod).await.unwrap();
        let itself = VolumeLocation::Device(device.0.clone());
        assert_eq!(volumes.get("files").unwrap().location, itself);
        let dir = volumes.get("kept").unwrap().host_path().unwrap().to_owned();
        assert!(dir.join("lost+found").is_dir(), "a new ext4");
        fs::write(dir.join("f"), "kept").unwrap();
        assert_eq!(world.manager.mount_pod(&pod).await.unwrap(), volumes);

        world.restart();
        assert_eq!(world.manager.mount_pod(&pod).await.unwrap(), volumes);
        world.manager.unmount_pod("uid").await.unwrap();
        assert!(!world.path("volumes").exists());

        // What is on it is not made anew.
        world.manager.mount_pod(&pod).await.unwrap();
        assert_eq!(fs::read_to_string(dir.join("f")).unwrap(), "kept");
        world.manager.unmount_pod("uid").await.unwrap();
    });
}

/// Whether this process has CAP_SYS_RESOURCE, which ext4 asks of who makes it larger.
fn may_resize() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 24 != 0
}

#[test]
fn a_local_device_that_grew_has_a_larger_file_system() {
    in_mount_namespace(async |world| {
        let file = world.root.path().join("disk");
        let device = LoopDevice::new(&file);
        claims(&world);
        let change = |change: &dyn Fn(&mut Value, &mut Value)| {
            let mut volumes = world.objects.volumes.lock().unwrap();
            let mut claims = world.objects.claims.lock().unwrap();
            change(
                volumes.get_mut("pv-kept").unwrap(),
                claims.get_mut("kept").unwrap(),
            );
        };
        change(&|volume, claim| {
            volume["spec"]["local"] = json!({"path": device.0});
            volume["spec"]["capacity"] = json!({"storage": "16Mi"});
            volume["spec"]["claimRef"] =
                json!({"uid": "kept", "name": "kept", "namespace": "default"});
            claim["status"]["capacity"] = json!({"storage": "16Mi"});
        });
        let pod = claiming(&["kept"], json!({}));
        let volumes = world.manager.mount_pod(&pod).await.unwrap();
        let dir = volumes.get("kept").unwrap().host_path().unwrap().to_owned();
        let size = || nix::sys::statvfs::statvfs(&dir).unwrap().blocks();
        let before = size();
        assert!(world.manager.expand_pod(&pod).await.is_empty());

        let grown = fs::File::options().write(true).open(&file).unwrap();
        grown.set_len(64 << 20).unwrap();
        let told = std::process::Command::new("losetup")
            .arg("-c")
            .arg(&device.0)
            .status();
        assert!(told.unwrap().success());
        change(&|volume, claim| {
            volume["spec"]["capacity"] = json!({"storage": "64Mi"});
            claim["status"]["allocatedResources"] = json!({"storage": "64Mi"});
            claim["status"]["allocatedResourceStatuses"] = json!({"storage": "NodeResizePending"});
        });
        world.manager.forget_expansions();
        let done = world.manager.expand_pod(&pod).await;
        assert_eq!(done.len(), 1);
        let status = || world.objects.claims.lock().unwrap()["kept"]["status"].clone();
        if may_resize() {
            assert_eq!(done[0].outcome, Ok(()));
            assert!(size() > 3 * before, "{} of {before}", size());
            assert_eq!(status()["capacity"]["storage"], "64Mi");
            let left = &status()["allocatedResourceStatuses"]["storage"];
            assert_eq!(*left, Value::Null);
        } else {
            // The kernel says no, and everybody is told.
            let why = done[0].outcome.clone().unwrap_err();
            assert!(
                why.contains("Permission denied to resize filesystem"),
                "{why}"
            );
            assert_eq!(size(), before);
            assert_eq!(status()["capacity"]["storage"], "16Mi");
            assert_eq!(status()["conditions"][0]["type"], "NodeResizeError");
        }
        world.manager.unmount_pod("uid").await.unwrap();
    });
}

#[test]
fn a_server_that_looks_like_an_option_is_refused() {
    in_mount_namespace(async |world| {
        let volume = json!([{"name": "v", "nfs": {"server": "-o", "path": "/"}}]);
        let error = world
            .manager
            .mount_pod(&pod(volume, json!({})))
            .await
            .unwrap_err();
        let words = "nfs.server: \"-o\" must not begin with a dash";
        assert!(error.to_string().contains(words), "{error}");
    });
}
