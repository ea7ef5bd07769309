//! Pods' volumes with a driver in this process: over a real socket, on a real file system, without mounts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use csi::proto::node_service_capability::rpc::Type;
use csi::proto::volume_capability::AccessType;
use csi::testing::FakeDriver;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tonic::Status;

use super::request::attachment_name;
use crate::source::{
    ObjectSource, PodCertificate, PodCertificateKey, ServiceAccountToken, SourceError, TokenRequest,
};
use crate::{CsiHost, VolumeManager};

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// The API, as far as volumes of drivers ask: objects by kind and name.
#[derive(Default)]
struct Api {
    objects: Mutex<BTreeMap<(&'static str, String), Value>>,
    node: tokio::sync::watch::Sender<Arc<Node>>,
}

impl Api {
    fn put(&self, kind: &'static str, name: &str, value: Value) {
        let key = (kind, name.to_owned());
        self.objects.lock().unwrap().insert(key, value);
    }
    fn get<T: DeserializeOwned>(&self, kind: &'static str, name: &str) -> Option<Arc<T>> {
        let objects = self.objects.lock().unwrap();
        let value = objects.get(&(kind, name.to_owned()))?;
        Some(Arc::new(of(value.clone())))
    }
    fn attach(&self, names: &[&str]) {
        let list: Vec<_> = names
            .iter()
            .map(|name| json!({"name": name, "devicePath": ""}))
            .collect();
        let node = of(json!({"status": {"volumesAttached": list}}));
        self.node.send_replace(Arc::new(node));
    }
}

#[async_trait]
impl ObjectSource for Api {
    async fn config_map(&self, _: &str, _: &str) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        Ok(None)
    }
    async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, SourceError> {
        Ok(self.get("secret", &format!("{namespace}/{name}")))
    }
    async fn claim(
        &self,
        _: &str,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, SourceError> {
        Ok(self.get("claim", name))
    }
    async fn persistent_volume(
        &self,
        name: &str,
    ) -> Result<Option<Arc<PersistentVolume>>, SourceError> {
        Ok(self.get("volume", name))
    }
    async fn patch_claim_status(
        &self,
        _: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), SourceError> {
        let mut objects = self.objects.lock().unwrap();
        let claim = objects.get_mut(&("claim", name.to_owned())).unwrap();
        for (key, value) in patch["status"].as_object().unwrap() {
            claim["status"][key] = value.clone();
        }
        if claim["status"]["allocatedResourceStatuses"]["storage"].is_null() {
            claim["status"]["allocatedResourceStatuses"] = json!({});
        }
        Ok(())
    }
    fn node(&self) -> Option<Arc<Node>> {
        Some(self.node.borrow().clone())
    }
    async fn until_node(&self, condition: &(dyn for<'a> Fn(&'a Node) -> bool + Send + Sync)) {
        let mut node = self.node.subscribe();
        let _ = node.wait_for(|node| condition(node)).await;
    }
    async fn csi_driver(&self, name: &str) -> Result<Option<Arc<CSIDriver>>, SourceError> {
        Ok(self.get("driver", name))
    }
    async fn volume_attachment(
        &self,
        name: &str,
    ) -> Result<Option<Arc<VolumeAttachment>>, SourceError> {
        Ok(self.get("attachment", name))
    }
    async fn service_account_token(
        &self,
        request: &TokenRequest,
    ) -> Result<ServiceAccountToken, SourceError> {
        Ok(ServiceAccountToken {
            token: format!("token for {:?}", request.audiences),
            expires_at: "2099-01-01T00:00:00Z".parse().unwrap(),
            expiration_seconds: Some(3600),
        })
    }
    async fn cluster_trust_bundle(
        &self,
        _: &str,
    ) -> Result<Option<Arc<ClusterTrustBundle>>, SourceError> {
        Ok(None)
    }
    async fn cluster_trust_bundles(
        &self,
        _: &str,
    ) -> Result<Vec<Arc<ClusterTrustBundle>>, SourceError> {
        Ok(vec![])
    }
    async fn pod_certificate(&self, _: &PodCertificateKey) -> Result<PodCertificate, SourceError> {
        Err(SourceError::NodeUnknown)
    }
    fn node_allocatable(&self) -> Result<BTreeMap<String, Quantity>, SourceError> {
        Ok(BTreeMap::new())
    }
}

struct World {
    dir: tempfile::TempDir,
    api: Arc<Api>,
    driver: FakeDriver,
    drivers: Arc<csi::Drivers>,
    volumes: VolumeManager,
    reporter: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.reporter.abort();
    }
}

const HANDLE: &str = "kubernetes.io/csi/d^h";

impl World {
    /// With a driver `d` that registered, a volume `pv` of its handle `h`, and a claim `c` that is bound to it.
    async fn new(driver: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let api = Arc::new(Api::default());
        api.put(
            "driver",
            "d",
            json!({"metadata": {"name": "d"}, "spec": driver}),
        );
        api.put(
            "claim",
            "c",
            json!({"metadata": {"name": "c", "namespace": "ns", "uid": "1"},
                   "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}}),
        );
        api.put("volume", "pv", volume(json!({})));
        let fake = FakeDriver::start(&dir.path().join("csi.sock")).await;
        fake.state.on_publish(|target| {
            fs::create_dir_all(target).map_err(|e| Status::internal(e.to_string()))
        });
        fake.state.on_unpublish(|target| {
            let _ = fs::remove_dir_all(target);
            Ok(())
        });
        let drivers = Arc::new(csi::Drivers::new(Arc::new(|_| {})));
        fake.register(&drivers, "d");
        let (volumes, reporter) = start(dir.path(), &api, &drivers);
        Self {
            dir,
            api,
            driver: fake,
            drivers,
            volumes,
            reporter,
        }
    }

    /// As a kubelet that was killed and started anew.
    fn restart(&mut self) {
        self.reporter.abort();
        let (volumes, reporter) = start(self.dir.path(), &self.api, &self.drivers);
        (self.volumes, self.reporter) = (volumes, reporter);
    }

    fn root(&self) -> std::path::PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join("root")
    }

    fn target(&self, uid: &str, name: &str) -> String {
        let volumes = self.root().join("pods").join(uid).join("volumes");
        let path = volumes.join("kubernetes.io~csi").join(name).join("mount");
        path.display().to_string()
    }

    fn staging(&self) -> String {
        // sha256 of `h`.
        let hash = "aaa9402664f1a41f40ebbc52c9993eb66aeb366602958fdfaa283b71e64db123";
        let path = self.root().join("plugins/kubernetes.io/csi/d").join(hash);
        path.join("globalmount").display().to_string()
    }

    fn calls(&self) -> Vec<String> {
        self.driver.state.take_calls()
    }

    async fn failure(&self, pod: &Pod) -> String {
        let error = self.volumes.mount_pod(pod).await.unwrap_err();
        error.failures()[0].to_string()
    }

    /// Nothing is left of any volume.
    async fn assert_clean(&self) {
        assert_eq!(self.volumes.volumes_in_use().await, Vec::<String>::new());
        assert!(!Path::new(&self.staging()).parent().unwrap().exists());
    }
}

/// With what reports volumes in use, as the kubelet does.
fn start(
    dir: &Path,
    api: &Arc<Api>,
    drivers: &Arc<csi::Drivers>,
) -> (VolumeManager, tokio::task::JoinHandle<()>) {
    let root = dir.join("root");
    fs::create_dir_all(&root).unwrap();
    let host = CsiHost {
        drivers: drivers.clone(),
        node_name: "n".to_owned(),
    };
    let volumes = VolumeManager::observed(root, api.clone(), host, Arc::new(|_, _, _| {}));
    let reported = volumes.clone();
    let reporter = tokio::spawn(async move {
        loop {
            let names = reported.volumes_in_use().await;
            reported.reported_in_use(&names);
            reported.in_use_changed().await;
        }
    });
    (volumes, reporter)
}

fn volume(more: Value) -> Value {
    let mut volume = json!({"metadata": {"name": "pv"}, "spec": {
        "claimRef": {"uid": "1"}, "accessModes": ["ReadWriteOnce"], "mountOptions": ["noatime"],
        "csi": {"driver": "d", "volumeHandle": "h", "fsType": "ext4", "volumeAttributes": {"k": "v"}},
    }});
    if let Value::Object(more) = more {
        for (key, value) in more {
            volume["spec"]["csi"][key] = value;
        }
    }
    volume
}

fn pod_with(uid: &str, volume: Value) -> Pod {
    let mut volume = volume;
    volume["name"] = json!("v");
    of(
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": uid}, "spec": {
            "serviceAccountName": "sa",
            "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [volume],
        }}),
    )
}

fn claiming(uid: &str) -> Pod {
    pod_with(uid, json!({"persistentVolumeClaim": {"claimName": "c"}}))
}

fn unattached() -> Value {
    json!({"attachRequired": false, "fsGroupPolicy": "File", "volumeLifecycleModes": ["Persistent"]})
}

#[tokio::test]
async fn a_volume_is_staged_once_and_published_to_each_pod() {
    let world = World::new(unattached()).await;
    let (first, second) = (world.target("a", "pv"), world.target("b", "pv"));
    let staging = world.staging();
    let mounted = world.volumes.mount_pod(&claiming("a")).await.unwrap();
    let path = mounted.get("v").unwrap().host_path().unwrap();
    assert_eq!(path, Path::new(&first));
    world.volumes.mount_pod(&claiming("b")).await.unwrap();
    // A round that finds all as it should be asks for nothing.
    world.volumes.mount_pod(&claiming("a")).await.unwrap();
    assert_eq!(
        world.calls(),
        [
            format!("NodeStageVolume h {staging}"),
            format!("NodePublishVolume h {first}"),
            format!("NodePublishVolume h {second}"),
        ]
    );
    let staged = world.driver.state.staged.lock().unwrap()[0].clone();
    assert_eq!(staged.volume_context["k"], "v");
    let capability = staged.volume_capability.unwrap();
    let Some(AccessType::Mount(mount)) = capability.access_type else {
        panic!("{capability:?}");
    };
    assert_eq!(
        (mount.fs_type.as_str(), mount.mount_flags),
        ("ext4", vec!["noatime".to_owned()])
    );
    let published = world.driver.state.published.lock().unwrap()[0].clone();
    assert_eq!(published.staging_target_path, staging);
    assert!(!published.readonly);
    let record = Path::new(&first).parent().unwrap().join("vol_data.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["specVolID"], "pv");
    assert_eq!(record["attachmentID"], attachment_name("h", "d", "n"));

    world.volumes.unmount_pod("a").await.unwrap();
    assert_eq!(world.calls(), [format!("NodeUnpublishVolume h {first}")]);
    world.volumes.unmount_pod("b").await.unwrap();
    assert_eq!(
        world.calls(),
        [
            format!("NodeUnpublishVolume h {second}"),
            format!("NodeUnstageVolume h {staging}"),
        ]
    );
    world.volumes.unmount_pod("b").await.unwrap();
    assert_eq!(world.calls(), Vec::<String>::new());
    world.assert_clean().await;
}

#[tokio::test]
async fn a_volume_of_one_pod_is_no_others() {
    let world = World::new(unattached()).await;
    let mut alone = volume(json!({}));
    alone["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    world.api.put("volume", "pv", alone);
    let (a, b) = (claiming("a"), claiming("b"));
    world.volumes.mount_pod(&a).await.unwrap();
    world.volumes.mount_pod(&a).await.unwrap();
    let error = world.volumes.mount_pod(&b).await.unwrap_err().to_string();
    let words = "MountVolume.SetUp failed for volume \"pv\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    assert!(error.contains(words), "{error}");
    world.volumes.unmount_pod("b").await.unwrap();
    assert!(world.volumes.mount_pod(&b).await.is_err());
    world.volumes.unmount_pod("a").await.unwrap();
    world.volumes.mount_pod(&b).await.unwrap();
    world.volumes.unmount_pod("b").await.unwrap();
    world.assert_clean().await;
}

#[tokio::test]
async fn a_volume_is_used_once_the_node_has_it_attached() {
    let world =
        World::new(json!({"fsGroupPolicy": "File", "volumeLifecycleModes": ["Persistent"]})).await;
    let (volumes, pod) = (world.volumes.clone(), claiming("a"));
    let mount = tokio::spawn(async move { volumes.mount_pod(&pod).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!mount.is_finished());
    assert_eq!(world.volumes.volumes_in_use().await, [HANDLE]);
    let attachment = |status: Value| {
        world.api.put(
            "attachment",
            &attachment_name("h", "d", "n"),
            json!({"spec": {"attacher": "d", "nodeName": "n", "source": {}}, "status": status}),
        );
    };
    attachment(json!({"attached": true, "attachmentMetadata": {"device": "sdb"}}));
    world.api.attach(&[HANDLE]);
    mount.await.unwrap().unwrap();
    let staged = world.driver.state.staged.lock().unwrap()[0].clone();
    assert_eq!(staged.publish_context["device"], "sdb");
    let published = world.driver.state.published.lock().unwrap()[0].clone();
    assert_eq!(published.publish_context["device"], "sdb");

    // Nothing is asked of a driver for a volume that is on its way out.
    world.volumes.unmount_pod("a").await.unwrap();
    world.assert_clean().await;
    world.calls();
    attachment(json!({"attached": false}));
    let told = world.failure(&claiming("a")).await;
    assert!(
        told.starts_with(
            "MountVolume.WaitForAttach failed for volume \"pv\" : volume h is not attached"
        ),
        "{told}"
    );
    assert_eq!(world.calls(), Vec::<String>::new());
    world.volumes.unmount_pod("a").await.unwrap();
    world.assert_clean().await;
}

#[tokio::test]
async fn a_node_that_takes_no_more_volumes_is_final_where_the_driver_is_asked_how_many() {
    for (driver, error, limit) in [
        (
            json!({"nodeAllocatableUpdatePeriodSeconds": 10}),
            8,
            Some("d"),
        ),
        (json!({"nodeAllocatableUpdatePeriodSeconds": 10}), 9, None),
        (json!({}), 8, None),
    ] {
        let world = World::new(driver).await;
        let status =
            json!({"attached": false, "attachError": {"errorCode": error, "message": "full"}});
        world.api.put(
            "attachment",
            &attachment_name("h", "d", "n"),
            json!({"spec": {"attacher": "d", "nodeName": "n", "source": {}}, "status": status}),
        );
        tokio::time::pause();
        let failed = world.volumes.mount_pod(&claiming("a")).await.unwrap_err();
        tokio::time::resume();
        assert_eq!(failed.exhausted_driver(), limit, "{failed}");
        world.volumes.unmount_pod("a").await.unwrap();
        world.assert_clean().await;
    }
}

#[tokio::test]
async fn a_pod_waits_for_its_driver() {
    let world = World::new(unattached()).await;
    FakeDriver::deregister(&world.drivers, "d");
    assert_eq!(
        world.failure(&claiming("a")).await,
        "MountVolume.MountDevice failed for volume \"pv\" : kubernetes.io/csi: attacher.MountDevice failed to create \
         newCsiDriverClient: driver name d not found in the list of registered CSI drivers"
    );
    world.driver.register(&world.drivers, "d");
    world.volumes.mount_pod(&claiming("a")).await.unwrap();
    FakeDriver::deregister(&world.drivers, "d");
    let told = world
        .volumes
        .unmount_pod("a")
        .await
        .unwrap_err()
        .to_string();
    assert!(told.contains("driver name d not found"), "{told}");
    assert!(world.volumes.has_volumes("a").await.unwrap());
    world.driver.register(&world.drivers, "d");
    world.volumes.unmount_pod("a").await.unwrap();
    assert!(!world.volumes.has_volumes("a").await.unwrap());
    world.assert_clean().await;
}

#[tokio::test]
async fn a_pods_own_volume_has_its_pod_tokens_and_secrets() {
    let world = World::new(json!({
        "attachRequired": false, "fsGroupPolicy": "File", "podInfoOnMount": true,
        "volumeLifecycleModes": ["Ephemeral"], "tokenRequests": [{"audience": ""}, {"audience": "x"}],
    }))
    .await;
    world
        .api
        .put("secret", "ns/s", json!({"data": {"user": "cm9vdA=="}}));
    let own = |more: Value| {
        let mut csi = json!({"driver": "d", "readOnly": true, "volumeAttributes": {"k": "v"}});
        for (key, value) in more.as_object().unwrap() {
            csi[key] = value.clone();
        }
        pod_with("a", json!({ "csi": csi }))
    };
    let mounted = world
        .volumes
        .mount_pod(&own(json!({"nodePublishSecretRef": {"name": "s"}})))
        .await
        .unwrap();
    assert!(mounted.get("v").unwrap().read_only);
    let asked = world.driver.state.published.lock().unwrap()[0].clone();
    assert!(asked.readonly && asked.volume_id.starts_with("csi-"));
    let context = |key: &str| asked.volume_context[&format!("csi.storage.k8s.io/{key}")].clone();
    assert_eq!(
        ["pod.name", "pod.namespace", "pod.uid", "ephemeral"].map(context),
        ["p", "ns", "a", "true"]
    );
    assert_eq!(context("serviceAccount.name"), "sa");
    assert_eq!(asked.volume_context["k"], "v");
    let tokens: Value = serde_json::from_str(&context("serviceAccount.tokens")).unwrap();
    assert_eq!(
        tokens["x"],
        json!({"token": "token for [\"x\"]", "expirationTimestamp": "2099-01-01T00:00:00Z"})
    );
    assert_eq!(tokens[""]["token"], "token for []");
    assert_eq!(asked.secrets["user"], "root");
    // Nothing renews a token that is given once.
    assert_eq!(world.volumes.next_refresh("a"), None);
    assert_eq!(world.volumes.volumes_in_use().await, Vec::<String>::new());
    world.volumes.unmount_pod("a").await.unwrap();
    let calls: Vec<_> = world
        .calls()
        .iter()
        .map(|call| call.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(calls, ["NodePublishVolume", "NodeUnpublishVolume"]);

    let told = world
        .failure(&own(json!({"nodePublishSecretRef": {"name": "t"}})))
        .await;
    assert!(
        told.contains("fetching NodePublishSecretRef ns/t failed: secrets \"t\" not found"),
        "{told}"
    );
    world.api.put("driver", "d", json!({"spec": unattached()}));
    let told = world.failure(&own(json!({}))).await;
    assert!(
        told.contains("volume mode \"Ephemeral\" not supported by driver d"),
        "{told}"
    );
}

#[tokio::test]
async fn what_a_killed_kubelet_left_is_found_again() {
    let mut world = World::new(unattached()).await;
    world.api.put(
        "driver",
        "d",
        json!({"spec": {"fsGroupPolicy": "None", "volumeLifecycleModes": ["Persistent"]}}),
    );
    world.api.attach(&[HANDLE]);
    world.api.put(
        "attachment",
        &attachment_name("h", "d", "n"),
        json!({"spec": {"attacher": "d", "nodeName": "n", "source": {}}, "status": {"attached": true}}),
    );
    world.volumes.mount_pod(&claiming("a")).await.unwrap();
    let target = world.target("a", "pv");
    world.calls();

    // The pod runs on: its driver is asked again, and what is in use is known before.
    world.restart();
    assert_eq!(world.volumes.volumes_in_use().await, [HANDLE]);
    world.volumes.mount_pod(&claiming("a")).await.unwrap();
    assert_eq!(world.calls().len(), 2);

    // The pod is gone when the kubelet comes back.
    world.restart();
    world.volumes.orphans(|_| false).await.unwrap();
    let gone = [
        format!("NodeUnpublishVolume h {target}"),
        format!("NodeUnstageVolume h {}", world.staging()),
    ];
    assert_eq!(world.calls(), gone);
    world.assert_clean().await;

    // It was killed between the two; and the driver did not succeed at once.
    world.volumes.mount_pod(&claiming("a")).await.unwrap();
    world
        .driver
        .state
        .fail("NodeUnstageVolume", Status::internal("busy"));
    world.volumes.unmount_pod("a").await.unwrap_err();
    world.calls();
    world.restart();
    assert_eq!(world.volumes.volumes_in_use().await, [HANDLE]);
    world.volumes.orphans(|_| false).await.unwrap();
    assert_eq!(world.calls(), gone[1..]);
    world.assert_clean().await;
}

#[tokio::test]
async fn what_failed_for_good_leaves_nothing_and_what_may_go_on_is_undone() {
    let world = World::new(unattached()).await;
    let staging = world.staging();
    world
        .driver
        .state
        .fail("NodeStageVolume", Status::internal("no fs"));
    assert_eq!(
        world.failure(&claiming("a")).await,
        "MountVolume.MountDevice failed for volume \"pv\" : rpc error: code = Internal desc = no fs"
    );
    assert!(!Path::new(&staging).exists());
    world.volumes.unmount_pod("a").await.unwrap();
    assert_eq!(world.calls(), [format!("NodeStageVolume h {staging}")]);

    world
        .driver
        .state
        .fail("NodeStageVolume", Status::aborted("pending"));
    world.failure(&claiming("a")).await;
    world.volumes.unmount_pod("a").await.unwrap();
    assert_eq!(
        world.calls(),
        [
            format!("NodeStageVolume h {staging}"),
            format!("NodeUnstageVolume h {staging}"),
        ]
    );
    world
        .driver
        .state
        .fail("NodePublishVolume", Status::deadline_exceeded("slow"));
    let told = world.failure(&claiming("a")).await;
    assert!(told.starts_with("MountVolume.SetUp failed"), "{told}");
    world.volumes.unmount_pod("a").await.unwrap();
    let target = world.target("a", "pv");
    assert_eq!(
        world.calls()[2..],
        [
            format!("NodeUnpublishVolume h {target}"),
            format!("NodeUnstageVolume h {staging}"),
        ]
    );
    world.assert_clean().await;
}

#[tokio::test]
async fn files_are_the_groups_by_kubelet_or_driver() {
    let world = World::new(unattached()).await;
    let mut pod = claiming("a");
    let context = of(json!({"fsGroup": 4321}));
    pod.spec.as_mut().unwrap().security_context = Some(context);
    let group_told = |world: &World| {
        let published = world.driver.state.published.lock().unwrap();
        let capability = published.last().unwrap().volume_capability.clone();
        match capability.unwrap().access_type {
            Some(AccessType::Mount(mount)) => mount.volume_mount_group,
            other => panic!("{other:?}"),
        }
    };
    world.volumes.mount_pod(&pod).await.unwrap();
    let target = world.target("a", "pv");
    assert_eq!(group_told(&world), "");
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "needs root, to give files to a group");
    assert_eq!(fs::metadata(&target).unwrap().gid(), 4321);
    world.volumes.unmount_pod("a").await.unwrap();

    let capabilities = vec![Type::StageUnstageVolume, Type::VolumeMountGroup];
    *world.driver.state.capabilities.lock().unwrap() = capabilities;
    world.volumes.mount_pod(&pod).await.unwrap();
    assert_eq!(group_told(&world), "4321");
    assert_ne!(fs::metadata(&target).unwrap().gid(), 4321);
}

#[tokio::test]
async fn a_driver_that_wants_it_publishes_with_every_round() {
    let world = World::new(json!({
        "attachRequired": false, "fsGroupPolicy": "None", "requiresRepublish": true,
        "volumeLifecycleModes": ["Persistent"], "tokenRequests": [{"audience": "x"}],
    }))
    .await;
    let staging = world.staging();
    let publish = format!("NodePublishVolume h {}", world.target("a", "pv"));
    world.volumes.mount_pod(&claiming("a")).await.unwrap();
    assert!(world.volumes.next_refresh("a").is_some());
    world.volumes.refresh_pod(&claiming("a")).await.unwrap();
    assert_eq!(
        world.calls(),
        [
            format!("NodeStageVolume h {staging}"),
            publish.clone(),
            publish
        ]
    );
    // What containers look at stays when one of the later ones fails.
    world
        .driver
        .state
        .fail("NodePublishVolume", Status::internal("no token"));
    world.failure(&claiming("a")).await;
    assert!(Path::new(&world.target("a", "pv")).is_dir());
    world.volumes.unmount_pod("a").await.unwrap();
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_is_given_up_is_undone_after_it_ended() {
    let world = World::new(unattached()).await;
    let (tell, told) = std::sync::mpsc::channel::<()>();
    let told = Mutex::new(told);
    world.driver.state.on_publish(move |target| {
        tokio::task::block_in_place(|| told.lock().unwrap().recv().ok());
        fs::create_dir_all(target).map_err(|e| Status::internal(e.to_string()))
    });
    let pod = claiming("a");
    let given_up = tokio::time::timeout(Duration::from_millis(100), world.volumes.mount_pod(&pod));
    assert!(given_up.await.is_err());
    let volumes = world.volumes.clone();
    let unmount = tokio::spawn(async move { volumes.unmount_pod("a").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!unmount.is_finished());
    drop(tell);
    unmount.await.unwrap().unwrap();
    assert_eq!(world.calls().len(), 4);
    world.assert_clean().await;
}

#[tokio::test]
async fn a_block_volume_is_handed_over_as_a_device() {
    let mut world = World::new(unattached()).await;
    let mut block = volume(json!({}));
    block["spec"]["volumeMode"] = json!("Block");
    world.api.put("volume", "pv", block);
    world
        .driver
        .state
        .on_publish(|target| fs::write(target, "").map_err(|e| Status::internal(e.to_string())));
    world.driver.state.on_unpublish(|target| {
        let _ = fs::remove_file(target);
        Ok(())
    });
    let told = world.failure(&claiming("a")).await;
    assert!(
        told.ends_with("volume pv has volumeMode Block, but is specified in volumeMounts"),
        "{told}"
    );
    let with = |uid: &str| {
        let mut pod = claiming(uid);
        let container = &mut pod.spec.as_mut().unwrap().containers[0];
        container.volume_mounts = None;
        container.volume_devices = Some(of(json!([{"name": "v", "devicePath": "/dev/x"}])));
        pod
    };
    let devices = world.root().join("plugins/kubernetes.io/csi/volumeDevices");
    let target = devices.join("publish/pv/a");
    let link = world
        .root()
        .join("pods/a/volumeDevices/kubernetes.io~csi/pv");
    for _ in 0..2 {
        let volumes = world.volumes.mount_pod(&with("a")).await.unwrap();
        let found = &volumes.get("v").unwrap().location;
        assert_eq!(*found, crate::VolumeLocation::Device(target.clone()));
    }
    assert_eq!(fs::read_link(&link).unwrap(), target);
    assert!(devices.join("pv/data/vol_data.json").is_file());
    let staging = devices.join("staging/pv").display().to_string();
    assert_eq!(
        world.calls(),
        [
            format!("NodeStageVolume h {staging}"),
            format!("NodePublishVolume h {}", target.display()),
        ]
    );
    let capability = world.driver.state.staged.lock().unwrap()[0]
        .volume_capability
        .clone();
    let access = capability.unwrap().access_type;
    assert!(matches!(access, Some(AccessType::Block(_))), "{access:?}");
    world.volumes.mount_pod(&with("b")).await.unwrap();
    world.calls();

    // The pods are gone when the kubelet comes back.
    world.restart();
    world.volumes.unmount_pod("b").await.unwrap();
    assert_eq!(world.calls().len(), 1);
    assert!(world.volumes.has_volumes("a").await.unwrap());
    // As upstream's kubelet leaves it.
    fs::create_dir(devices.join("pv/dev")).unwrap();
    fs::write(devices.join("pv/dev/a"), "").unwrap();
    world.volumes.orphans(|_| false).await.unwrap();
    assert_eq!(
        world.calls(),
        [
            format!("NodeUnpublishVolume h {}", target.display()),
            format!("NodeUnstageVolume h {staging}"),
        ]
    );
    for left in ["pv", "staging/pv", "publish/pv"] {
        assert!(!devices.join(left).exists(), "{left}");
    }
    assert!(!link.exists());
    world.assert_clean().await;
}

#[tokio::test]
async fn a_volume_that_grew_is_made_larger_on_the_node() {
    let world = World::new(unattached()).await;
    let sized = |size: &str| {
        let mut grown = volume(json!({}));
        grown["spec"]["capacity"] = json!({"storage": size});
        grown["spec"]["claimRef"] = json!({"uid": "1", "namespace": "ns", "name": "c"});
        world.api.put("volume", "pv", grown);
    };
    let status = |status: Value| {
        let mut claim = json!({"metadata": {"name": "c", "namespace": "ns", "uid": "1"}, "spec": {"volumeName": "pv"}});
        claim["status"] = status;
        claim["status"]["phase"] = json!("Bound");
        world.api.put("claim", "c", claim);
    };
    let claim = || {
        let claim: Arc<PersistentVolumeClaim> = world.api.get("claim", "c").unwrap();
        serde_json::to_value(claim.status.as_ref().unwrap()).unwrap()
    };
    sized("1Gi");
    status(json!({"capacity": {"storage": "1Gi"}}));
    let pod = claiming("a");
    world.volumes.mount_pod(&pod).await.unwrap();
    let kinds: Vec<_> = world.volumes.counts().into_iter().collect();
    assert_eq!(kinds.len(), 1);
    assert!(kinds[0].0.starts_with("kubernetes.io/csi:"), "{kinds:?}");
    assert_eq!(kinds[0].1, (1, 1));
    assert!(world.volumes.expand_pod(&pod).await.is_empty());

    sized("2Gi");
    status(json!({
        "capacity": {"storage": "1Gi"}, "allocatedResources": {"storage": "2Gi"},
        "allocatedResourceStatuses": {"storage": "NodeResizePending"},
        "conditions": [{"type": "FileSystemResizePending", "status": "True"}],
    }));
    // Not looked at with every round of a pod that changes often.
    assert!(world.volumes.expand_pod(&pod).await.is_empty());
    world.volumes.forget_expansions();
    world
        .driver
        .state
        .fail("NodeExpandVolume", Status::internal("no space"));
    let told = world.volumes.expand_pod(&pod).await;
    assert_eq!(
        told[0].outcome.as_ref().unwrap_err(),
        "NodeExpandVolume.NodeExpandVolume failed for volume \"pv\" : Expander.NodeExpand failed to expand the volume : \
         rpc error: code = Internal desc = no space"
    );
    assert_eq!(claim()["conditions"][1]["type"], "NodeResizeError");
    assert_eq!(
        claim()["allocatedResourceStatuses"]["storage"],
        "NodeResizeInProgress"
    );

    // It failed for good, and another size is wanted now: the resizer may go by that.
    let in_progress = claim();
    world.volumes.forget_expansions();
    let denied = Status::permission_denied("no");
    world.driver.state.fail("NodeExpandVolume", denied);
    world.volumes.expand_pod(&pod).await;
    let storage = claim()["allocatedResourceStatuses"]["storage"].clone();
    assert_eq!(storage, "NodeResizeInfeasible");
    status(in_progress);

    world.volumes.forget_expansions();
    let told = world.volumes.expand_pod(&pod).await;
    assert!(told[0].outcome.is_ok(), "{told:?}");
    let asked = world.driver.state.expanded.lock().unwrap().pop().unwrap();
    assert_eq!(asked.volume_path, world.target("a", "pv"));
    assert_eq!(asked.staging_target_path, world.staging());
    assert_eq!(asked.capacity_range.unwrap().required_bytes, 2 << 30);
    assert_eq!(claim()["capacity"]["storage"], "2Gi");
    assert!(claim().get("conditions").is_none_or(|c| c == &json!([])));

    world.volumes.forget_expansions();
    assert!(world.volumes.expand_pod(&pod).await.is_empty());

    // One that grew while no pod had it is made larger before containers get it.
    world.volumes.unmount_pod("a").await.unwrap();
    status(json!({"capacity": {"storage": "1Gi"}}));
    let unavailable = Status::unavailable("not now");
    world.driver.state.fail("NodeExpandVolume", unavailable);
    let error = world.volumes.mount_pod(&pod).await.unwrap_err().to_string();
    let words = "MountVolume.SetUp failed for volume \"pv\" : failed while expanding volume: ";
    assert!(error.contains(words), "{error}");
    world.volumes.mount_pod(&pod).await.unwrap();
    assert_eq!(claim()["capacity"]["storage"], "2Gi");
    let told = world.volumes.expand_pod(&pod).await;
    let outcomes: Vec<_> = told.iter().map(|told| told.outcome.is_ok()).collect();
    assert_eq!(outcomes, [true]);
}

#[tokio::test]
async fn drivers_say_what_their_volumes_hold() {
    let world = World::new(unattached()).await;
    let pod = claiming("a");
    world.volumes.mount_pod(&pod).await.unwrap();
    world.calls();
    for _ in 0..2 {
        let usage = world.volumes.driver_usage("a").await;
        let usage = usage["v"].unwrap();
        assert_eq!(usage.bytes, Some((40, 60, 100)));
        assert_eq!(usage.inodes, Some((3, 7, 10)));
    }
    // Once a minute.
    let target = world.target("a", "pv");
    assert_eq!(world.calls(), [format!("NodeGetVolumeStats h {target}")]);
}
