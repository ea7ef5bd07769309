use super::*;
use crate::testing::{FakeDriver, Plugin};

#[derive(Default)]
struct Cluster {
    calls: Mutex<Vec<String>>,
    refuse: bool,
}

#[async_trait]
impl Handler for Cluster {
    async fn install(&self, driver: &str, info: &NodeInfo) -> Result<(), HandlerError> {
        let call = format!("+{driver} {} {}", info.node_id, info.max_volumes);
        self.calls.lock().unwrap().push(call);
        if self.refuse {
            return Err("no API server".into());
        }
        Ok(())
    }
    async fn uninstall(&self, driver: &str) -> Result<(), HandlerError> {
        self.calls.lock().unwrap().push(format!("-{driver}"));
        Ok(())
    }
}

struct Node {
    dir: tempfile::TempDir,
    drivers: Arc<Drivers>,
    cluster: Arc<Cluster>,
    others: Arc<Others>,
    task: JoinHandle<()>,
}

/// Plugins of another type.
#[derive(Default)]
struct Others(Mutex<Vec<String>>);

impl Others {
    fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait]
impl PluginHandler for Others {
    fn validate(&self, name: &str, _: &Path, versions: &[String]) -> Result<(), String> {
        match versions {
            [version] if version == "v1beta1" => Ok(()),
            _ => Err(format!("{name}: {versions:?}")),
        }
    }
    async fn register(
        &self,
        name: &str,
        endpoint: &Path,
        _: &[String],
    ) -> Result<(), HandlerError> {
        let call = format!("+{name} {}", endpoint.display());
        self.0.lock().unwrap().push(call);
        Ok(())
    }
    async fn deregister(&self, name: &str, endpoint: &Path) {
        let call = format!("-{name} {}", endpoint.display());
        self.0.lock().unwrap().push(call);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start(cluster: Cluster) -> Node {
    let dir = tempfile::tempdir().unwrap();
    let drivers = Arc::new(Drivers::new(Arc::new(|_| {})));
    let cluster = Arc::new(cluster);
    let registry = dir.path().join("registry");
    let others = Arc::new(Others::default());
    let gpus: Arc<dyn PluginHandler> = others.clone();
    let handlers = [("DevicePlugin", gpus)];
    let registrations = Registrations::new(registry, drivers.clone(), cluster.clone(), handlers);
    let task = tokio::spawn(registrations.run());
    Node {
        dir,
        drivers,
        cluster,
        others,
        task,
    }
}

impl Node {
    fn calls(&self) -> Vec<String> {
        self.cluster.calls.lock().unwrap().clone()
    }
    async fn until(&self, what: impl Fn(&Self) -> bool) {
        let wait = async {
            while !what(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let done = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(
            done.is_ok(),
            "{:?} {:?}",
            self.calls(),
            self.drivers.names()
        );
    }
}

#[tokio::test]
async fn a_driver_registers_goes_and_comes_again() {
    let node = start(Cluster::default());
    let registry = node.dir.path().join("registry");
    node.until(|_| registry.is_dir()).await;
    let driver = FakeDriver::start(&node.dir.path().join("csi.sock")).await;
    let plugin = || Plugin::csi("d", &driver.socket, &["1.0.0"]);
    let socket = registry.join("below/d-reg.sock");
    std::fs::create_dir(registry.join("below")).unwrap();
    let first = plugin().start(&socket).await;
    assert_eq!(first.status().await, Ok(()));
    assert_eq!(node.calls(), ["+d node-1 7"]);
    assert_eq!(node.drivers.names(), ["d"]);

    // The registrar starts again: it takes its socket away and makes a new one.
    drop(first);
    std::fs::remove_file(&socket).unwrap();
    let second = plugin().start(&socket).await;
    assert_eq!(second.status().await, Ok(()));
    assert_eq!(node.calls(), ["+d node-1 7", "-d", "+d node-1 7"]);

    drop(second);
    std::fs::remove_file(&socket).unwrap();
    node.until(|node| node.drivers.names().is_empty()).await;
    node.until(|node| node.calls().len() == 4).await;
    let told = node.drivers.client("d").err().unwrap().to_string();
    assert_eq!(
        told,
        "driver name d not found in the list of registered CSI drivers"
    );
}

#[tokio::test]
async fn what_cannot_be_used_is_told_so() {
    let node = start(Cluster::default());
    let registry = node.dir.path().join("registry");
    std::fs::create_dir_all(&registry).unwrap();
    let driver = FakeDriver::start(&node.dir.path().join("csi.sock")).await;
    let refused = |plugin: Plugin, name: &'static str| {
        let socket = registry.join(name);
        async move { plugin.start(&socket).await.status().await.unwrap_err() }
    };
    let old = refused(Plugin::csi("old", &driver.socket, &["0.3.0"]), "old").await;
    assert!(old.contains("must be v1.x"), "{old}");
    let mut other = Plugin::csi("gpu", &driver.socket, &["1.0"]);
    other.kind = "DRAPlugin".to_owned();
    let other = refused(other, "dra").await;
    assert!(
        other.contains("no handler registered for plugin type: DRAPlugin"),
        "{other}"
    );
    assert!(node.calls().is_empty() && node.drivers.names().is_empty());
}

#[tokio::test]
async fn plugins_of_another_type_have_a_handler_of_their_own() {
    let node = start(Cluster::default());
    let registry = node.dir.path().join("registry");
    node.until(|_| registry.is_dir()).await;
    let plugin = |versions: &[&str]| {
        let mut plugin = Plugin::csi("example.com/gpu", Path::new("/gpu.sock"), versions);
        plugin.kind = "DevicePlugin".to_owned();
        plugin
    };
    let socket = registry.join("gpu");
    let running = plugin(&["v1beta1"]).start(&socket).await;
    assert_eq!(running.status().await, Ok(()));
    std::fs::remove_file(&socket).unwrap();
    node.until(|node| node.others.calls().len() == 2).await;
    assert_eq!(
        node.others.calls(),
        ["+example.com/gpu /gpu.sock", "-example.com/gpu /gpu.sock"]
    );
    let refused = plugin(&["v2"]).start(&registry.join("new")).await;
    assert_eq!(
        refused.status().await.unwrap_err(),
        "RegisterPlugin error -- plugin validation failed with err: example.com/gpu: [\"v2\"]"
    );
    assert!(node.calls().is_empty() && node.drivers.names().is_empty());
}

#[tokio::test]
async fn a_driver_that_the_cluster_does_not_take_is_not_used() {
    let node = start(Cluster {
        refuse: true,
        ..Cluster::default()
    });
    let registry = node.dir.path().join("registry");
    std::fs::create_dir_all(&registry).unwrap();
    let driver = FakeDriver::start(&node.dir.path().join("csi.sock")).await;
    let plugin = Plugin::csi("d", &driver.socket, &["1.0.0"]);
    let plugin = plugin.start(&registry.join("d")).await;
    let told = plugin.status().await.unwrap_err();
    assert!(told.ends_with("failed with err: no API server"), "{told}");
    assert!(node.drivers.names().is_empty());
    // And it is asked again.
    node.until(|node| node.calls().len() >= 4).await;
}

#[tokio::test]
async fn drivers_that_were_here_before_are_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let registry = dir.path().join("registry");
    std::fs::create_dir_all(&registry).unwrap();
    let driver = FakeDriver::start(&dir.path().join("csi.sock")).await;
    let plugin = Plugin::csi("d", &driver.socket, &["1.0.0"]);
    let _plugin = plugin.start(&registry.join("d")).await;
    let drivers = Arc::new(Drivers::new(Arc::new(|_| {})));
    drivers.until_settled().await;
    let cluster = Arc::new(Cluster::default());
    let registrations = Registrations::new(registry, drivers.clone(), cluster, []);
    let task = tokio::spawn(registrations.run());
    assert!(drivers.client("d").is_err());
    let settled = tokio::time::timeout(Duration::from_secs(10), drivers.until_settled());
    settled.await.unwrap();
    assert!(drivers.client("d").is_ok());
    task.abort();
}

#[test]
fn of_two_of_a_name_the_newer_wins() {
    let versions = |v: &str| vec![v.to_owned()];
    let old = validate(&versions("1.1"), None).unwrap();
    assert!(validate(&versions("1.2"), Some(&old)).is_ok());
    for given in ["1.1", "1.0"] {
        let told = validate(&versions(given), Some(&old)).unwrap_err();
        assert!(told.contains("already registered"), "{told}");
    }
}
