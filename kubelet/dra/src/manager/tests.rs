use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use component_base::clock::FakeClock;
use jiff::Timestamp;
use tempfile::TempDir;
use tonic::{Code, Status};

use super::*;
use crate::claims::DriverRequest;
use crate::testing::{FakeDriver, device};

const DRIVER: &str = "d.example.com";
const SERVICES: [&str; 2] = ["v1.DRAPlugin", "v1.DRAResourceHealth"];

#[derive(Default)]
struct Told {
    lines: Mutex<Vec<String>>,
    /// Of the API server; it fails while this is not empty.
    refused: Mutex<Vec<String>>,
}

impl Told {
    fn note(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap())
    }
}

impl Observer for Told {
    fn operated(&self, operation: Operation, failed: bool, _: Duration) {
        self.note(format!("{} {failed}", operation.as_str()));
    }
    fn called(&self, driver: &str, method: &str, code: &str, _: Duration) {
        self.note(format!("{driver} {method} {code}"));
    }
    fn skipped(&self, operation: Operation, driver: &str) {
        self.note(format!("skipped {operation} {driver}"));
    }
    fn health_changed(&self, pod: &str) {
        self.note(format!("health {pod}"));
    }
    fn tells_health(&self) -> bool {
        true
    }
}

#[async_trait]
impl Slices for Told {
    async fn wipe(&self, driver: Option<&str>) -> Result<(), String> {
        self.note(format!("wipe {}", driver.unwrap_or("all")));
        match self.refused.lock().unwrap().pop() {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}

struct Node {
    dir: TempDir,
    clock: FakeClock,
    told: Arc<Told>,
    manager: Arc<Manager>,
}

impl Node {
    fn start() -> Self {
        Self::over(tempfile::tempdir().unwrap())
    }

    fn over(dir: TempDir) -> Self {
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let (clock, told) = (FakeClock::new(start), Arc::new(Told::default()));
        let root = dir.path().to_owned();
        let manager = Manager::load(root, clock.clock(), told.clone(), Some(told.clone()));
        Self {
            dir,
            clock,
            told,
            manager: Arc::new(manager.unwrap()),
        }
    }

    /// Another kubelet over the same files.
    fn restart(self) -> Self {
        Self::over(self.dir)
    }

    fn driver(&self, name: &str) -> Arc<FakeDriver> {
        let driver = FakeDriver::new();
        let came = self
            .manager
            .plugin_came(name, Path::new("/d.sock"), driver.clone());
        came.unwrap();
        driver
    }

    async fn prepare(&self, pod: &str, claims: &[&str]) -> String {
        let wanted: Vec<_> = claims.iter().map(|text| claim(text)).collect();
        said(self.manager.prepare(pod, &wanted).await)
    }

    async fn unprepare(&self, pod: &str) -> String {
        said(self.manager.unprepare(pod).await)
    }

    /// Waits until the lines told are these.
    async fn until_told(&self, expect: &[&str]) {
        let mut seen = Vec::new();
        for _ in 0..1000 {
            seen.extend(self.told.take());
            if seen == expect {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(seen, expect);
    }
}

fn said(outcome: Result<(), DraError>) -> String {
    outcome.map_or_else(|error| error.to_string(), |()| "ok".to_owned())
}

fn key(name: &str) -> ClaimKey {
    ClaimKey {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
    }
}

/// `name` of [`DRIVER`], or `name=driver,driver`.
fn claim(text: &str) -> ClaimRequest {
    let (name, drivers) = text.split_once('=').unwrap_or((text, DRIVER));
    let drivers = drivers.split(',');
    ClaimRequest {
        key: key(name),
        uid: format!("uid-{name}"),
        drivers: drivers
            .map(|driver| (driver.to_owned(), DriverRequest::default()))
            .collect(),
    }
}

#[tokio::test]
async fn a_claim_is_prepared_for_its_pods_and_outlives_the_kubelet() {
    let node = Node::start();
    assert_eq!(
        node.prepare("p", &["c"]).await,
        "DRA driver d.example.com is not registered"
    );
    assert!(!node.manager.holds("p"), "it can go without a driver");
    let driver = node.driver(DRIVER);
    assert_eq!(node.prepare("p", &["c", "e"]).await, "ok");
    assert_eq!(driver.take_calls(), ["Prepare c e"]);
    let devices = || node.manager.cdi_devices(&key("c"), None);
    assert_eq!(devices().unwrap(), ["vendor.com/class=c"]);
    assert_eq!(
        node.manager
            .cdi_devices(&key("x"), None)
            .unwrap_err()
            .to_string(),
        "unable to get claim info for ResourceClaim x in namespace ns"
    );
    assert_eq!(node.manager.in_use(), ([(DRIVER.to_owned(), 2)].into(), 2));
    // A second pod, and the first once more: nobody is asked.
    assert_eq!(node.prepare("q", &["c"]).await, "ok");
    assert_eq!(node.prepare("p", &["c", "e"]).await, "ok");
    assert!(driver.take_calls().is_empty());

    let node = node.restart();
    assert_eq!(node.manager.in_use(), (BTreeMap::new(), 0));
    let devices = || node.manager.cdi_devices(&key("c"), None);
    assert_eq!(devices().unwrap(), ["vendor.com/class=c"]);
    assert_eq!(
        node.unprepare("p").await,
        "DRA driver d.example.com is not registered"
    );
    let driver = node.driver(DRIVER);
    assert_eq!(node.unprepare("p").await, "ok");
    assert_eq!(driver.take_calls(), ["Unprepare e"]);
    assert!(!node.manager.holds("p") && node.manager.holds("q"));
    // The driver is asked again: it may have forgotten.
    assert_eq!(node.prepare("q", &["c"]).await, "ok");
    assert_eq!(driver.take_calls(), ["Prepare c"]);
    assert_eq!(node.unprepare("q").await, "ok");
    assert_eq!(driver.take_calls(), ["Unprepare c"]);
    assert_eq!(node.unprepare("q").await, "ok");
    let node = node.restart();
    assert!(!node.manager.holds("p") && !node.manager.holds("q"));
}

#[tokio::test]
async fn what_a_driver_refuses_is_tried_again() {
    let node = Node::start();
    let driver = node.driver(DRIVER);
    driver.prepare_by(|claim| match claim.name.as_str() {
        "bad" => Err("on fire".to_owned()),
        name => Ok(vec![device(name)]),
    });
    assert_eq!(
        node.prepare("p", &["a", "bad"]).await,
        "NodePrepareResources failed for ResourceClaim bad: on fire"
    );
    assert!(node.manager.holds("p"));
    driver.prepare_by(|claim| Ok(vec![device(&claim.name)]));
    driver.break_by(Some(Status::new(Code::Internal, "no memory")));
    assert_eq!(
        node.prepare("p", &["a", "bad"]).await,
        "NodePrepareResources: rpc error: code = Internal desc = no memory"
    );
    driver.break_by(None);
    driver.forget(Some("bad"));
    assert_eq!(
        node.prepare("p", &["a", "bad"]).await,
        "NodePrepareResources skipped 1 ResourceClaims"
    );
    driver.forget(None);
    assert_eq!(node.prepare("p", &["a", "bad"]).await, "ok");
    // What it said before is not there twice.
    assert_eq!(
        node.manager.claim(&key("a")).unwrap().drivers[DRIVER]
            .devices
            .len(),
        1
    );
    driver.prepare_by(|_| Ok(vec![device(&"x".repeat(MOST_BYTES))]));
    let told = node.prepare("q", &["long"]).await;
    assert!(told.starts_with("DRA driver d.example.com has "), "{told}");

    driver.unprepare_by(|_| Err("busy".to_owned()));
    assert_eq!(
        node.unprepare("p").await,
        "NodeUnprepareResources failed for ResourceClaim a: busy"
    );
    assert_eq!(
        node.prepare("r", &["a"]).await,
        "ResourceClaim a is being unprepared"
    );
    driver.unprepare_by(|_| Ok(()));
    assert_eq!(node.unprepare("p").await, "ok");
    let operations: Vec<String> = node
        .told
        .take()
        .into_iter()
        .filter(|l| l.starts_with("Unprepare"))
        .collect();
    assert_eq!(
        operations,
        ["UnprepareResources true", "UnprepareResources false"]
    );
}

#[tokio::test]
async fn two_pods_at_once_have_a_claim_prepared_once() {
    let node = Node::start();
    let driver = node.driver(DRIVER);
    let pods: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let all = pods.iter().map(|pod| node.prepare(pod, &["b", "a"]));
    let all = futures::future::join_all(all).await;
    assert!(all.iter().all(|said| said == "ok"), "{all:?}");
    assert_eq!(driver.take_calls(), ["Prepare b a"]);
    let all = pods.iter().map(|pod| node.unprepare(pod));
    let all = futures::future::join_all(all).await;
    assert!(all.iter().all(|said| said == "ok"), "{all:?}");
    assert_eq!(driver.take_calls(), ["Unprepare a b"]);
}

#[tokio::test]
async fn claims_of_pods_that_are_gone_are_let_go() {
    let node = Node::start();
    let driver = node.driver(DRIVER);
    for pod in ["p", "q"] {
        assert_eq!(node.prepare(pod, &[pod, "shared"]).await, "ok");
    }
    driver.take_calls();
    driver.break_by(Some(Status::unavailable("later")));
    node.manager.reconcile(|pod| pod == "q").await;
    assert!(node.manager.holds("p"));
    driver.break_by(None);
    node.manager.reconcile(|pod| pod == "q").await;
    assert!(!node.manager.holds("p"));
    assert_eq!(driver.take_calls(), ["Unprepare p", "Unprepare p"]);
    node.manager.reconcile(|_| true).await;
    assert!(node.manager.holds("q") && driver.take_calls().is_empty());
}

#[tokio::test]
async fn slices_go_when_their_driver_stays_away() {
    let node = Node::start();
    *node.told.refused.lock().unwrap() = vec!["no API server".to_owned()];
    node.manager.wipe_at_start();
    node.until_told(&["wipe all"]).await;
    node.clock.advance(Duration::from_secs(1));
    node.until_told(&["wipe all"]).await;

    let driver = node.driver(DRIVER);
    let settle = || tokio::time::sleep(Duration::from_millis(50));
    // It is away for a moment.
    driver.set_connected(false);
    settle().await;
    node.clock.advance(Duration::from_secs(29));
    driver.set_connected(true);
    settle().await;
    node.clock.advance(Duration::from_secs(100));
    settle().await;
    assert!(node.told.take().is_empty());
    // Its plugin is replaced.
    let newer = FakeDriver::new();
    let socket = Path::new("/newer.sock");
    node.manager
        .plugin_came(DRIVER, socket, newer.clone())
        .unwrap();
    node.manager.deregister(DRIVER, Path::new("/d.sock")).await;
    node.clock.advance(Duration::from_secs(100));
    settle().await;
    assert!(node.told.take().is_empty());
    assert_eq!(node.prepare("p", &["c"]).await, "ok");
    assert_eq!(newer.take_calls(), ["Prepare c"]);
    assert_eq!(node.told.take(), ["PrepareResources false"]);
    // It goes for good.
    node.manager.deregister(DRIVER, socket).await;
    node.manager.deregister(DRIVER, socket).await;
    settle().await;
    node.clock.advance(Duration::from_secs(30));
    node.until_told(&["wipe d.example.com"]).await;
}

#[tokio::test]
async fn of_two_plugins_of_a_driver_the_newest_that_is_there_is_asked() {
    let node = Node::start();
    let old = node.driver(DRIVER);
    let new = FakeDriver::new();
    let socket = Path::new("/new.sock");
    node.manager
        .plugin_came(DRIVER, socket, new.clone())
        .unwrap();
    let again = node.manager.plugin_came(DRIVER, socket, new.clone());
    assert_eq!(
        again.unwrap_err().to_string(),
        "endpoint /new.sock already registered for DRA driver plugin d.example.com"
    );
    assert_eq!(node.prepare("p", &["a"]).await, "ok");
    new.set_connected(false);
    assert_eq!(node.prepare("p", &["b"]).await, "ok");
    old.set_connected(false);
    assert_eq!(node.prepare("p", &["c"]).await, "ok");
    assert_eq!((new.take_calls().len(), old.take_calls().len()), (2, 1));
}

/// Over a socket, by each version of the services.
#[tokio::test]
async fn drivers_are_called_over_their_socket() {
    for (services, package) in [
        (&["v1.DRAPlugin", "v1.DRAResourceHealth"], "v1"),
        (
            &["v1beta1.DRAPlugin", "v1alpha1.DRAResourceHealth"],
            "v1beta1",
        ),
    ] {
        let node = Node::start();
        let socket = node.dir.path().join("d.sock");
        let driver = FakeDriver::new();
        let mut shared = device("c");
        shared.share_id = Some("s".to_owned());
        shared.request_names = vec!["r".to_owned()];
        let answer = shared.clone();
        driver.prepare_by(move |_| Ok(vec![answer.clone()]));
        let services: Vec<String> = services.iter().map(|s| (*s).to_owned()).collect();
        let served = driver.serve(&socket).await;
        node.manager.register(DRIVER, &socket, &services).unwrap();
        assert_eq!(node.prepare("p", &["c"]).await, "ok");
        let kept = node.manager.claim(&key("c")).unwrap();
        let kept = &kept.drivers[DRIVER].devices;
        if package == "v1beta1" {
            shared.share_id = None;
        }
        assert_eq!(kept, &[shared]);
        assert_eq!(node.unprepare("p").await, "ok");
        assert_eq!(driver.take_calls(), ["Prepare c", "Unprepare c"]);
        let method = |name: &str| {
            format!("{DRIVER} /k8s.io.kubelet.pkg.apis.dra.{package}.DRAPlugin/{name} OK")
        };
        assert_eq!(
            node.told.take(),
            [
                method("NodePrepareResources").as_str(),
                "PrepareResources false",
                &method("NodeUnprepareResources"),
                "UnprepareResources false",
            ]
        );
        drop(served);
    }
}

#[tokio::test]
async fn a_driver_that_starts_again_is_found_again() {
    let node = Node::start();
    let socket = node.dir.path().join("d.sock");
    let driver = FakeDriver::new();
    let services = SERVICES.map(str::to_owned);
    node.manager.register(DRIVER, &socket, &services).unwrap();
    let told = node.prepare("p", &["c"]).await;
    assert!(
        told.starts_with("NodePrepareResources: rpc error: code = Unavailable"),
        "{told}"
    );
    let connections = node.manager.plugins().get(DRIVER).unwrap().connections();
    let until = |count: usize| {
        let mut connections = connections.clone();
        let clock = node.clock.clone();
        async move {
            for _ in 0..500 {
                if *connections.borrow_and_update() == count {
                    return;
                }
                clock.advance(Duration::from_millis(50));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("never {count} connections");
        }
    };
    for _ in 0..2 {
        let served = driver.serve(&socket).await;
        until(1).await;
        assert_eq!(node.prepare("p", &["c"]).await, "ok");
        drop(served);
        until(0).await;
    }
}

#[tokio::test]
async fn pods_hear_of_the_health_of_their_devices() {
    let node = Node::start();
    let socket = node.dir.path().join("d.sock");
    let driver = FakeDriver::new();
    driver.set_health("c other");
    let served = driver.serve(&socket).await;
    let services = SERVICES.map(str::to_owned);
    node.manager.register(DRIVER, &socket, &services).unwrap();
    let of = |name: &str| node.manager.device_health(DRIVER, "pool", name).0;
    let until = |name: &'static str, expect: HealthStatus| {
        let manager = node.manager.clone();
        let clock = node.clock.clone();
        async move {
            for _ in 0..500 {
                if manager.device_health(DRIVER, "pool", name).0 == expect {
                    return;
                }
                clock.advance(REPORTS_APART);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            panic!("{name} is never {expect:?}");
        }
    };
    const REPORTS_APART: Duration = Duration::from_millis(20);
    until("c", HealthStatus::Healthy).await;
    assert_eq!(of("unknown"), HealthStatus::Unknown);
    assert_eq!(node.prepare("p", &["c"]).await, "ok");
    node.told.take();
    driver.set_health("!c other");
    until("c", HealthStatus::Unhealthy).await;
    node.until_told(&["health p"]).await;
    // Nobody has that one.
    driver.set_health("!c !other");
    until("other", HealthStatus::Unhealthy).await;
    assert!(node.told.take().is_empty());
    drop(served);
    until("c", HealthStatus::Unknown).await;
    node.until_told(&["health p"]).await;
    assert!(node.dir.path().join(crate::health::FILE).exists());
}

/// A file that says nothing costs what it said, and no start.
#[tokio::test]
async fn a_torn_file_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(checkpoint::FILE);
    std::fs::write(&file, "{").unwrap();
    let node = Node::over(dir);
    assert!(!file.exists() && file.with_extension("corrupt").exists());
    assert!(!node.manager.holds("p"));
    std::fs::create_dir(&file).unwrap();
    let (clock, told) = (node.clock.clock(), node.told.clone());
    let failed = Manager::load(node.dir.path().to_owned(), clock, told, None);
    assert!(failed.is_err());
}

#[test]
fn what_a_driver_takes_for_a_claim_is_shortened() {
    let uid = "u".repeat(1 << 20);
    let error = claim_of(&[], Operation::Prepare, uid).unwrap_err();
    let told = error.to_string();
    let begin = "NodePrepareResources returned result for unknown claim UID uuu";
    assert!(
        told.starts_with(begin) && told.len() < 4096,
        "{}",
        told.len()
    );
}
