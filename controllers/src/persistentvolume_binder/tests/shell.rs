//! The shell on an API in memory whose watches a test feeds, so that they may be late.

use std::sync::Arc;

use component_base::clock::Clock;
use component_base::events::{RecordedEvent, Recorder};
use component_base::shutdown::Shutdown;
use controller_runtime::testing::FakeApi;
use controller_runtime::transport::Verb;
use controller_runtime::{ApiError, ObjectKey, Queues};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use tokio::sync::mpsc::UnboundedReceiver;

use super::super::controller::Binder;
use super::super::metrics::{Metrics, OperationTimes};
use super::super::sync::Operation;
use super::{print_pv, print_pvc, pv, pvc, sc};
use crate::options::VolumeOptions;
use crate::testing::{Feed, settle};

struct Shell {
    api: FakeApi,
    binder: Arc<Binder>,
    claims: Feed<PersistentVolumeClaim>,
    volumes: Feed<PersistentVolume>,
    classes: Feed<StorageClass>,
    _nodes: Feed<Node>,
    _pods: Feed<Pod>,
    events: UnboundedReceiver<RecordedEvent>,
    root: tempfile::TempDir,
}

fn options() -> VolumeOptions {
    VolumeOptions {
        claim_binder_sync_period: std::time::Duration::from_secs(15),
        enable_dynamic_provisioning: true,
        enable_hostpath_provisioner: true,
    }
}

impl Shell {
    async fn new(lines: &[&str]) -> Self {
        let api = FakeApi::new();
        let (recorder, events) = Recorder::fake();
        let ((claims, claims_informer), (volumes, volumes_informer)) = (Feed::new(), Feed::new());
        let ((classes, classes_informer), (_nodes, nodes)) = (Feed::new(), Feed::new());
        let (_pods, pods) = Feed::new();
        let root = tempfile::tempdir_in("/tmp").unwrap();
        let binder = Arc::new(Binder {
            claims: claims_informer,
            volumes: volumes_informer,
            classes: classes_informer,
            pods,
            nodes,
            cache: Arc::default(),
            executor: api.executor_with(recorder),
            claim_queue: Queues::unread(Clock::real()).queue("claims"),
            volume_queue: Queues::unread(Clock::real()).queue("volumes"),
            operations: Queues::unread(Clock::real()).queue("operations"),
            times: OperationTimes::new(Clock::real(), Arc::new(Metrics::unread())),
            metrics: Arc::new(Metrics::unread()),
            storage_operations: Arc::new(crate::storage_operations::StorageOperations::unread()),
            clock: Clock::real(),
            options: options(),
            host_path_root: root.path().into(),
            save_pause: std::time::Duration::from_millis(1),
            shutdown: Shutdown::new(),
        });
        let shell = Self {
            api,
            binder,
            claims,
            volumes,
            classes,
            _nodes,
            _pods,
            events,
            root,
        };
        for line in lines {
            shell.add(line);
        }
        settle().await;
        shell.binder.fill_cache();
        shell
    }

    /// At the server and in the watches.
    fn add(&self, line: &str) {
        let version = || Some("0".to_owned());
        if line.starts_with("pvc ") {
            let mut claim = pvc(line);
            claim.metadata.resource_version = version();
            self.api.insert(&claim);
            self.claims.apply(claim);
        } else if line.starts_with("pv ") {
            let mut volume = pv(line);
            volume.metadata.resource_version = version();
            self.api.insert(&volume);
            self.volumes.apply(volume);
        } else {
            self.classes.apply(sc(line));
        }
    }

    async fn claim(&self, name: &str) -> Result<(), String> {
        let key = ObjectKey::new("default", name);
        let result = self.binder.sync_claim_by_key(&key).await;
        result.map_err(|error| error.to_string())
    }

    async fn volume(&self, name: &str) -> Result<(), String> {
        let key = ObjectKey::new("", name);
        let result = self.binder.sync_volume_by_key(&key).await;
        result.map_err(|error| error.to_string())
    }

    /// Method, kind and subresource of every write.
    fn writes(&self) -> Vec<String> {
        let writes = self.api.writes();
        let text = |verb| match verb {
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Delete => "delete",
            _ => "other",
        };
        writes
            .iter()
            .map(|r| format!("{} {}/{}", text(r.verb), r.resource.plural, r.subresource))
            .collect()
    }

    fn stored(&self) -> Vec<String> {
        let volumes: Vec<PersistentVolume> = self.api.list();
        let claims: Vec<PersistentVolumeClaim> = self.api.list();
        let volumes = volumes.iter().map(print_pv);
        volumes.chain(claims.iter().map(print_pvc)).collect()
    }

    fn told(&mut self) -> Vec<(String, String)> {
        let mut told = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            told.push((event.reason, event.message));
        }
        told
    }

    fn directories(&self) -> usize {
        std::fs::read_dir(self.root.path()).unwrap().count()
    }
}

const BOUND: [&str; 2] = [
    "pv a 1Gi Bound claim=c/uid-c by-controller",
    "pvc c 1Gi Bound volume=a by-controller completed has=1Gi",
];

#[tokio::test]
async fn a_binding_is_four_writes_and_late_watches_add_none() {
    let shell = Shell::new(&["pv a 1Gi Available", "pvc c 1Gi Pending"]).await;
    shell.claim("c").await.unwrap();
    assert_eq!(shell.stored(), BOUND);
    let four = [
        "update persistentvolumes/",
        "update persistentvolumes/status",
        "update persistentvolumeclaims/",
        "update persistentvolumeclaims/status",
    ];
    assert_eq!(shell.writes(), four);
    // The watches still show what was before.
    shell.claim("c").await.unwrap();
    shell.volume("a").await.unwrap();
    assert_eq!(shell.writes().len(), 4);
    // They catch up.
    shell.claims.apply(shell.api.get("default", "c").unwrap());
    shell.volumes.apply(shell.api.get("", "a").unwrap());
    settle().await;
    shell.claim("c").await.unwrap();
    shell.volume("a").await.unwrap();
    assert_eq!(shell.writes().len(), 4);
}

#[tokio::test]
async fn a_binding_that_stops_anywhere_is_completed() {
    for stop in 0..4 {
        let shell = Shell::new(&["pv a 1Gi Available", "pvc c 1Gi Pending"]).await;
        let (plural, subresource) = [
            ("persistentvolumes", ""),
            ("persistentvolumes", "status"),
            ("persistentvolumeclaims", ""),
            ("persistentvolumeclaims", "status"),
        ][stop];
        let conflict = ApiError::Conflict("no".into());
        shell.api.fail(
            move |r| {
                r.verb == Verb::Update
                    && r.resource.plural == plural
                    && r.subresource == subresource
            },
            conflict,
        );
        assert_eq!(shell.claim("c").await.unwrap_err(), "no");
        assert_eq!(shell.writes().len(), stop + 1);
        shell.api.heal();
        // The claim's watch tells what was written of it.
        shell.claims.apply(shell.api.get("default", "c").unwrap());
        settle().await;
        shell.claim("c").await.unwrap();
        assert_eq!(shell.stored(), BOUND, "stopped at {stop}");
    }
}

#[tokio::test]
async fn two_claims_never_get_one_volume() {
    let shell = Shell::new(&[
        "pv a 1Gi Available",
        "pvc c 1Gi Pending",
        "pvc d 1Gi Pending",
    ])
    .await;
    shell.claim("c").await.unwrap();
    shell.claim("d").await.unwrap();
    assert_eq!(shell.stored()[..2], BOUND);
    assert_eq!(shell.stored()[2], "pvc d 1Gi Pending");
}

#[tokio::test]
async fn deletions_reach_the_other_side() {
    let shell = Shell::new(&[
        "pv a 1Gi Bound claim=c/uid-c",
        "pvc c 1Gi Bound volume=a completed has=1Gi",
    ])
    .await;
    shell.claims.delete(shell.api.get("default", "c").unwrap());
    settle().await;
    // The watch is ahead of the server: the claim is not believed to be gone.
    shell.claim("c").await.unwrap();
    assert_eq!(
        shell.binder.volume_queue.get().await,
        Some(ObjectKey::new("", "a"))
    );
    shell.volume("a").await.unwrap();
    assert_eq!(shell.stored()[0], "pv a 1Gi Bound claim=c/uid-c");
    let nothing = ApiError::NotFound("gone".into());
    shell.api.fail(|r| r.verb == Verb::Get, nothing);
    shell.volume("a").await.unwrap();
    assert_eq!(shell.stored()[0], "pv a 1Gi Released claim=c/uid-c");
    // And the other way.
    let mut shell = Shell::new(&[
        "pv a 1Gi Bound claim=c/uid-c",
        "pvc c 1Gi Bound volume=a completed has=1Gi",
    ])
    .await;
    shell.volumes.delete(shell.api.get("", "a").unwrap());
    settle().await;
    shell.volume("a").await.unwrap();
    let claim = ObjectKey::new("default", "c");
    assert_eq!(shell.binder.claim_queue.get().await, Some(claim));
    shell.claim("c").await.unwrap();
    assert_eq!(shell.stored()[1], "pvc c 1Gi Lost volume=a completed");
    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    assert_eq!(shell.told(), [("ClaimLost".to_owned(), message.to_owned())]);
}

#[tokio::test]
async fn a_namesake_is_asked_of_the_server() {
    // The volume was bound to the new claim before our watch showed it.
    let shell = Shell::new(&[
        "pv a 1Gi Bound claim=c/uid-c",
        "pvc c 1Gi Bound volume=a completed has=1Gi",
    ])
    .await;
    let mut old = pvc("pvc c 1Gi Bound volume=b uid=old");
    old.metadata.resource_version = Some("0".into());
    shell.binder.cache.store_claim(Arc::new(old));
    shell.volume("a").await.unwrap();
    assert!(shell.writes().is_empty());
}

#[tokio::test]
async fn a_claim_that_cannot_be_saved_is_told() {
    let mut shell = Shell::new(&["sc gold vendor.com/x", "pvc c 1Gi Pending class=gold"]).await;
    let error = ApiError::Unreachable("no answer".into());
    shell.api.fail(|r| r.verb == Verb::Update, error);
    shell.claim("c").await.unwrap_err();
    let told = shell.told();
    assert_eq!(
        told,
        [(
            "ProvisioningFailed".to_owned(),
            "Error saving claim: no answer".to_owned()
        )]
    );
    shell.api.heal();
    shell.claim("c").await.unwrap();
    assert_eq!(shell.told()[0].0, "ExternalProvisioning");
    assert!(shell.binder.times.has("default/c"));
    // The provisioner brings a volume, and the claim is bound.
    shell.add("pv a 1Gi Available claim=c/uid-c class=gold");
    shell.claims.apply(shell.api.get("default", "c").unwrap());
    settle().await;
    shell.volume("a").await.unwrap();
    shell.claim("c").await.unwrap();
    assert!(shell.stored()[1].starts_with("pvc c 1Gi Bound volume=a"));
    assert!(!shell.binder.times.has("default/c"));
}

#[tokio::test]
async fn a_directory_is_made_and_deleted() {
    let class = "sc gold kubernetes.io/host-path";
    let mut shell = Shell::new(&[class, "pvc c 1Gi Pending class=gold"]).await;
    shell.claim("c").await.unwrap();
    let (claim, uid) = (ObjectKey::new("default", "c"), "uid-c".to_owned());
    let operation = shell.binder.operations.get().await.unwrap();
    assert_eq!(
        operation,
        Operation::Provision {
            claim: claim.clone(),
            uid
        }
    );
    shell.binder.provision(&claim, "uid-c").await.unwrap();
    assert_eq!(shell.directories(), 1);
    assert_eq!(shell.told()[0].0, "ProvisioningSucceeded");
    // Again, as when an answer was lost: nothing more is made.
    shell.binder.provision(&claim, "uid-c").await.unwrap();
    assert_eq!(shell.directories(), 1);
    shell.claims.apply(shell.api.get("default", "c").unwrap());
    settle().await;
    shell.claim("c").await.unwrap();
    let name = "pvc-uid-c";
    assert!(
        shell.stored()[1].contains(&format!("Bound volume={name}")),
        "{:?}",
        shell.stored()
    );
    let uid = shell
        .api
        .get::<PersistentVolume>("", name)
        .unwrap()
        .metadata
        .uid
        .unwrap();
    // While it is bound it stays.
    shell.binder.delete(name, &uid).await.unwrap();
    assert_eq!(shell.directories(), 1);
    shell.claims.delete(shell.api.get("default", "c").unwrap());
    settle().await;
    shell.claim("c").await.unwrap();
    // Another incarnation is not meant.
    shell.binder.delete(name, "other").await.unwrap();
    assert_eq!(shell.directories(), 1);
    shell.binder.delete(name, &uid).await.unwrap();
    assert_eq!(shell.directories(), 0);
    assert!(shell.api.get::<PersistentVolume>("", name).is_none());
}

#[tokio::test]
async fn what_cannot_be_deleted_is_called_failed() {
    let volume = "pv a 1Gi Released claim=c/uid-c policy=Delete host-path=/var/lib/x";
    let mut shell = Shell::new(&[volume]).await;
    shell.binder.delete("a", "uid-a").await.unwrap_err();
    assert!(shell.stored()[0].starts_with("pv a 1Gi Failed"));
    let message = "host_path deleter only supports /tmp/.+ but received provided /var/lib/x";
    let told = [("VolumeFailedDelete".to_owned(), message.to_owned())];
    assert_eq!(shell.told(), told);
}

#[tokio::test]
async fn a_directory_without_a_volume_is_deleted_again() {
    let class = "sc gold kubernetes.io/host-path";
    let mut shell = Shell::new(&[class, "pvc c 1Gi Pending class=gold"]).await;
    let error = ApiError::Forbidden("no volumes".into());
    shell.api.fail(|r| r.verb == Verb::Create, error);
    let claim = ObjectKey::new("default", "c");
    shell.binder.provision(&claim, "uid-c").await.unwrap();
    let tries = shell
        .writes()
        .iter()
        .filter(|w| w.starts_with("create"))
        .count();
    assert_eq!((tries, shell.directories()), (5, 0));
    let message = "Error creating provisioned PV object for claim default/c: no volumes. Deleting the volume.";
    assert_eq!(
        shell.told(),
        [("ProvisioningFailed".to_owned(), message.to_owned())]
    );
}

#[tokio::test]
async fn a_claim_that_asks_for_too_much_is_refused() {
    let class = "sc gold kubernetes.io/host-path";
    let mut shell = Shell::new(&[class, "pvc c 1Gi Pending class=gold block selected=n"]).await;
    shell
        .binder
        .provision(&ObjectKey::new("default", "c"), "uid-c")
        .await
        .unwrap_err();
    assert_eq!(
        shell.told()[0].1,
        "Failed to get target node: node \"n\" not found"
    );
    assert_eq!(shell.directories(), 0);
}
